"""What `_asked.AskedLM` asks, put to llama.cpp: requests as trees of tokens, prompts as sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import nan
from typing import Any

from quantize.engines._asked import Pair, Score
from quantize.engines._llamacpp_client import Client
from quantize.engines._packing import Asked as Request
from quantize.engines._packing import Limits, Pack, packs

__all__ = ["LlamaCppAsked"]

#: Answers that are written at the same time.
_PARALLEL = 16


class LlamaCppAsked:
    """See `_asked.Asked`. `aim` is how many tokens a tree may have where requests can be cut apart."""

    def __init__(self, client: Client, tokenizer: Any, aim: int) -> None:
        self._client = client
        self._tokenizer = tokenizer
        facts = client.facts
        self._shares: bool = facts["shares"]
        self._sequences: int = facts["sequences"]
        self._limits = Limits(min(aim, facts["n_ctx"]), facts["n_ctx"], facts["outputs"])
        self.max_length: int = facts["n_ctx"]
        self.finite = True

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """See `_asked.Asked`."""
        requests = [(number, *pair) for number, pair in enumerate(pairs)]
        trees = [
            {"tokens": t.tokens, "parents": t.parents, "depths": t.depths, "looks": t.looks, "asked": t.asked}
            for t in self._trees(requests)
        ]
        reply = self._client.ask({"do": "score", "trees": trees})
        found = {number: (nan if total is None else total, greedy) for number, total, greedy in reply["scores"]}
        return [found[number] for number in range(len(pairs))]

    def _trees(self, requests: list[Request]) -> Iterator[Pack]:
        """Packs whose leaves are not more than there are sequences; one for each request where none can be shared."""
        if not self._shares:
            yield from (_pack([request]) for request in requests)
            return
        for pack in packs(requests, self._limits):
            yield from self._fitting(pack)

    def _fitting(self, pack: Pack) -> Iterator[Pack]:
        inner = set(pack.parents)
        leaves = sum(place not in inner for place in range(len(pack.tokens)))
        if leaves <= self._sequences:
            yield pack
            return
        whole = [(number, _path(pack, after[0]), choice) for number, choice, after in pack.asked]
        middle = len(whole) // 2
        for half in (whole[:middle], whole[middle:]):
            yield from self._fitting(_pack(half))

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
        """See `_asked.Asked`."""
        options = {
            "max_tokens": max_tokens,
            "stops": list(stops),
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "parallel": min(_PARALLEL, self._sequences),
        }
        reply = self._client.ask({"do": "complete", "prompts": list(prompts), "options": options})
        self.finite = self.finite and reply["finite"]
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in reply["answers"]]


def _pack(requests: Iterable[Request]) -> Pack:
    pack = Pack()
    for request in requests:
        pack.add(request)
    return pack


def _path(pack: Pack, look: int) -> list[int]:
    """The tokens from the root to where a look is: a request's prompt."""
    place, ids = pack.looks[look], []
    while place >= 0:
        ids.append(pack.tokens[place])
        place = pack.parents[place]
    return ids[::-1]
