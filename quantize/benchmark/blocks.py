"""The loop that measures two arms fairly: both in every block, in random order, each with a fresh server.

What drifts over an hour (a clock, a temperature, a neighbour) meets both arms of a block alike, and one server's luck
(where its memory lies, which cores it got) is drawn anew in every block: so the block is the sample, and the ratio of
its two arms the value. A block that something disturbed is kept on record and run again, after all others, when what
disturbed it has had time to end. Failed requests and a load that an arm cannot keep up with disturb nothing: they are
what the block found.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial

from quantize.benchmark.arms import Started, request_rows, send, started
from quantize.benchmark.blockfile import BlockRecord
from quantize.benchmark.config import LoadConfig, Open
from quantize.benchmark.curve import measure_curves
from quantize.benchmark.keeping import (
    CurvePart,
    LoadRecord,
    block_number,
    keep_part,
    kept_block,
    kept_curves,
    write_artifact,
)
from quantize.benchmark.pair_job import Allotted, PairJob, allot, arrivals
from quantize.benchmark.quantities import drifted
from quantize.benchmark.reading import Knee, knee
from quantize.benchmark.steps import Steps
from quantize.errors import ClockMoved
from quantize.handed import Row

__all__ = ["measure", "orders"]

_POLL_SECONDS = 2.0

_Block = tuple[BlockRecord, list[Row]]


def measure(job: PairJob) -> None:
    """Measure the curves, then every block, and write the artifact into `job.out`.

    Resumes after the last part that was kept. Raises QuantizeError where an arm does not start, has ended, or the
    sender fails: the stage cannot go on, and what was kept stays.
    """
    benchmark = job.benchmark
    curve_requests, load_requests = allot(benchmark, job.requests)
    each = len(job.arms) * len(benchmark.sent)
    steps = Steps(job.progress, len(job.curves) * len(benchmark.curve) + benchmark.blocks * each)
    kept = job.parts.find(0)
    if kept is None:
        _Company(job, steps).reasons()
        part, rows = measure_curves(job, curve_requests, steps)
        _knee(job, part)  # a server that completes nothing is an error, and no curve to keep
        kept = job.parts.keep(0, partial(keep_part, part=part, rows=rows))
    curves = kept_curves(kept)
    found = _knee(job, curves[0])
    rate = job.knee if found is None else found.rate
    steps.count = len(job.curves) * len(benchmark.curve)
    blocks = _blocks(job, load_requests, rate, steps)
    rates = {load.name: arrivals(load, rate, job.seed, 0).rate for load in benchmark.sent if isinstance(load, Open)}
    loads = LoadRecord(
        rates=rates,
        knee=rate,
        warning=found.warning if found is not None else None,
        left_out={arm.arm: arm.left_out for arm in curves[0].arms},
        reasons={arm.arm: arm.reasons for arm in curves[0].arms},
        ceilings=curves[0].ceilings,
    )
    write_artifact(job.out, curves, blocks, loads, job.fingerprint)


def _knee(job: PairJob, part: CurvePart) -> Knee | None:
    """What open loads take their share of, where it is not known yet. Raises DataError where nothing was completed."""
    shares = any(isinstance(load, Open) and load.rate is None for load in job.benchmark.sent)
    if not shares or job.knee is not None or not part.arms:
        return None
    return knee(part.arms[0].points)


def orders(arms: Sequence[str], blocks: int, seed: int) -> list[list[str]]:
    """The order of the arms in each block: in every two blocks both orders, which comes first drawn by `seed`.

    The first blocks are the same however many follow, so that more can be added.
    """
    found: list[list[str]] = []
    for pair in range((blocks + 1) // 2):
        both = [list(arms), list(reversed(arms))]
        random.Random(f"order of arms {seed} {pair}").shuffle(both)  # noqa: S311 (an order, not a secret)
        found += both
    return found[:blocks]


def _blocks(job: PairJob, requests: dict[str, Allotted], rate: float | None, steps: Steps) -> list[_Block]:
    """All blocks, then again those that were not valid, as long as reruns are left."""
    benchmark = job.benchmark
    each = len(job.arms) * len(benchmark.sent)
    found: list[_Block] = []
    pending = list(enumerate(orders(list(job.arms), benchmark.blocks, job.seed), start=1))
    attempts = dict.fromkeys(range(1, benchmark.blocks + 1), 0)
    left = benchmark.reruns
    company = _Company(job, steps)
    while pending:
        again: list[tuple[int, list[str]]] = []
        for block, order in pending:
            number = block_number(block, attempts[block])
            kept = job.parts.find(number)
            before = steps.count
            if kept is None:
                turn = _Turn(job, requests, rate, steps, block, attempts[block])
                record, rows = turn.run(order, company.reasons())
                kept = job.parts.keep(number, partial(keep_part, part=record, rows=rows))
            steps.pass_over(before + each - steps.count, f"block {block}/{benchmark.blocks}")
            found.append(kept_block(kept))
            if not found[-1][0].valid and left:
                left -= 1
                attempts[block] += 1
                again.append((block, order))
                steps.more(each)
        pending = again
    return found


class _Turn:
    """One attempt at a block."""

    def __init__(
        self, job: PairJob, requests: dict[str, Allotted], rate: float | None, steps: Steps, block: int, attempt: int
    ) -> None:
        self._job = job
        self._requests = requests
        self._rate = rate
        self._steps = steps
        self._block = block
        self._attempt = attempt
        self._rows: list[Row] = []
        self._reasons: list[str] = []
        again = f", attempt {attempt + 1}" if attempt else ""
        self._name = f"block {block}/{job.benchmark.blocks}{again}"

    def run(self, order: Sequence[str], company: Sequence[str]) -> _Block:
        """Both arms, one after the other. Where the first was disturbed, the second would be measured for nothing.

        So it is in a block that begins in `company`: what one arm did is kept, and shows nothing.
        """
        self._reasons += company
        starts: dict[str, float] = {}
        memory: dict[str, dict[str, int]] = {}
        facts: dict[str, dict[str, str]] = {}
        machine: dict[str, dict[str, float | str]] = {}
        for arm in order:
            self._steps.at(f"{self._name}, {arm}, starting")
            with started(self._job, arm) as up:
                starts[arm] = up.seconds
                machine[arm] = self._watched(arm, up)
                memory[arm] = up.memory()
                facts[arm] = up.facts()
            if self._reasons:
                break
        record = BlockRecord(
            block=self._block,
            attempt=self._attempt,
            order=list(order),
            valid=not self._reasons,
            reasons=self._reasons,
            starts=starts,
            memory=memory,
            facts=facts,
            machine=machine,
        )
        return record, self._rows

    def _watched(self, arm: str, up: Started) -> dict[str, float | str]:
        """Send an arm all loads while the machine is watched; what was seen of it."""
        watch = self._job.watch(up.processes)
        watch.begin()
        try:
            for load in self._job.benchmark.sent:
                self._send(arm, up, load)
        except ClockMoved as error:
            self._reasons.append(f"{arm}: {error.what}")
        finally:
            watched = watch.end()
        self._reasons += [f"{arm}: {reason}" for reason in watched.reasons]
        return dict(watched.facts)

    def _send(self, arm: str, up: Started, load: LoadConfig) -> None:
        """Send an arm one load, and see whether it ran evenly."""
        job = self._job
        with self._steps.step(f"{self._name}, {arm}, load {load.name}"):
            how = arrivals(load, self._rate, job.seed, self._block)
            sent = send(job, up, how, self._requests[load.name])
        rows = request_rows(self._block, self._attempt, arm, load.name, sent)
        self._rows += rows
        if not isinstance(load, Open):
            drift = drifted([row for row in rows if not row["warmup"]], job.benchmark.drift)
            if drift is not None:
                self._reasons.append(f"{arm}, load {load.name}: {drift}")


class _Company:
    """Who else uses the device when a block is about to begin.

    In a container a GPU's processes cannot be told apart, and what was there when a watch began is taken for ours: so
    it is asked before a server of ours is up. A model in this process stays on the device, and it is asked once.
    """

    def __init__(self, job: PairJob, steps: Steps) -> None:
        self._job = job
        self._steps = steps
        self._known: list[str] | None = None

    def reasons(self) -> list[str]:
        """Wait for whoever else uses the device, a while. Who stays makes the block invalid."""
        if self._known is None or self._job.benchmark.traffic.served:
            self._known = self._waited()
        return list(self._known)

    def _waited(self) -> list[str]:
        deadline = time.monotonic() + self._job.patience
        while (users := list(self._job.alone())) and time.monotonic() < deadline:
            self._steps.at(f"waiting for the device: {users[0]}")
            time.sleep(_POLL_SECONDS)
        return users
