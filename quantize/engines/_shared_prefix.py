"""lm-eval's Hugging Face model, with choices that share a prompt paying for it once.

The stock model runs prompt + choice once per choice. Here the prompts run once each, sorted by length, and the choices
continue from the prompts' key-value cache. For four choices of a few tokens after a prompt of thirty that is a quarter
of the work. Prompts of a batch are padded on the left and masked; choices are padded on the right, which a causal model
cannot see. Scores equal the stock model's to float rounding; a test holds both side by side. A recurrent state cannot
be handed from a prompt to several choices, so models that keep one are scored the stock way.

Imported only by functions that have a model loaded, so it may import torch and lm-eval at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from quantize.errors import DataError

__all__ = ["SharedPrefixLM"]

#: Logits that one forward pass may hold, in numbers: half a gigabyte of float32.
_LOGITS = 1 << 27

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
        self.finite = True

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
        groups: dict[tuple[int, ...], Group] = {}
        for index, (_, prompt, choice) in enumerate(requests):
            if answers[index] is None:
                groups.setdefault(tuple(prompt), (prompt, []))[1].append((index, choice))
        with tqdm(total=len(requests) - len(alone), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for batch in self._batches(list(groups.values())):
                for index, score in self._score(batch):
                    answers[index] = score
                    bar.update()
        return [answer for answer in answers if answer is not None]

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
