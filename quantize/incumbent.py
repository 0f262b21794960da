"""A candidate against what serves now: the same gates, on the items that both have answered.

Passing against the baseline is not enough to replace a champion: two variants may both lie within the margin, and the
new one at its lower end. So the rows of both are paired with each other and judged by the recipe's own gates. A recipe
may declare a trade instead: how much quality a candidate that is smaller by so much may cost.

The incumbent's rows come from the MLflow run that its verdict rests on. Where one of the two stopped early, only the
common items are compared, and as a sample that is still growing: where it ends was chosen by what was seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantize.claims import Forged, fetch_rows
from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS, Evidence, Spending
from quantize.gates import GateConfig, NonInferiority
from quantize.handed import Row
from quantize.metrics import read_rows
from quantize.protocols import Metric
from quantize.registry import Registry, VersionState
from quantize.verdict import Finding

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["Contest", "Rows", "rows_of_version"]

#: Half of alpha for what is certain before the end, half for the end: fixed, because which of the two there is depends
#: on where the arms stopped.
_EARLY = 0.5
_OTHER_SET = "Run its recipe on this eval set first, or decide by hand with `quantize promote`."


class Rows(Protocol):
    """The rows of one arm by eval."""

    def __call__(self, name: str) -> list[Row]:
        """Raises DataError where there are none that can be compared, RegistryError where nobody answers."""
        ...


def rows_of_version(registry: Registry, version: VersionState) -> Rows:
    """The rows that a version's verdict rests on, fetched from its MLflow run, each once.

    They are those, by the digests in the verdict: rows that were changed since may make a champion easy to replace.
    """
    run = version.tags.get("evidence_run", "")

    @cache
    def rows(name: str) -> list[Row]:
        if not run:
            raise DataError(f"version {version.version} was never measured.", fix=_OTHER_SET)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                found = read_rows(fetch_rows(registry, version, name, Path(scratch)))
        except Forged as error:  # one arm that cannot be believed is no reason not to decide about the others
            raise DataError(error.what, where=error.where, fix=error.fix) from error
        if not found or not set(ITEM_ROWS) <= set(found[0]):
            raise DataError("its rows were written by an older program.", fix=_OTHER_SET)
        return found

    return rows


class Contest:
    """Judges candidates against incumbents by a recipe's gates. `baseline` gives the baseline's rows, all of them."""

    def __init__(
        self, metrics: Sequence[Metric], gates: Sequence[GateConfig], baseline: Rows, trade: tuple[float, float] | None
    ) -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        self._gates = [gate for gate in gates if isinstance(gate, NonInferiority) and not gate.advisory]
        self._baseline = baseline
        self._trade = trade

    def judge(
        self,
        incumbent: VersionState,
        held: Rows,
        candidate: VersionState,
        found: Rows,
        *,
        attempt: int,
        rivals: int,
    ) -> list[Finding]:
        """One finding a gate: the candidate's difference from the incumbent, or why there is none.

        Judged at the candidate's attempt, and at a share of alpha where any of several `rivals` may be asked.
        """
        spending = Spending(attempt=attempt, early=_EARLY)
        traded = self._traded(incumbent, candidate)
        findings = []
        for gate in self._gates:
            allowed = gate.model_copy(update={"alpha": gate.alpha / rivals})
            if traded is not None and gate.metric.endswith(".accuracy"):
                allowed = allowed.model_copy(update={"margin": max(gate.margin, traded)})
            where = tuple(version.tags.get("measured_on", "") for version in (incumbent, candidate))
            findings.append(self._finding(allowed, incumbent, held, found, spending, where))
        return findings

    def _finding(
        self,
        gate: NonInferiority,
        incumbent: VersionState,
        held: Rows,
        found: Rows,
        spending: Spending,
        where: tuple[str, ...],
    ) -> Finding:
        metric = self._metrics[gate.metric.partition(".")[0]]
        try:
            if all(where) and len(set(where)) > 1:
                raise DataError(f"it was measured with {where[0]}, the candidate with {where[1]}.", fix=_OTHER_SET)
            baseline = self._baseline(metric.name)
            before, after = _common(held(metric.name), found(metric.name), baseline)
            pairs: Mapping[str, Pairs] = metric.pairs(before, after)
        except DataError as error:
            sentence = f"cannot be compared with version {incumbent.version} on {gate.metric}: {error}"
            return Finding(
                gate=f"{gate.metric} against version {incumbent.version}",
                kind=gate.kind,
                metric=gate.metric,
                outcome="inconclusive",
                sentence=sentence,
                numbers={},
            )
        finding = gate.judge(_evidence(spending), pairs)
        return finding.model_copy(
            update={
                "gate": f"{finding.gate}, against version {incumbent.version}",
                "sentence": f"against version {incumbent.version}: {finding.sentence}",
            }
        )

    def _traded(self, incumbent: VersionState, candidate: VersionState) -> float | None:
        """The margin that the recipe's trade allows, where the candidate is smaller by enough."""
        before, after = (float(version.tags.get("weight_bytes") or "nan") for version in (incumbent, candidate))
        if self._trade is None or not after <= (1 - self._trade[0]) * before:
            return None
        return self._trade[1]


def _common(incumbent: list[Row], candidate: list[Row], baseline: list[Row]) -> tuple[list[Row], list[Row]]:
    """Both arms' rows over the first items that both answered; the incumbent's completed by those that are left.

    Of those nothing is known, so they are counted as wrong: the candidate could still gain all of them. The two may
    have been looked at after different numbers of items: what was answered becomes one look. Raises DataError where
    one of them did not answer just these items.
    """
    end = 1 + min(max((row["place"] for row in rows), default=-1) for rows in (incumbent, candidate))
    places = {_key(row): row["place"] for row in baseline}
    asked = {key for key, place in places.items() if place < end}
    before, after = ([row for row in rows if row["place"] < end] for rows in (incumbent, candidate))
    for arm, rows in (("it", before), ("the candidate", after)):
        if {_key(row) for row in rows} != asked:
            raise DataError(f"{arm} has answered another eval set, or in another order.", fix=_OTHER_SET)
    rest = [
        {**row, "look": 1, "score": 0.0, "parsed": None if row["parsed"] is None else 0.0}
        for row in baseline
        if row["place"] >= end
    ]
    before, after = ([{**row, "look": 0, "place": places[_key(row)]} for row in rows] for rows in (before, after))
    return before + rest, after


def _key(row: Row) -> tuple[str, str]:
    return str(row["item_id"]), str(row["filter"])


def _evidence(spending: Spending) -> Evidence:
    """Evidence of nothing but how alpha is spent: pairs are all that these gates look at."""
    return Evidence(
        variant="",
        artifact_digest="",
        baseline_digest="",
        measurements=[],
        baseline_measurements=[],
        comparisons=[],
        hard_stops=[],
        spending=spending,
    )
