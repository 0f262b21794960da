"""The curve: closed loops of more and more requests under way, on one server, before any block.

The baseline's shows the highest rate that it completes, the knee, of which open loads take their share in both arms. It
is no sample of a comparison, so it is not repeated; what disturbed it is written down beside it.
"""

from __future__ import annotations

from quantize.benchmark.arms import request_rows, send, started
from quantize.benchmark.blockfile import CurvePoint
from quantize.benchmark.keeping import ArmCurve, CurvePart
from quantize.benchmark.pair_job import Allotted, PairJob
from quantize.benchmark.quantities import curve_point
from quantize.benchmark.steps import Steps
from quantize.errors import ClockMoved
from quantize.handed import Row
from quantize.served import Arrivals

__all__ = ["measure_curves"]

#: Blocks count from 1; the curve's rows have this number.
_BLOCK = 0

#: Points with more than this many times as many requests under way as the server answers at a time are left out: what
#: is more only waits longer.
_TIMES_SLOTS = 2

#: How often a curve is tried that something disturbed.
_TRIES = 2


def measure_curves(job: PairJob, allotted: dict[int, Allotted], steps: Steps) -> tuple[CurvePart, list[Row]]:
    """The curve of every arm in `job.curves`, and the rows behind it, each arm on a fresh server.

    A curve that something disturbed is measured again, and kept with the reasons where that does not help: every load's
    rate and every capacity follow from it. Raises ClockMoved where the clock is moved in every try.
    """
    arms: list[ArmCurve] = []
    rows: list[Row] = []
    ceilings: dict[str, float] = {}
    for arm in job.curves:
        for left in reversed(range(_TRIES)):
            try:
                curve, found = _measure(job, arm, allotted, steps, ceilings)
            except ClockMoved:
                if not left:
                    raise
            else:
                if not curve.reasons:
                    break
            if left:
                steps.more(len(allotted))
        arms.append(curve)
        rows += found
    return CurvePart(arms=arms, ceilings=ceilings), rows


def _measure(
    job: PairJob, arm: str, allotted: dict[int, Allotted], steps: Steps, ceilings: dict[str, float]
) -> tuple[ArmCurve, list[Row]]:
    """One arm's points, from the fewest requests under way to the most that make sense. Fills `ceilings`, once."""
    points: list[CurvePoint] = []
    rows: list[Row] = []
    steps.at(f"curve, {arm}, starting")
    with started(job, arm) as up:
        most = max(_TIMES_SLOTS * up.slots, min(allotted)) if up.slots is not None else max(allotted)
        if not ceilings and not job.benchmark.traffic.served:
            steps.at("what the device can do at most")
            ceilings.update(up.ceilings(job))
        watch = job.watch(up.processes)
        watch.begin()
        try:
            for streams, what in allotted.items():
                if streams > most:
                    continue
                with steps.step(f"curve, {arm}, {streams} requests at once"):
                    sent = send(job, up, Arrivals("concurrent", streams=streams), what)
                found = request_rows(_BLOCK, 0, arm, f"curve-{streams}", sent)
                points.append(curve_point(arm, streams, found))
                rows += found
        finally:
            watched = watch.end()
    left_out = [streams for streams in allotted if streams > most]
    if left_out:
        steps.pass_over(len(left_out), f"curve, {arm}: {up.slots} requests are answered at a time, {left_out} left out")
    return ArmCurve(arm=arm, points=points, left_out=left_out, reasons=list(watched.reasons)), rows
