"""What `_asked.AskedLM` asks, put to vLLM's server.

vLLM does not read its prefix cache for a request that wants the log-probabilities of its prompt: every choice that is
asked for in that way pays for the whole prompt again. A test holds this against the server's own counters. So choices
of one token, which most multiple-choice tasks have, are asked for otherwise: as what may come after the prompt, all of
a prompt's in one request (`logprob_token_ids`), which computes the prompt once and a single row of logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isfinite, nan
from typing import Any

from quantize.engines._asked import Pair, Score
from quantize.engines._vllm_client import COMPLETIONS, Client

__all__ = ["MOST", "NAMED", "NEUTRAL", "VllmAsked", "after", "read", "said"]

#: Log-probabilities that a request may ask for at a position; the server is started with it.
MOST = 1024

#: Tokens whose log-probabilities may be asked for by name in one request.
NAMED = 128

#: The likeliest token is what comes next, whatever the checkpoint's generation_config.json says.
NEUTRAL: dict[str, Any] = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}

#: What the server writes for minus infinity.
_FLOOR = -9999.0

_TOKEN = "token_id:"  # noqa: S105


class VllmAsked:
    """See `_asked.Asked`. `most` is how many tokens a prompt may have."""

    def __init__(self, client: Client, tokenizer: Any, most: int) -> None:
        self._client = client
        self._tokenizer = tokenizer
        # A prompt whose log-probabilities are wanted is read whole, a choice's last token too.
        self.max_length = most - 1
        self.finite = True
        self._special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """See `_asked.Asked`."""
        numbers: list[list[int]] = []
        bodies = []
        for owners, body in _requests(pairs):
            numbers.append(owners)
            bodies.append(body)
        found: dict[int, Score] = {}
        for owners, answer in zip(numbers, self._client.ask_all(COMPLETIONS, bodies), strict=True):
            for number in owners:
                found[number] = (nan, False) if answer is None else _score(answer, pairs[number][1])
        return [found[number] for number in range(len(pairs))]

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
        """See `_asked.Asked`. Penalties are the checkpoint's own, as they are in production and in transformers."""
        ids = {stop: self._tokenizer.encode(stop, add_special_tokens=False) for stop in stops}
        special = [tokens[0] for tokens in ids.values() if len(tokens) == 1 and tokens[0] in self._special]
        options = {
            "max_tokens": max_tokens,
            "stop": list(stops),
            # Special tokens are not in the text that stops are looked for in.
            "stop_token_ids": special,
            "temperature": temperature,
            "top_p": top_p,
            # The chosen token's: what is not finite shows.
            "logprobs": 0,
        }
        bodies = [{**options, "prompt": prompt, "seed": seed + number} for number, prompt in enumerate(prompts)]
        texts = []
        for answer in self._client.ask_all(COMPLETIONS, bodies):
            if answer is None:
                self.finite = False
            texts.append("" if answer is None else str(answer["choices"][0]["text"]))
        return texts


def _requests(pairs: Sequence[Pair]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Numbers of pairs, and the request that answers them."""
    for _, group in groupby(range(len(pairs)), key=lambda number: pairs[number][0]):
        single = []
        for number in group:
            prompt, choice = pairs[number]
            if len(choice) == 1:
                single.append(number)
            else:
                yield [number], {**NEUTRAL, "prompt": prompt + choice, "max_tokens": 1, "prompt_logprobs": 0}
        for start in range(0, len(single), NAMED):
            owners = single[start : start + NAMED]
            yield owners, after(pairs[owners[0]][0], sorted({pairs[number][1][0] for number in owners}))


def after(prompt: list[int], tokens: list[int]) -> dict[str, Any]:
    """The request for the log-probabilities of `tokens` after a prompt, and for the likeliest token there."""
    return {
        **NEUTRAL,
        "prompt": prompt,
        "max_tokens": 1,
        "logprobs": 0,
        "logprob_token_ids": tokens,
        "return_tokens_as_token_ids": True,
    }


def _score(answer: dict[str, Any], choice: list[int]) -> Score:
    """Of a choice, from the log-probabilities of the prompt that it ends, or of what comes after one."""
    first = answer["choices"][0]
    if first["prompt_logprobs"] is None:
        likeliest, found = read(answer)
        value = found[choice[0]]
        return (value, likeliest == choice[0]) if said(value) else (nan, False)
    entries = [entry[str(token)] for entry, token in zip(first["prompt_logprobs"][-len(choice) :], choice, strict=True)]
    values = [float(entry["logprob"]) for entry in entries]
    if not all(map(said, values)):
        return nan, False
    return sum(values), all(entry["rank"] == 1 for entry in entries)


def read(answer: dict[str, Any]) -> tuple[int, dict[int, float]]:
    """The likeliest token, and log-probabilities by token, of an answer to `after`; NaN where they are not finite."""
    logprobs = answer["choices"][0]["logprobs"]
    found = {int(name.removeprefix(_TOKEN)): value for name, value in logprobs["top_logprobs"][0].items()}
    return int(logprobs["tokens"][0].removeprefix(_TOKEN)), found


def said(value: float) -> bool:
    """Whether the server gives a log-probability: it writes `_FLOOR` for minus infinity, which no sound model says."""
    return isfinite(value) and value > _FLOOR
