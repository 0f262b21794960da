"""Two arms item by item: what changed between them, how sure that is, and which answers flipped.

An arm is a variant (or the baseline) of a run, or a version in the registry; its rows are those that its verdict rests
on. Two arms are paired on the items that both answered. Arms of one order that stopped at different items share the
first ones; where either stopped early, the end was not chosen beforehand, and the interval is that of the confidence
sequence, which holds wherever one stops. All intervals are two-sided 90 %: 5 % on either side.

Arms of different engines are compared all the same, and it is said: what the engines do differently cannot be told from
what the weights do.

This is for reading: no alpha is spent, nothing is decided, and many slices are looked at without correction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.arms import Arm
from quantize.errors import DataError, UsageError
from quantize.evidence import Comparison
from quantize.handed import Row
from quantize.metrics import Items, Text, read_rows

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["Contrast", "Flip", "compare_arms", "flips_between"]

#: One-sided level of either limit. The margin only decides an outcome that nobody asks for here.
_ALPHA, _MARGIN = 0.05, 0.05
_FIX = "Two arms can be compared only on one eval set: run both recipes with the same file."

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose score changed by `difference`: what was asked, what is right, and what each arm said."""

    item_id: str
    slice: str | None
    difference: float
    prompt: str
    target: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms on one eval. `flips`: losses before gains, the greatest first.

    `labels` are short names that tell the two apart. `note` says what was left out, and whether two engines answered.
    """

    first: str
    second: str
    labels: tuple[str, str]
    eval: str
    comparisons: tuple[Comparison, ...]
    flips: tuple[Flip, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Common:
    """The rows of the items that both answered, in the first arm's order. `whole`: there are no others."""

    before: list[Row]
    after: list[Row]
    whole: bool
    note: str = field(default="")


def compare_arms(first: Arm, second: Arm, only: str | None = None) -> list[Contrast]:
    """A contrast for each eval that both answered, or for `only`.

    Raises UsageError where they share none, DataError naming the first item that makes two eval sets different ones.
    """
    shared = [name for name in first.evals if name in second.evals]
    told = f"{first.name}: {', '.join(first.evals) or 'none'}; {second.name}: {', '.join(second.evals) or 'none'}"
    if not shared:
        raise UsageError(f"the two share no eval ({told}).", where=f"{first.name} and {second.name}")
    if only is not None and only not in shared:
        raise UsageError(f"--eval {only}: not both have answered it ({told}).")
    found = []
    for name in [only] if only is not None else shared:
        folders = first.folder(name), second.folder(name)
        kinds = [_holds_items(folder) for folder in folders]
        if kinds[0] != kinds[1]:
            raise DataError("it is a text for one arm and a set of items for the other.", where=name, fix=_FIX)
        contrast = _items(name, first, second, folders) if kinds[0] else _text(name, first, second, folders)
        found.append(replace(contrast, note=f"{_engines(first, second)} {contrast.note}".strip()))
    return found


def flips_between(first: Arm, second: Arm) -> dict[str, tuple[Flip, ...]]:
    """The flips of every eval of items that both answered, losses first; no interval is computed. Raises QuantizeError.

    An eval without flips is there, a text is not.
    """
    found = {}
    for name in (name for name in first.evals if name in second.evals):
        folders = first.folder(name), second.folder(name)
        if not all(_holds_items(folder) for folder in folders):
            continue
        before, after = (read_rows(folder) for folder in folders)
        whole = first.complete(name), second.complete(name)
        found[name] = tuple(_flips(_common(before, after, whole, _mismatch(name, first.name, second.name))))
    return found


def _engines(first: Arm, second: Arm) -> str:
    """What must be said where two engines answered."""
    if not first.engine or not second.engine or first.engine == second.engine:
        return ""
    return (
        f"{first.name} was measured in {first.engine}, {second.name} in {second.engine}: whatever the two engines do "
        f"differently is in these differences too."
    )


