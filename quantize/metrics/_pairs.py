"""Two arms' rows, joined by item: the paired scores that tests are made on, and what to show of them.

The variant may have answered only the first looks of the common order; the rest of the baseline's rows then say what
the variant could still reach. Two arms that answered in different orders (the noise floor) must both be complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from quantize.errors import DataError
from quantize.evidence import Comparison
from quantize.handed import Row
from quantize.metrics._rows import check_scores
from quantize.stats import document_bootstrap, judge_pairs, wilson_interval

if TYPE_CHECKING:
    from quantize.stats import Interval, Pairs

__all__ = ["compare_items", "pair_items"]

_AGAIN = "The eval set changed between the arms: run again, so that both are measured on one set."
_JUDGED_ALIKE = "Set the scorer's `version` to that of now, so that both arms are scored again."
_HELD_ALIKE = "Run the recipe again where both arms are scored: on one machine, with the same kernel settings."
#: How `scored_by` begins where a command has scored.
_COMMAND = "command;"

#: Margin and one-sided level of the limits that are shown where no gate has its own.
_MARGIN, _ALPHA = 0.05, 0.05


@dataclass(frozen=True, slots=True)
class _Joined:
    """Pairs of rows (baseline, variant) in the order answered, and the baseline's rows that have no partner yet."""

    answered: list[tuple[Row, Row]]
    left: list[Row]


def pair_items(name: str, baseline: list[Row], variant: list[Row]) -> dict[str, Pairs]:
    """The paired scores of all items, of each slice, and of the generated answers' readability, by metric name.

    A slice of which nothing was answered yet is left out.
    """
    joined = _join(baseline, variant)
    parts = {f"{name}.accuracy": (joined, "score")}
    for slice_name in _slices(baseline):
        part = _only(joined, partial(_is_in, slice_name))
        parts[f"{name}.accuracy/{slice_name}"] = (part, "score")
    parts[f"{name}.parsed"] = (_only(joined, lambda row: row["parsed"] is not None), "parsed")
    return {metric: _pairs(part, column) for metric, (part, column) in parts.items() if part.answered}


def compare_items(name: str, baseline: list[Row], variant: list[Row], early: float) -> list[Comparison]:
    """Differences of the paired scores with their limits; answers cut off; harmful flips; the ratio of lengths."""
    joined = _join(baseline, variant)
    found = []
    for metric, pairs in pair_items(name, baseline, variant).items():
        quantity, _, slice_name = metric.partition("/")
        column = "parsed" if quantity.endswith(".parsed") else "score"
        chosen = [
            (one, other)
            for one, other in joined.answered
            if one[column] is not None and (not slice_name or one["slice"] == slice_name)
        ]
        found.append(_difference(metric, chosen, column, pairs, early))
    whole = not joined.left
    found += _truncated(f"{name}.truncated", joined, early)
    found.append(_harmful(f"{name}.harmful_flips", joined.answered, whole=whole))
    return found + _lengths(f"{name}.output_tokens", joined.answered, whole=whole)


def _join(baseline: list[Row], variant: list[Row]) -> _Joined:
    left, right = _keyed(baseline, "the baseline"), _keyed(variant, "the variant")
    stray = sorted(set(right) - set(left))
    if stray:
        raise DataError(f"the baseline has no row for item {stray[0][0]!r} ({len(stray)} missing).", fix=_AGAIN)
    if not right:
        raise DataError("the variant has no rows.", fix="Run again.")
    looks = 1 + max(row["look"] for row in right.values())
    together = all(left[key]["place"] == row["place"] for key, row in right.items())
    expected = [key for key, row in left.items() if not together or row["look"] < looks]
    lost = sorted(set(expected) - set(right))
    if lost:
        raise DataError(f"the variant has no row for item {lost[0][0]!r} ({len(lost)} missing).", fix=_AGAIN)
    for key in sorted(right):
        if left[key]["prompt_sha256"] != right[key]["prompt_sha256"]:
            raise DataError(f"the arms were asked different things under item {key[0]!r}.", fix=_AGAIN)
        if left[key]["target"] != right[key]["target"]:
            raise DataError(f"the arms were scored against different answers to item {key[0]!r}.", fix=_AGAIN)
        if not _judged_alike(left[key], right[key]):
            raise _judged_otherwise(key[0], left[key].get("scored_by"), right[key].get("scored_by"))
        if left[key]["cluster"] != right[key]["cluster"] or left[key]["slice"] != right[key]["slice"]:
            raise DataError(f"the arms have item {key[0]!r} in different clusters or slices.", fix=_AGAIN)
    ordered = sorted(left, key=lambda key: (left[key]["place"], key))
    return _Joined(
        [(left[key], right[key]) for key in ordered if key in right], [left[key] for key in ordered if key not in right]
    )


