"""Answering items look by look, in an order fixed before the run, keeping every look as it comes.

All arms of an eval answer in one seeded order, so that a candidate that is stopped has answered the same first items as
the baseline, and a run that was killed goes on where it was. Items of one cluster stay together: a look ends with a
whole cluster.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS, ArmMeasurements, Progressed
from quantize.handed import EvaluateJob, Row, Session, Stop
from quantize.metrics._rows import item_measurements, read_rows, write_rows

__all__ = ["Answered", "answer_in_looks", "arm_measurements", "order_in_looks"]

_STOPS = "stops.json"
#: What a row need not say.
_UNSAID: Row = {"truncated": None, "scored_by": None, "problem": None}

#: Rows of items, in any order, and sentences about what makes them worthless.
_Answers = tuple[list[Row], list[str]]

#: The answers to the items with these numbers, in a look.
Answer = Callable[[Session, list[int], int], _Answers]


@dataclass(frozen=True, slots=True)
class Answered:
    """All rows of an arm, what makes them worthless if anything does, and how far it came."""

    rows: list[Row]
    hard_stops: list[str]
    progressed: Progressed


def order_in_looks(clusters: Sequence[str | None], seed: int, look: int) -> list[list[int]]:
    """Numbers of items, by look. `clusters` names each item's cluster; None is a cluster of its own."""
    members: dict[object, list[int]] = {}
    for number, cluster in enumerate(clusters):
        members.setdefault(number if cluster is None else cluster, []).append(number)
    groups = list(members.values())
    # Python's generator gives the same order on every platform and in every version since 3.2.
    random.Random(seed).shuffle(groups)  # noqa: S311 (an order, not a secret)
    looks: list[list[int]] = [[]]
    for group in groups:
        if len(looks[-1]) >= look:
            looks.append([])
        looks[-1] += group
    return looks


def answer_in_looks(
    ids: Sequence[str],
    clusters: Sequence[str | None],
    job: EvaluateJob,
    answer: Answer,
    worthless: Callable[[list[Row], int], list[str]] = lambda _rows, _of: [],
) -> Answered:
    """Answer items until all are answered, `job.stop` says enough, or what comes out is worthless.

    `worthless` is asked after each look with all rows so far, and the number of items that they count as a share of:
    all of them, and in the end those answered. Its sentences end the eval.

    `answer` is given the session, the numbers of a look's items and the look's number; rows lack `place` and `look`,
    which are added here. An item without a row, or with two, is a hard stop.
    """
    looks = order_in_looks(clusters, job.seed, job.look)
    rows: list[Row] = []
    stops: list[str] = []
    reason: Stop | None = None
    done = place = 0
    for number, items in enumerate(looks):
        places = {ids[item]: place + offset for offset, item in enumerate(items)}
        place += len(items)
        kept = job.parts.find(number)
        if kept is None:
            session = job.session()
            # Loading told of itself: from here on it is items again, and a bar over all of them.
            job.progress("items", min(places.values()), len(ids))
            kept = _keep(job, number, places, partial(answer, session, items))
        found = read_rows(kept)
        if not {row["item_id"] for row in found} <= set(places):
            raise DataError(
                "this look holds answers to other items: the eval's data has changed under the same name.",
                where=str(kept),
                fix=f"Remove {kept.parent} and run again.",
            )
        rows += found
        stops += json.loads((kept / _STOPS).read_text(encoding="utf-8"))
        done += 1
        job.progress("items", place, len(ids))
        stops += worthless(rows, len(ids))
        if stops:
            break
        reason = job.stop(rows) if place < len(ids) else None
        if reason is not None:
            break
    stops += [] if stops else worthless(rows, place)
    return Answered(
        rows,
        stops[:5],
        Progressed(
            items=len(ids),
            answered=place,
            looks=done,
            stopped=reason[0] if reason is not None else None,
            gate=reason[1] if reason is not None else None,
        ),
    )


def arm_measurements(name: str, job: EvaluateJob, answered: Answered, dataset_digest: str) -> ArmMeasurements:
    """Write the rows of an arm into `job.out`, and say what they amount to."""
    write_rows(answered.rows, ITEM_ROWS, job.out)
    return ArmMeasurements(
        eval=name,
        arm=job.arm,
        dataset_digest=dataset_digest,
        engine=job.engine,
        device=job.device,
        measurements=item_measurements(name, answered.rows),
        hard_stops=answered.hard_stops,
        progressed=answered.progressed,
    )


def _keep(job: EvaluateJob, number: int, places: dict[str, int], answer: Callable[[int], _Answers]) -> Path:
    """Answer a look and keep it; `places` are its items' by id."""
    found, stops = answer(number)

    def write(directory: Path) -> None:
        rows = [{**_UNSAID, "place": places[row["item_id"]], "look": number, **row} for row in found]
        write_rows(sorted(rows, key=lambda row: (row["place"], row["filter"])), ITEM_ROWS, directory)
        answered = [row["item_id"] for row in found]
        lost = sorted(set(places) - set(answered))
        twice = sorted({name for name in answered if answered.count(name) > 1})
        sentences = [f"item {name!r} was answered twice" for name in twice[:1]]
        sentences += [f"item {name!r} has no answer ({len(lost)} have none)" for name in lost[:1]]
        (directory / _STOPS).write_text(json.dumps(stops[:5] + sentences), encoding="utf-8")

    return job.parts.keep(number, write)