def _holds_items(folder: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "rows.parquet"
    try:
        return "item_id" in pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the rows cannot be read: {error}", where=str(path)) from error


def _text(name: str, first: Arm, second: Arm, folders: tuple[Path, Path]) -> Contrast:
    """The ratio of perplexities. Divergence is known of each arm from its baseline only, so it is left out."""
    try:
        ratio, *_ = Text(name=name, path="-").compare(*folders)
    except DataError as error:
        raise DataError(error.what, where=f"{name} of {first.name} and {second.name}", fix=_FIX) from None
    return Contrast(first.name, second.name, _labels(first, second), name, (ratio,))


def _items(name: str, first: Arm, second: Arm, folders: tuple[Path, Path]) -> Contrast:
    before, after = (read_rows(folder) for folder in folders)
    whole = first.complete(name), second.complete(name)
    common = _common(before, after, whole, _mismatch(name, first.name, second.name))
    comparisons = []
    for metric, pairs in Items(name=name, path="-").pairs(common.before, common.after).items():
        chosen = _of_metric(metric, common)
        comparisons.append(_comparison(metric, chosen, pairs, whole=common.whole))
    flips = tuple(_flips(common))
    return Contrast(first.name, second.name, _labels(first, second), name, tuple(comparisons), flips, common.note)


def _labels(first: Arm, second: Arm) -> tuple[str, str]:
    return ("first", "second") if first.variant == second.variant else (first.variant, second.variant)


def _common(
    before: list[Row], after: list[Row], whole: tuple[bool, bool], refuse: Callable[[str], DataError]
) -> _Common:
    """What both answered. Raises what `refuse` makes of the first mismatch."""
    left, right = _keyed(before), _keyed(after)
    for key in (key for key in left if key in right):
        for column, what in _MUST_AGREE.items():
            if left[key][column] != right[key][column]:
                raise refuse(f"item {key[0]!r} {what}")
    together = all(left[key]["place"] == right[key]["place"] for key in left if key in right)
    reached = 1 + min(max((row["place"] for row in rows.values()), default=-1) for rows in (left, right))
    for mine, other, done in ((left, right, whole[1]), (right, left, whole[0])):
        # Who answered everything has every item; arms of one order have the same first ones.
        expected = [key for key, row in mine.items() if done or (together and row["place"] < reached)]
        stray = [key for key in expected if key not in other]
        if stray:
            raise refuse(f"item {stray[0][0]!r} was asked of one arm only ({len(stray)} such items)")
    # In the order of the arm that stopped, if one did: where it stopped depends on what came before.
    shared = [key for key in (left if not whole[0] else right) if key in left and key in right]
    if not shared:
        raise refuse("no item was answered by both")
    note = ""
    if not all(whole):
        note = f"Only the {len(shared)} items that both answered are compared: not all were reached. "
        note += "The interval holds wherever one stops, and is wider for it."
    return _Common([left[key] for key in shared], [right[key] for key in shared], all(whole), note)


_MUST_AGREE = {
    "prompt_sha256": "was asked differently",
    "target": "was scored against different answers",
    "cluster": "is in different clusters",
    "slice": "is in different slices",
    "scored_by": "was scored by different judges",
}


def _keyed(rows: Sequence[Row]) -> dict[Key, Row]:
    ordered = sorted(rows, key=lambda row: (row["place"], row["filter"]))
    return {(str(row["item_id"]), str(row["filter"])): row for row in ordered}


def _mismatch(name: str, first: str, second: str) -> Callable[[str], DataError]:
    return lambda what: DataError(f"the eval sets differ: {what}.", where=f"{name} of {first} and {second}", fix=_FIX)


def _of_metric(metric: str, common: _Common) -> list[tuple[float, float]]:
    """The scores of both arms that a metric is the mean of."""
    quantity, _, slice_name = metric.partition("/")
    column = "parsed" if quantity.endswith(".parsed") else "score"
    return [
        (one[column], other[column])
        for one, other in zip(common.before, common.after, strict=True)
        if one[column] is not None and (not slice_name or one["slice"] == slice_name)
    ]


def _comparison(metric: str, scores: list[tuple[float, float]], pairs: Pairs, *, whole: bool) -> Comparison:
    from quantize.stats import judge_pairs
    from quantize.stats.path import confidence_path

    test = judge_pairs(pairs, _MARGIN, _ALPHA, early=0.0)
    low, high, method = test.lower, test.upper, str(test.method)
    if not whole:
        (end,) = confidence_path(pairs, _ALPHA, _ALPHA, points=1)
        low, high, method = end.lower, end.upper, "betting"
    before, after = zip(*scores, strict=True)
    return Comparison(
        metric=metric,
        unit="share",
        baseline=sum(before) / len(before),
        variant=sum(after) / len(after),
        difference=test.difference,
        low=low,
        high=high,
        level=1 - 2 * _ALPHA,
        n=test.n,
        method=method,
        extra={
            "losses": test.losses,
            "gains": test.gains,
            "clusters": test.clusters if pairs.clustered else None,
            "mcnemar": test.mcnemar,
        },
    )


def _flips(common: _Common) -> list[Flip]:
    found = []
    for one, other in zip(common.before, common.after, strict=True):
        if one["score"] != other["score"]:
            found.append(
                Flip(
                    item_id=str(one["item_id"]),
                    slice=one["slice"],
                    difference=other["score"] - one["score"],
                    prompt=str(one["prompt"]),
                    target=str(one["target"]),
                    before=str(one["answer"]),
                    after=str(other["answer"]),
                )
            )
    # A stable sort: what changed by as much stays in the order asked.
    return sorted(found, key=lambda flip: (flip.difference > 0, -abs(flip.difference)))