def _keyed(rows: list[Row], arm: str) -> dict[tuple[str, str], Row]:
    check_scores(rows, arm)
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (str(row["item_id"]), str(row["filter"]))
        if key in found:
            raise DataError(f"item {key[0]!r} has two rows.", where=arm, fix=_AGAIN)
        found[key] = row
    if not found:
        raise DataError("there are no rows.", where=arm)
    return found


def _judged_otherwise(item: str, one: str | None, other: str | None) -> DataError:
    """The error for an item that a judge of another version scored, or a command that was held in another sandbox."""
    if any((by or "").startswith(_COMMAND) for by in (one, other)):
        what, mend = "commands that were held otherwise", _HELD_ALIKE
    else:
        what, mend = "different judges", _JUDGED_ALIKE
    return DataError(f"the arms were scored by {what} under item {item!r}: {one}, and {other}.", fix=mend)


def _judged_alike(one: Row, other: Row) -> bool:
    """Whether the same had a say in two scores; whose item could not be scored at all, nobody had one."""
    if any(row.get("scored_by") is None and row.get("problem") is not None for row in (one, other)):
        return True
    return bool(one.get("scored_by") == other.get("scored_by"))


def _is_in(slice_name: str, row: Row) -> bool:
    return bool(row["slice"] == slice_name)


def _only(joined: _Joined, wanted: Callable[[Row], bool]) -> _Joined:
    return _Joined([pair for pair in joined.answered if wanted(pair[0])], [row for row in joined.left if wanted(row)])


def _slices(rows: list[Row]) -> list[str]:
    return sorted({str(row["slice"]) for row in rows if row["slice"] is not None})


def _pairs(joined: _Joined, column: str) -> Pairs:
    import numpy as np

    from quantize.stats import Pairs

    labels: dict[object, int] = {}

    def label(row: Row) -> int:
        # An item without a cluster is a cluster of its own.
        name = ("", row["place"], row["filter"]) if row["cluster"] is None else row["cluster"]
        return labels.setdefault(name, len(labels))

    answered = [label(one) for one, _ in joined.answered]
    rest = [label(row) for row in joined.left]
    scores = [[one[column], other[column]] for one, other in joined.answered]
    known = [row[column] for row in joined.left]
    before, after = np.array(scores, dtype=float).reshape(-1, 2).T
    return Pairs(
        differences=after - before,
        clusters=np.array(answered, dtype=np.int64),
        possible=1.0 - np.array(known, dtype=float),
        possible_clusters=np.array(rest, dtype=np.int64),
        binary=all(value in (0.0, 1.0) for value in (*known, *(v for pair in scores for v in pair))),
    )


def _difference(metric: str, chosen: list[tuple[Row, Row]], column: str, pairs: Pairs, early: float) -> Comparison:
    test = judge_pairs(pairs, _MARGIN, _ALPHA, early=early)
    return Comparison(
        metric=metric,
        unit="share",
        baseline=_mean(one[column] for one, _ in chosen),
        variant=_mean(other[column] for _, other in chosen),
        difference=test.difference,
        low=test.lower,
        high=test.upper,
        level=1 - sum(test.levels),
        n=test.n,
        method=test.method,
        extra={
            "items": test.total,
            "losses": test.losses,
            "gains": test.gains,
            "ties": test.n - test.losses - test.gains,
            "clusters": test.clusters if pairs.clustered else None,
            "mcnemar": test.mcnemar,
        },
    )


