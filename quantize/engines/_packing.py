"""Requests that share tokens, packed into trees: every token is computed once, and nothing is padded.

A request asks for the probability of a choice after a prompt: the model must read prompt + choice without the choice's
last token, and is looked at after the prompt's last token and after each token of the choice that it reads. As a tree
of tokens, requests share what they begin with: the prompt of an item, the beginnings of its choices, and the template
or the worked examples that many prompts open with. A pack is such a tree, written as one row of tokens for one forward
pass (`_packed` runs it). Nothing here knows of torch or of a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil

__all__ = ["Asked", "Limits", "Pack", "packs"]

#: A request: its place in the answer, the prompt's ids, the choice's ids (at least one each).
Asked = tuple[int, list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pack may hold. One request alone may break them; it cannot be cut.

    `aim`: tokens at which a pack is closed; the weights are read once per pack, and attention grows with its square.
    `tokens`, `looks`: tokens, and places at which the whole vocabulary's logits are kept, that are never exceeded.
    """

    aim: int
    tokens: int
    looks: int


@dataclass(slots=True)
class Pack:
    """A tree of tokens in one row, parents before children.

    `parents` holds places in the row, -1 for a first token; `depths` the position in the request. `looks` are the
    places whose logits are wanted. `asked` holds for each request its place in the answer, the choice's ids, and
    for each of those the place in `looks` that predicts it.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    asked: list[tuple[int, list[int], list[int]]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)
    _looked: dict[int, int] = field(default_factory=dict)

    def add(self, request: Asked) -> None:
        """Put a request in; what it shares with those that are here costs nothing."""
        index, prompt, choice = request
        place, after = -1, []
        for depth, token in enumerate(prompt + choice[:-1]):
            place = self._child(place, token, depth)
            if depth >= len(prompt) - 1:
                after.append(self._look(place))
        self.asked.append((index, choice, after))

    def shared(self, ids: list[int]) -> int:
        """How many of the first ids are already here."""
        place = -1
        for depth, token in enumerate(ids):
            child = self._children.get((place, token))
            if child is None:
                return depth
            place = child
        return len(ids)

    def _child(self, parent: int, token: int, depth: int) -> int:
        place = self._children.setdefault((parent, token), len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(depth)
        return place

    def _look(self, place: int) -> int:
        row = self._looked.setdefault(place, len(self.looks))
        if row == len(self.looks):
            self.looks.append(place)
        return row


def packs(requests: Iterable[Asked], limits: Limits) -> Iterator[Pack]:
    """All requests in as few packs as the limits allow, of about equal size; one prompt's choices stay together.

    Where a prompt's choices alone break the limits they are cut, and the prompt is computed again for each part.
    """
    ordered = sorted(requests, key=lambda request: (request[1], request[2]))
    whole = Pack()
    for request in ordered:
        whole.add(request)
    aim = ceil(len(whole.tokens) / ceil(len(whole.tokens) / limits.aim)) if ordered else 0
    pack = Pack()
    for group in _groups(ordered, limits):
        if pack.asked and (len(pack.tokens) >= aim or not _fits(pack, group, limits)):
            yield pack
            pack = Pack()
        for request in group:
            pack.add(request)
    if pack.asked:
        yield pack


def _groups(ordered: list[Asked], limits: Limits) -> Iterator[list[Asked]]:
    """Neighbours of one prompt, cut where they alone break the limits or make two packs of what is aimed at."""
    group: list[Asked] = []
    bounds = Limits(limits.aim, min(limits.tokens, 2 * limits.aim), limits.looks)
    for request in ordered:
        if group and (group[0][1] != request[1] or not _fits(Pack(), [*group, request], bounds)):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _fits(pack: Pack, group: list[Asked], limits: Limits) -> bool:
    """Whether a pack keeps to the limits with one prompt's choices added, not counting what the choices share."""
    prompt = group[0][1]
    continued = sum(len(choice) - 1 for _, _, choice in group)
    tokens = len(pack.tokens) + len(prompt) - pack.shared(prompt) + continued
    return tokens <= limits.tokens and len(pack.looks) + 1 + continued <= limits.looks
