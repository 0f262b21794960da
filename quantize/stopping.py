"""When a candidate has answered enough: the gates are asked after each look.

    fail, futile   as soon as one blocking gate says so: nothing can save the variant any more
    pass           only when every blocking gate on the eval says so
    otherwise      the next look

A gate that has no bounded scores to look at (`limit`) never says anything before the end, so an eval with a blocking
one has no early pass. Advisory gates are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quantize.evidence import Spending
from quantize.handed import Row, Stop
from quantize.protocols import Gate, Metric

#: Of a large set the gates are asked only when it has grown by so much: each asking reads all rows again.
_GROWTH = 1.04

__all__ = ["blocking", "never", "stopping_rule"]


def blocking(gates: Sequence[Gate], metric: Metric) -> list[Gate]:
    """The gates on one eval that may stop a promotion."""
    return [gate for gate in gates if gate.metric.partition(".")[0] == metric.name and not gate.advisory]


def never(_rows: list[Row]) -> None:
    """The rule of the baseline, and of every eval that no gate decides on: answer everything."""


def stopping_rule(
    metric: Metric, gates: Sequence[Gate], baseline: list[Row], spending: Spending
) -> Callable[[list[Row]], Stop | None]:
    """What to ask with a candidate's rows so far. `baseline` are all rows of the baseline."""
    mine = blocking(gates, metric)
    if not mine or not spending.early:
        return never

    waiting = [gate.metric for gate in mine]
    asked = 0

    def stop(rows: list[Row]) -> Stop | None:
        nonlocal waiting, asked
        if len(rows) < _GROWTH * asked:
            return None
        asked = len(rows)
        pairs = metric.pairs(baseline, rows)
        said = [(gate.look(pairs.get(gate.metric), spending), gate.metric) for gate in mine]
        for word, name in said:
            if word in ("fail", "futile"):
                return word, name
        held_out = [name for word, name in said if word != "pass"]
        if held_out:
            waiting = held_out
            return None
        return "pass", waiting[-1]

    return stop