def _truncated(metric: str, joined: _Joined, early: float) -> list[Comparison]:
    """The difference of the shares of answers that were cut off: of those that were not, turned round."""
    cut = _only(joined, lambda row: row.get("truncated") is not None)
    ended = [[{**row, "ended": 1.0 - row["truncated"]} for row in pair] for pair in cut.answered]
    if not ended or any(other.get("truncated") is None for _, other in cut.answered):
        return []
    left = [{**row, "ended": 1.0 - row["truncated"]} for row in cut.left]
    pairs = [(one, other) for one, other in ended]
    whole = _difference(metric, pairs, "ended", _pairs(_Joined(pairs, left), "ended"), early)
    return [
        whole.model_copy(
            update={
                "baseline": 1.0 - whole.baseline,
                "variant": 1.0 - whole.variant,
                "difference": -whole.difference,
                "low": None if whole.high is None else -whole.high,
                "high": None if whole.low is None else -whole.low,
            }
        )
    ]


def _harmful(metric: str, pairs: list[tuple[Row, Row]], *, whole: bool) -> Comparison:
    """The share of items that became worse, with a 90 % interval: Wilson's, or a bootstrap over clusters."""
    lost: dict[object, float] = {}
    asked: dict[object, float] = {}
    for one, other in pairs:
        unit = _unit(one)
        lost[unit] = lost.get(unit, 0.0) + (other["score"] < one["score"])
        asked[unit] = asked.get(unit, 0.0) + 1
    if not any(lost.values()):
        # Resampled, none lost would be none ever lost; of so many units it is less than that.
        interval = wilson_interval(0, len(asked), 1 - 2 * _ALPHA)
    elif 1 < len(asked) < len(pairs):
        interval = document_bootstrap(list(lost.values()), list(asked.values()), 1 - 2 * _ALPHA)
    else:
        interval = wilson_interval(round(sum(lost.values())), len(pairs), 1 - 2 * _ALPHA)
    return _advisory(metric, "share of items", interval, 0.0, interval.estimate, len(pairs), whole=whole)


def _lengths(metric: str, pairs: list[tuple[Row, Row]], *, whole: bool) -> list[Comparison]:
    """The ratio of mean output lengths, variant to baseline, with a bootstrap interval over clusters."""
    before: dict[object, float] = {}
    after: dict[object, float] = {}
    for one, other in pairs:
        if one["tokens"] is not None:
            unit = _unit(one)
            before[unit] = before.get(unit, 0.0) + one["tokens"]
            after[unit] = after.get(unit, 0.0) + other["tokens"]
    sums: list[float] = []
    counts: list[float] = []
    waiting = 0.0
    for unit, tokens in before.items():
        waiting += after[unit]
        # Where the baseline said nothing there is no ratio, and what the variant says is still too much: it counts
        # with the next unit.
        if tokens > 0:
            sums.append(waiting)
            counts.append(tokens)
            waiting = 0.0
    if len(sums) < 2:
        return []
    sums[-1] += waiting
    ratio = document_bootstrap(sums, counts, 1 - 2 * _ALPHA)
    n = sum(one["tokens"] is not None for one, _ in pairs)
    return [_advisory(metric, "ratio", ratio, sum(before.values()) / n, sum(after.values()) / n, n, whole=whole)]


def _advisory(
    metric: str, unit: str, interval: Interval, baseline: float, variant: float, n: int, *, whole: bool
) -> Comparison:
    """A comparison with a fixed-sample interval, which a sample that was stopped early does not have."""
    return Comparison(
        metric=metric,
        unit=unit,
        baseline=baseline,
        variant=variant,
        difference=interval.estimate,
        low=interval.lower if whole else None,
        high=interval.upper if whole else None,
        level=interval.confidence if whole else None,
        n=n,
        method=interval.method,
        extra={},
    )


def _unit(row: Row) -> object:
    """What is independent of everything else: an item, or its cluster."""
    return row["place"] if row["cluster"] is None else row["cluster"]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
