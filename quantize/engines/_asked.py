"""lm-eval over any engine that is asked for scores and completions of token ids.

lm-eval, its tokenization and its scoring rules stay in this process; what another process computes is two numbers per
choice, or a text. Everything that decides *what* is asked is what the harness's own Hugging Face model does: how
prompt and choice are cut into ids, what stands before an empty prompt, what is dropped of a text that is too long, and
where an answer ends. A test holds both beside each other.

Imported only by functions that have an engine open, so it may import lm-eval at the top.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from tqdm import tqdm

from quantize.errors import DataError

__all__ = ["Asked", "AskedLM", "Pair", "Score"]

#: A prompt's ids and a choice's, at least one each.
Pair = tuple[list[int], list[int]]
#: The sum of the choice's log-probabilities, and whether each of its tokens is the likeliest there.
Score = tuple[float, bool]
Request = tuple[tuple[str, str] | None, list[int], list[int]]

#: Pairs, and prompts, that an engine is given at a time: enough to be busy with, few enough to see progress.
_PAIRS, _PROMPTS = 256, 64

#: Tokens that an answer may have where the task does not say, as in the harness's own models.
_MAX_TOKENS = 256

#: Entries of a task's `generation_kwargs` that are passed on, after `until` and the length are taken out.
_SAMPLING = {"do_sample", "temperature", "top_p"}


class Asked(Protocol):
    """What an engine must answer."""

    @property
    def max_length(self) -> int:
        """Tokens that the engine can read at once. The last token of a choice is never read."""
        ...

    @property
    def finite(self) -> bool:
        """False once a logit was NaN or infinite while a text was generated; scores show it themselves, as NaN."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """Of every (prompt, choice): len(prompt) + len(choice) - 1 <= `max_length`. Pairs of one prompt are neighbours.

        A score is NaN where a logit that it rests on is not finite.
        """
        ...

    def complete(
        self,
        prompts: Sequence[list[int]],
        *,
        max_tokens: int,
        stops: Sequence[str],
        temperature: float,
        top_p: float,
        seed: int,
    ) -> list[str]:
        """Continue every prompt until the model ends, one of `stops` has come (it may be in the text), or `max_tokens`.

        Special tokens are left out of the text, but one that is named in `stops` ends it. Temperature 0 is greedy;
        prompt number i samples with `seed` + i.
        """
        ...


class AskedLM(TemplateLM):  # type: ignore[misc]
    """`tokenizer` is the checkpoint's own, of transformers. Raises DataError for requests that cannot be asked."""

    def __init__(self, asked: Asked, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        #: Whether texts bring their special tokens with them, so that none are added: what a chat template has made.
        self.verbatim = False
        self._asked = asked

    @property
    def finite(self) -> bool:
        """See `Asked.finite`."""
        return self._asked.finite

    @property
    def max_length(self) -> int:
        """See `Asked.max_length`."""
        return self._asked.max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where the task does not say."""
        return _MAX_TOKENS

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before: the beginning of a text, else the end of one."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """What tells apart two tokenizers' requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer adds unless the text brings its own."""
        begins = self.verbatim or has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        if add_special_tokens is None and begins:
            add_special_tokens = False
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **chosen))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one text; without the system's where the template refuses that role."""
        import jinja2

        def rendered(messages: list[dict[str, str]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text

        try:
            return rendered(chat_history)
        except jinja2.exceptions.TemplateError:
            return rendered([message for message in chat_history if message["role"] != "system"])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in disjoint windows of the greatest length."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            (text,) = request.args
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [utils.make_disjoint_window(window) for window in cut]
            windows += [(None, list(before), list(after)) for before, after in own]
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def _loglikelihood_tokens(self, requests: list[Request], disable_tqdm: bool = False, **_: Any) -> list[Score]:
        """Summed log-probability of each choice, and whether it is the greedy one, in the given order."""
        pairs = [self._pair(*request) for request in requests]
        answers: dict[int, Score] = {}
        with tqdm(total=len(pairs), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for block in _blocks(pairs):
                scores = self._asked.score([pairs[number] for number in block])
                answers.update(zip(block, scores, strict=True))
                bar.update(len(block))
        return [answers[number] for number in range(len(pairs))]

    def _pair(self, texts: tuple[str, str] | None, prompt: list[int], choice: list[int]) -> Pair:
        """What is asked of a request: a prompt that is too long loses its beginning.

        Raises DataError for a choice of no tokens: its sum would be 0, and it would beat every other. Raises it too
        for a choice that alone is too long.
        """
        end, start = (texts[0][-20:], texts[1][:60]) if texts else ("", "")
        if not choice:
            raise DataError(
                f"nothing is left to score of the choice {start!r} after the prompt that ends in {end!r}: the "
                f"tokenizer joins them.",
                fix="End the prompt at a whole word, and let the choices begin with a blank.",
            )
        if len(choice) > self.max_length:
            raise DataError(
                f"the choice that begins {start!r} has {len(choice)} tokens, and the engine reads {self.max_length}.",
                fix="Give the engine a longer context, or leave the item out.",
            )
        whole = (prompt + choice)[-(self.max_length + 1) :]
        return whole[: -len(choice)], choice

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut at the first stop; requests that are sampled alike are asked together."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=repr), []).append(number)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="answers", disable=disable_tqdm) as bar:
            for numbers in alike.values():
                prompts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                numbers.sort(key=lambda number: -len(prompts[number]))
                for start in range(0, len(numbers), _PROMPTS):
                    block = numbers[start : start + _PROMPTS]
                    options = requests[block[0]].args[1]
                    answers = self._answers([prompts[number] for number in block], options, start)
                    texts.update(zip(block, answers, strict=True))
                    bar.update(len(block))
        return [texts[number] for number in range(len(requests))]

    def _answers(self, prompts: list[list[int]], options: dict[str, Any], first: int) -> list[str]:
        """`first` is the place of these prompts among those that are sampled alike: the seed goes on from there."""
        import torch

        kwargs = normalize_gen_kwargs(options, self.max_gen_toks)
        until = handle_stop_sequences(kwargs.pop("until", None), eos=self.tokenizer.decode(self.eot_token_id))
        length = int(kwargs.pop("max_gen_toks"))
        unknown = sorted(set(kwargs) - _SAMPLING)
        if unknown:
            raise DataError(
                f"the task's generation_kwargs ask for {', '.join(unknown)}, which this engine does not know.",
                fix="Leave them out, or evaluate with the transformers engine.",
            )
        room = self.max_length - length
        if room <= 0:
            raise DataError(
                f"an answer may have {length} tokens, and prompt and answer together {self.max_length}.",
                fix="Lower max_gen_toks, or give the engine a longer context.",
            )
        texts = self._asked.complete(
            [prompt[-room:] for prompt in prompts],
            max_tokens=length,
            stops=[stop for stop in until if stop],
            temperature=float(kwargs.get("temperature") or 0.0),
            top_p=float(kwargs.get("top_p", 1.0)),
            seed=(torch.initial_seed() + first) % (1 << 31),
        )
        return [postprocess_generated_text(text, until, None) for text in texts]


def _blocks(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Numbers of pairs to ask for together: prompts that begin alike are neighbours, and none is cut in two."""
    block: list[int] = []
    for number in sorted(range(len(pairs)), key=lambda number: pairs[number]):
        if len(block) >= _PAIRS and pairs[number][0] != pairs[block[-1]][0]:
            yield block
            block = []
        block.append(number)
    if block:
        yield block
