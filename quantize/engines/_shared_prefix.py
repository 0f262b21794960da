"""lm-eval's Hugging Face model, with requests that begin alike paying for that once.

The stock model runs prompt + choice once per choice, padded to its batch, with the whole vocabulary's logits at every
token. Here there are three ways, and a request takes the first that holds for it; tests hold all three beside the
stock model, which they equal to float rounding:

1. packed: requests as trees of tokens, many to a row, without padding (see `_packing` and `_packed`). For models whose
   attention takes such a mask, and only as deep as was proven: before a pack is deeper than any before it, one of its
   depth is held against plain passes.
2. continued: the prompts of a batch run once each, padded on the left and masked, and the choices continue from their
   key-value cache, padded on the right, which a causal model cannot see. For long prompts, where a mask over all pairs
   of tokens costs more than a cache, and for prompts beyond a sliding window.
3. stock: for models with a recurrent state, which cannot be handed from a prompt to several choices, and for requests
   that the stock model truncates.

Imported only by functions that have a model loaded, so it may import torch and lm-eval at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from quantize.engines import _packed
from quantize.engines._packing import Asked, Limits, packs
from quantize.errors import DataError

__all__ = ["SharedPrefixLM"]

#: Logits that one forward pass may hold, in numbers: half a gigabyte of float32.
_LOGITS = 1 << 27

#: Tokens of a pack. On two cores 128 cost 15 % more (the weights are read once per pack), 512 no less; accelerators
#: need more at once to be busy, and attention over 2048 is still a small part of a large model's work.
_AIM = 384
_AIM_ON_ACCELERATORS = 2048

#: Tokens of the longest request that is packed: beyond, a mask over all pairs of tokens costs more than a cache.
_DEEPEST = 1024

#: Names that configs use for how far back some layer's attention looks: beyond it a tree's mask would say too much.
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "local_attention")

#: Padding tokens that a batch of prompts may hold before it is cut. Padding is computed like any token, but a further
#: forward pass reads all weights again.
_PADDING = 128

Request = tuple[tuple[str, str], list[int], list[int]]
Scores = list[tuple[float, bool]]
#: A prompt's ids, and for each of its choices the place in the answer and the ids.
Group = tuple[list[int], list[tuple[int, list[int]]]]


class SharedPrefixLM(HFLM):  # type: ignore[misc]
    """`max_batch_tokens` bounds the tokens of a forward pass; generation runs in batches of `batch_size`.

    `finite` turns False when a logit is NaN or infinite while text is generated; log-likelihoods show it themselves.
    """

    def __init__(self, model: Any, tokenizer: Any, max_batch_tokens: int, batch_size: int = 16) -> None:
        # Without logits_cache: where two requests are one text cut at different places, lm-eval 0.4.13 scores one of
        # them with the other's slice of the logits.
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_batch_size=batch_size,
            logits_cache=False,
        )
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self._shares = self._keeps_only_keys_and_values()
        aim = _AIM if self.device.type == "cpu" else _AIM_ON_ACCELERATORS
        # A quarter, so that another budget makes other packs: how much that moves a score is what some call noise.
        aim = max(1, min(aim, max_batch_tokens // 4))
        self._limits = Limits(aim, max_batch_tokens, max(1, _LOGITS // self._vocabulary))
        # Tokens of a request up to which packs may be, and are proven to be, what plain passes are.
        self._reach = _reach(model) if self._shares else 0
        self._proven = 0
        self.finite = True

    @property
    def verbatim(self) -> bool:
        """Whether texts bring their special tokens with them, so that none are added: what a chat template has made."""
        return self.add_bos_token is False

    @verbatim.setter
    def verbatim(self, wanted: bool) -> None:
        # The stock model's name for it: what it hands to the tokenizer as `add_special_tokens`.
        self.add_bos_token = False if wanted else None

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """See the stock model. Nothing in a text says that its logits were NaN, so they are looked at here."""

        def look(_module: Any, _inputs: Any, logits: torch.Tensor) -> None:
            last = logits[:, -1]
            if bool((last.isnan() | last.isposinf()).any()):
                self.finite = False

        hook = self.model.get_output_embeddings().register_forward_hook(look)
        try:
            texts: list[str] = super().generate_until(requests, disable_tqdm)
        finally:
            hook.remove()
        return texts

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Scores:
        """Summed log-probability of each continuation, and whether it is the greedy one, in the given order.

        Raises DataError for a choice of no tokens: its sum would be 0, and it would beat every other.
        """
        for texts, _, choice in requests:
            if not choice:
                raise DataError(
                    f"nothing is left to score of the choice {texts[1]!r} after the prompt that ends in "
                    f"{texts[0][-20:]!r}: the tokenizer joins them.",
                    fix="End the prompt at a whole word, and let the choices begin with a blank.",
                )
        answers: list[tuple[float, bool] | None] = [None] * len(requests)
        # What does not fit is truncated from the left by the stock model's rule, so its prompt is not shared.
        fits = [len(prompt) + len(choice) <= self.max_length for _, prompt, choice in requests]
        alone = [index for index, fit in enumerate(fits) if not (fit and self._shares)]
        if alone:
            scores = self._stock([requests[index] for index in alone], disable_tqdm)
            for index, score in zip(alone, scores, strict=True):
                answers[index] = score
        whole = [(index, *requests[index][1:]) for index, answer in enumerate(answers) if answer is None]
        with tqdm(total=len(whole), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for index, score in self._shared(whole):
                answers[index] = score
                bar.update()
        return [answer for answer in answers if answer is not None]

    def _shared(self, requests: list[Asked]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Packed as far as packs reach, else continued from a cache."""
        self._prove(requests)
        near = [request for request in requests if _depth(request) <= self._reach]
        for pack in packs(near, self._limits):
            yield from _packed.score(self.model, pack)
        groups: dict[tuple[int, ...], Group] = {}
        for index, prompt, choice in (request for request in requests if _depth(request) > self._reach):
            groups.setdefault(tuple(prompt), (prompt, []))[1].append((index, choice))
        for batch in self._batches(list(groups.values())):
            yield from self._score(batch)

    def _prove(self, requests: list[Asked]) -> None:
        """Let packs reach no deeper than a pack was seen to have the logits of plain passes."""
        near = [request for request in requests if _depth(request) <= self._reach]
        deepest = max(near, key=_depth, default=None)
        if deepest is None or _depth(deepest) <= self._proven:
            return
        # With room ahead: the next look's deepest request is a little deeper as often as not.
        depth = min(1 << max(5, (_depth(deepest) - 1).bit_length()), self._reach)
        _, prompt, choice = deepest
        if _packed.agrees(self.model, list(islice(cycle(prompt + choice[:-1]), depth))):
            self._proven = depth
        else:
            self._reach = self._proven

    @torch.inference_mode()
    def _keeps_only_keys_and_values(self) -> bool:
        """Whether all that the model remembers of a prompt are keys and values, which can be copied to its choices."""
        result = self.model(torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=True)
        layers: list[Any] = getattr(getattr(result, "past_key_values", None), "layers", [])
        return bool(layers) and all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)

    def _stock(self, requests: list[Request], disable_tqdm: bool) -> Scores:
        """The stock model's scores, in batches that keep to the budgets."""
        longest = min(max(len(prompt) + len(choice) for _, prompt, choice in requests), self.max_length)
        rows = max(1, min(self._max_batch_tokens, _LOGITS // self._vocabulary) // longest)
        self.batch_size_per_gpu = rows
        try:
            scores: Scores = super()._loglikelihood_tokens(requests, disable_tqdm)
        finally:
            self.batch_size_per_gpu = self._batch_size
        return scores

    def _pieces(self, group: Group) -> Iterator[Group]:
        """A group whose choices alone would break the budgets, cut into groups that keep to them."""
        prompt, choices = group
        limit = min(self._max_batch_tokens, _LOGITS // self._vocabulary)
        piece: list[tuple[int, list[int]]] = []
        for choice in sorted(choices, key=lambda choice: -len(choice[1])):
            if piece and (len(piece) + 1) * len(piece[0][1]) > limit:
                yield prompt, piece
                piece = []
            piece.append(choice)
        yield prompt, piece

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Prompts of similar length, longest first, as many as the budgets of tokens and logits allow."""
        batch: list[Group] = []
        pieces = [piece for group in groups for piece in self._pieces(group)]
        for group in sorted(pieces, key=lambda group: -len(group[0])):
            together = [*batch, group]
            rows = sum(len(choices) for _, choices in together)
            continued = rows * max(len(ids) for _, choices in together for _, ids in choices)
            width = len(together[0][0])
            padding = sum(width - len(prompt) for prompt, _ in together)
            tokens = max(len(together) * width, continued)
            over = tokens > self._max_batch_tokens or continued * self._vocabulary > _LOGITS
            if batch and (over or padding > _PADDING):
                yield batch
                together = [group]
            batch = together
        if batch:
            yield batch

    @torch.inference_mode()
    def _score(self, batch: list[Group]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Score the choices of a batch of prompts, whose longest comes first."""
        width = len(batch[0][0])
        lengths = torch.tensor([len(prompt) for prompt, _ in batch], device=self.device)
        prompts = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in batch], device=self.device)
        mask = (torch.arange(width, device=self.device) >= (width - lengths).unsqueeze(1)).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        result = self.model(prompts, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        first = result.logits[:, -1].float().log_softmax(-1)
        owners = [row for row, (_, choices) in enumerate(batch) for _ in choices]
        choices = [choice for _, pairs in batch for choice in pairs]
        more = [row for row, (_, ids) in enumerate(choices) if len(ids) > 1]
        rest: dict[int, torch.Tensor] = {}
        if more:
            rows = [owners[row] for row in more]
            continued = self._continue([choices[row][1] for row in more], rows, lengths, mask, result.past_key_values)
            rest = dict(zip(more, continued, strict=True))
        for row, (index, ids) in enumerate(choices):
            scores = first[owners[row]].unsqueeze(0)
            if row in rest:
                scores = torch.cat([scores, rest[row][: len(ids) - 1]])
            wanted = torch.tensor(ids, device=self.device)
            total = scores.gather(1, wanted.unsqueeze(1)).sum()
            yield index, (float(total), bool((scores.argmax(-1) == wanted).all()))

    def _continue(
        self, choices: list[list[int]], owners: list[int], lengths: torch.Tensor, mask: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Log-probabilities (choices, longest - 1, vocabulary) after each token of each choice but its last."""
        longest = max(len(ids) for ids in choices)
        padded = torch.tensor([ids[:-1] + [0] * (longest - len(ids)) for ids in choices], device=self.device)
        cache.batch_select_indices(torch.tensor(owners, device=self.device))
        result = self.model(
            padded,
            attention_mask=torch.cat([mask[owners], torch.ones_like(padded)], dim=1),
            position_ids=lengths[owners].unsqueeze(1) + torch.arange(longest - 1, device=self.device),
            past_key_values=cache,
            use_cache=True,
        )
        scores: torch.Tensor = result.logits.float().log_softmax(-1)
        return scores


def _depth(request: Asked) -> int:
    """Tokens that the model reads of a request: all but the choice's last."""
    _, prompt, choice = request
    return len(prompt) + len(choice) - 1


def _reach(model: Any) -> int:
    """Tokens of the longest request that may be packed, as far as the config tells."""
    if not _packed.takes_masks(model):
        return 0
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return min([_DEEPEST, *(window for window in windows if isinstance(window, int) and window > 0)])
