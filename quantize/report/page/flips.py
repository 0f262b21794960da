"""Answers that flipped: what was asked, what is right, and what the baseline and the variants said, side by side.

An item stands once, with every variant that changed its answer. Items that some variant lost come first, the greatest
loss before the others, then those that most variants lost. A run may flip more than a page can hold: then each variant
shows its worst ones, and the command that lists all of them stands beside the count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from quantize.comparing import Flip
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.reading import Sources
from quantize.report.page.tables import clipped, grid_of, table

__all__ = ["flipped"]

#: Of a question, of an answer: so many characters.
_QUESTION, _ANSWER = 1_500, 500
_HEADS = ("variant", "eval", "lost", "gained", "on this page")
#: So many choices does a filter offer.
_CHOICES = 200
#: So many are printed; the style sheet leaves the others out.
_PAPER = 40


@dataclass(slots=True)
class _Item:
    """An item of an eval, and the flips of it by variant. `rank` is the best place that one has among its variant's."""

    eval: str
    flip: Flip
    rank: int
    changes: list[tuple[str, Flip]] = field(default_factory=list)

    def order(self) -> tuple[float, int]:
        """What the items are sorted by: the greatest loss, then how many variants lost it."""
        worst = min(flip.difference for _, flip in self.changes)
        return worst, -sum(flip.difference < 0 for _, flip in self.changes)


def flipped(sources: Sources, room: int) -> Markup | None:
    """The flips of all variants in at most about `room` bytes; None where no answer changed or none was compared."""
    if not any(sources.flips.values()):
        return None
    items = _items(sources)
    kept: list[tuple[_Item, Markup]] = []
    left = room
    for item in sorted(items, key=lambda item: item.rank):
        drawn = _drawn(item)
        left -= len(drawn.encode())
        if left < 0:
            break
        kept.append((item, drawn))
    kept.sort(key=lambda pair: pair[0].order())
    shown = [item for item, _ in kept]
    total = f"{len(shown):,} of {len(items):,} items whose answer changed are on this page"
    more = f"{total}, the worst of each variant. All of them: " if len(shown) < len(items) else ""
    run, count = sources.record.run, max(len(flips) for flips in sources.flips.values())
    command = f"quantize compare {run}:baseline {run}:VARIANT --eval EVAL --flips {count}"
    return joined(
        table(grid_of(_HEADS, list(_counts(sources, shown)), texts=2), "Flips of each variant", quiet=True),
        element("p", more or "All of them are below, or on a terminal: ", element("code", command), class_="note"),
        _filters(shown) if shown else None,
        element("p", f"On paper: the first {_PAPER}.", class_="note on-paper") if len(kept) > _PAPER else None,
        element("ol", [drawn for _, drawn in kept], id="flip-list", class_="flips"),
    )


def _items(sources: Sources) -> list[_Item]:
    found: dict[tuple[str, str, str, str, str], _Item] = {}
    for (variant, name), flips in sources.flips.items():
        for rank, flip in enumerate(flips):
            key = (name, flip.item_id, flip.prompt, flip.target, flip.before)
            item = found.setdefault(key, _Item(name, flip, rank))
            item.rank = min(item.rank, rank)
            item.changes.append((variant, flip))
    return list(found.values())


def _counts(sources: Sources, shown: Sequence[_Item]) -> Iterator[tuple[str, ...]]:
    """A row for each variant and eval."""
    here: dict[tuple[str, str], int] = {}
    for item in shown:
        for variant, _ in item.changes:
            here[variant, item.eval] = here.get((variant, item.eval), 0) + 1
    for (variant, name), flips in sources.flips.items():
        lost = sum(flip.difference < 0 for flip in flips)
        counts = (lost, len(flips) - lost, here.get((variant, name), 0))
        yield (variant, name, *(f"{count:,}" for count in counts))


def _filters(items: Sequence[_Item]) -> Markup:
    variants = sorted({variant for item in items for variant, _ in item.changes})
    evals = sorted({item.eval for item in items})
    slices = sorted({item.flip.slice for item in items if item.flip.slice is not None})
    return element(
        "form",
        element(
            "label",
            "Search ",
            element("input", type="search", id="flip-search", placeholder="press / to search", autocomplete="off"),
        ),
        _choice("flip-variant", "Variant", variants),
        _choice("flip-eval", "Eval", evals) if len(evals) > 1 else None,
        _choice("flip-slice", "Slice", slices) if len(slices) > 1 else None,
        _choice("flip-way", "Change", ("lost", "gained")),
        element("output", f"{len(items):,} items", id="flip-count", aria_live="polite"),
        id="flip-filters",
        class_="filters",
        hidden=True,
        role="search",
        aria_label="Filter the flipped answers",
    )


def _choice(name: str, what: str, values: Sequence[str]) -> Markup:
    options = [element("option", value, value=value) for value in values[:_CHOICES]]
    return element("label", f"{what} ", element("select", element("option", "all", value=""), options, id=name))


def _drawn(item: _Item) -> Markup:
    flip = item.flip
    place = [part for part in (item.eval, flip.slice) if part is not None]
    return element(
        "li",
        element(
            "div",
            element("p", element("b", flip.item_id), *(f" · {part}" for part in place), class_="item"),
            element("p", clipped(flip.prompt.strip("\n"), _QUESTION), class_="text", dir="auto"),
            class_="asked",
        ),
        element(
            "div",
            _answer("right", "target", "", flip.target),
            _answer("baseline", "baseline", "", flip.before),
            [_change(variant, found) for variant, found in item.changes],
            class_="answers",
        ),
        data_eval=item.eval,
        data_slice=flip.slice,
    )


def _change(variant: str, flip: Flip) -> Markup:
    lost = flip.difference < 0
    part = f" by {abs(flip.difference):.2g}" if abs(flip.difference) < 1 else ""
    sign = f"− lost{part}" if lost else f"+ gained{part}"
    return _answer(variant, "lost" if lost else "gained", sign, flip.after, variant=variant)


def _answer(who: str, class_: str, sign: str, text: str, variant: str | None = None) -> Markup:
    said: Child = clipped(text.strip("\n"), _ANSWER)
    return element(
        "div",
        element("span", who, class_="who"),
        element("span", sign, class_="sign"),
        element("span", said, class_="text", dir="auto"),
        class_=f"answer {class_}",
        data_variant=variant,
        data_way=class_ if variant is not None else None,
    )
