"""The loop over blocks: fair to both arms, resumed where it was, and honest about what was disturbed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from load_rows import record as block_record
from quick_pairs import Folder, Watch, frozen, measured, pair, quick, tiny

from quantize.benchmark.arms import request_rows
from quantize.benchmark.blockfile import read_blocks, read_curve
from quantize.benchmark.blocks import measure, orders
from quantize.benchmark.config import Concurrent, Open, Synchronous
from quantize.benchmark.pair_job import allot, arrivals, needed
from quantize.benchmark.reading import read
from quantize.benchmark.rowfile import check_rows
from quantize.benchmark.rows import REQUEST_ROWS
from quantize.errors import ClockMoved, EngineLost, QuantizeError
from quantize.served import Request, Sent

LOADS = [Synchronous(name="single", requests=4), Concurrent(name="two", streams=2, requests=4)]


def rows_of(out: Path, name: str = "requests.parquet") -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(out / name).to_pylist()


class Disturbed:
    """Watches that see something at the given turns (arms, in the order measured, from 0)."""

    def __init__(self, *turns: int) -> None:
        self.turns = turns
        self.count = 0

    def __call__(self, own):
        reasons = ["somebody else used the CPU"] if self.count in self.turns else []
        self.count += 1
        return Watch(own, reasons)


@pytest.fixture(scope="module", autouse=True)
def _quick_to_close():
    with frozen():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A stage of two arms that nothing disturbed, the curve of the first in it: (artifact, what it told)."""
    told = []
    out = measured(
        tmp_path_factory.mktemp("finished"),
        quick(loads=LOADS, curve=[1, 2]),
        curves=("baseline",),
        progress=lambda *step: told.append(step),
    )
    return out, told


def test_the_artifact_is_complete(finished):
    out, _ = finished
    assert {path.name for path in out.iterdir()} >= {
        "requests.jsonl", "requests.parquet", "blocks.json", "curve.json", "curve.parquet", "fingerprint.json",
        "loads.json",
    }  # fmt: skip
    assert list(rows_of(out)[0]) == list(REQUEST_ROWS)
    blocks = read_blocks(out)
    assert [record.block for record in blocks] == [1, 2, 3, 4, 5, 6]
    for record in blocks:
        assert record.valid and record.attempt == 0 and record.reasons == []
        assert set(record.starts) == set(record.memory) == set(record.facts) == set(record.machine) == {*record.order}
        assert all(seconds > 0 for seconds in record.starts.values())
        assert all(memory["weights"] > 0 for memory in record.memory.values())
    assert [(point.arm, point.streams, point.requests) for point in read_curve(out)] == [
        ("baseline", 1, 4),
        ("baseline", 2, 8),  # four to each under way
    ]
    assert all(point.requests_per_second > 0 and point.failures == 0 for point in read_curve(out))
    assert json.loads((out / "fingerprint.json").read_text(encoding="utf-8")) == {"cpu": "this one"}


def test_both_arms_get_the_same_requests_in_the_same_order(finished):
    rows = rows_of(finished[0])
    for block in range(1, 7):
        sent = {
            arm: [
                (r["load"], r["place"], r["request"], r["warmup"])
                for r in rows
                if (r["block"], r["arm"]) == (block, arm)
            ]
            for arm in ("baseline", "variant")
        }
        assert sent["baseline"] == sent["variant"]
        # Four of each load, and before them one, or a batch of as many as it has streams.
        assert Counter(warmup for *_, warmup in sent["baseline"]) == {True: 1 + 2, False: 4 + 4}


def test_no_server_gets_a_request_twice(finished):
    rows = rows_of(finished[0])
    sent = Counter((r["block"], r["arm"], r["request"]) for r in rows)
    sent += Counter((r["block"], r["arm"], r["request"]) for r in rows_of(finished[0], "curve.parquet"))
    assert set(sent.values()) == {1}


def test_every_answer_has_the_length_that_was_asked_for_and_times_that_rise(finished):
    for row in rows_of(finished[0]):
        assert row["error.type"] is None
        assert row["gen_ai.usage.output_tokens"] == len(row["tokens"]) == 4
        times = [row["scheduled"], row["dispatched"], *row["tokens"], row["end"]]
        assert times == sorted(times)


def test_the_progress_ends_where_it_said_it_would_and_never_goes_back(finished):
    told = finished[1]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2] == 2 + 6 * 2 * 2
    assert any(what == "block 3/6, variant, load two" for what, _, _ in told)


@pytest.mark.parametrize("blocks", [6, 7, 10])
@pytest.mark.parametrize("seed", range(20))
def test_either_arm_comes_first_equally_often(blocks, seed):
    found = orders(["baseline", "variant"], blocks, seed)
    first = Counter(order[0] for order in found)
    assert max(first.values()) - min(first.values()) == blocks % 2
    assert found == orders(["baseline", "variant"], blocks, seed)
    assert found == orders(["baseline", "variant"], blocks + 5, seed)[:blocks]  # blocks can be added


def test_which_arm_comes_first_depends_on_the_seed():
    assert len({json.dumps(orders(["baseline", "variant"], 10, seed)) for seed in range(20)}) > 10
    assert Counter(orders(["a", "b"], 7, seed)[3][0] for seed in range(200))["a"] == pytest.approx(100, abs=40)


def test_the_arrivals_of_a_block_are_the_same_for_both_arms_and_others_in_the_next():
    load = Open(kind="poisson", name="traffic", of_knee=0.5)
    first = arrivals(load, 8.0, seed=0, block=1)
    assert first.rate == 4.0
    assert first == arrivals(load, 8.0, seed=0, block=1)
    assert len({arrivals(load, 8.0, seed, block).seed for seed in (0, 1) for block in range(1, 7)}) == 12
    with pytest.raises(QuantizeError, match="the rate of the load 'traffic'"):
        arrivals(load, None, seed=0, block=1)


def test_the_curve_and_the_loads_share_no_request():
    benchmark = quick(loads=LOADS, curve=[1, 2], warmup=2)
    requests = [Request(f"r{n}", f"prompt {n}", 3, 4) for n in range(needed(benchmark))]
    curve, loads = allot(benchmark, requests)
    given = [one.id for part in (*curve.values(), *loads.values()) for one in (*part.warmup, *part.counted)]
    assert given == [request.id for request in requests]
    with pytest.raises(QuantizeError, match=f"needs {len(requests)} requests and was given {len(requests) - 1}"):
        allot(benchmark, requests[1:])
    with pytest.raises(QuantizeError, match="the same prompt"):
        allot(benchmark, [*requests[1:], Request("other", requests[5].prompt, 3, 4)])


def test_a_disturbed_block_is_run_again_after_the_others_and_stays_on_record(tmp_path):
    out = measured(tmp_path, quick(), watch=Disturbed(2))
    records = read_blocks(out)
    assert [(record.block, record.attempt, record.valid) for record in records] == [
        (1, 0, True), (2, 0, False), (3, 0, True), (4, 0, True), (5, 0, True), (6, 0, True), (2, 1, True),
    ]  # fmt: skip
    disturbed = records[1]
    assert disturbed.reasons == [f"{disturbed.order[0]}: somebody else used the CPU"]
    assert records[-1].order == disturbed.order
    rows = rows_of(out)
    assert {row["arm"] for row in rows if (row["block"], row["attempt"]) == (2, 0)} == {disturbed.order[0]}
    assert {row["arm"] for row in rows if (row["block"], row["attempt"]) == (2, 1)} == {"baseline", "variant"}


def test_reruns_run_out_and_leave_fewer_valid_blocks(tmp_path):
    out = measured(tmp_path, quick(reruns=3), watch=Disturbed(*range(100)))
    records = read_blocks(out)
    assert len(records) == 6 + 3
    assert not any(record.valid for record in records)
    assert [(record.block, record.attempt) for record in records[6:]] == [(1, 1), (2, 1), (3, 1)]


def test_a_moved_clock_makes_the_block_invalid(tmp_path):
    class Stepping:
        """The real sender, but for the clock, which is moved at the third load."""

        def __init__(self, sender) -> None:
            self.sender = sender
            self.count = 0

        def send(self, *arguments):
            self.count += 1
            if self.count == 3:
                raise ClockMoved("the clock was moved by 2.0 s while measuring.")
            return self.sender.send(*arguments)

    job = pair(tmp_path, quick(warmup=0))
    out = measured(tmp_path, quick(warmup=0), sender=Stepping(job.sender))
    records = read_blocks(out)
    assert [record.valid for record in records] == [True, False, True, True, True, True, True]
    assert records[1].reasons == [f"{records[1].order[0]}: the clock was moved by 2.0 s while measuring."]


def test_an_arm_that_becomes_slower_while_it_is_measured_makes_the_block_invalid(tmp_path):
    @contextmanager
    def slowing():
        with tiny() as session:
            passes = 0

            def wait(*_):
                nonlocal passes
                passes += 1
                time.sleep(0.02 if passes > 12 else 0.004)

            session.model.register_forward_hook(wait)
            yield session

    benchmark = quick(drift=0.9, warmup=0, reruns=0, loads=[Synchronous(name="single", requests=6)])
    out = measured(tmp_path, benchmark, {"variant": slowing})
    for record in read_blocks(out):
        assert not record.valid
        assert record.reasons[0].startswith("variant, load single: the second half's median TPOT")


def test_failed_requests_are_an_outcome_and_no_disturbance(tmp_path):
    class Failing:
        """The real sender, whose every second answer is lost."""

        def __init__(self, sender) -> None:
            self.sender = sender

        def send(self, *arguments):
            from dataclasses import replace

            sent = self.sender.send(*arguments)
            return [
                replace(one, tokens=(), end=None, output_tokens=None, error="connection") if n % 2 else one
                for n, one in enumerate(sent)
            ]

    job = pair(tmp_path, quick())
    out = measured(tmp_path, quick(), sender=Failing(job.sender))
    assert all(record.valid for record in read_blocks(out))
    assert len(read_blocks(out)) == 6
    assert Counter(row["error.type"] for row in rows_of(out) if not row["warmup"]) == {None: 24, "connection": 24}


def test_a_sender_that_loses_a_request_is_an_error(tmp_path):
    job = pair(tmp_path, quick())

    class Losing:
        def send(self, *arguments):
            return job.sender.send(*arguments)[:-1]

    with pytest.raises(QuantizeError, match="accounted for 0, in 0 answers"):
        measure(pair(tmp_path, quick(), sender=Losing()))


def test_an_arm_that_does_not_start_ends_the_stage_with_its_reason(tmp_path):
    @contextmanager
    def never_ready():
        raise EngineLost("the server was not ready within 60 seconds.\nlast line of its log", where="server.log")
        yield

    with pytest.raises(EngineLost, match=r"(?s)not ready within 60 seconds.*last line of its log"):
        measured(tmp_path, quick(), {"baseline": tiny, "variant": never_ready})


def test_one_arm_alone_is_measured_too(tmp_path):
    out = measured(tmp_path, quick(), {"variant": tiny}, curves=("variant",))
    assert {row["arm"] for row in rows_of(out)} == {"variant"}
    assert [record.order for record in read_blocks(out)] == [["variant"]] * 6
    assert [point.arm for point in read_curve(out)] == ["variant"]


def test_who_uses_the_device_is_waited_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("quantize.benchmark.blocks._POLL_SECONDS", 0.01)
    answers = [["process 7 uses the GPU"], ["process 7 uses the GPU"], [], []]
    told = []
    measured(
        tmp_path,
        quick(),
        curves=("baseline",),
        alone=lambda: answers.pop(0),
        progress=lambda what, done, total: told.append(what),
    )
    assert told.count("waiting for the device: process 7 uses the GPU") == 2
    assert answers == []


def test_blocks_that_begin_beside_somebody_else_are_invalid_and_show_nothing(tmp_path):
    """A model in this process stays on a GPU, where a container cannot tell it from others: it is asked before."""
    asked = []
    out = measured(
        tmp_path, quick(reruns=1), curves=(), patience=0.0, alone=lambda: asked.append(1) or ["process 7 uses the GPU"]
    )
    records = read_blocks(out)
    assert {(record.valid, *record.reasons) for record in records} == {(False, "process 7 uses the GPU")}
    assert len(records) == 7
    assert len(asked) == 2  # before the curve, which is none here, and before the first block
    compared = {c.metric: c for c in read(out).comparisons()}
    assert (compared["load.tpot_p50/single"].n, compared["load.tpot_p50/single"].low) == (0, None)


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [
        ({"tokens": (0.5, 0.4)}, "impossible times"),
        ({"dispatched": 0.9}, "impossible times"),
        ({"end": math.nan}, "impossible times"),
        ({"tokens": ()}, "empty"),
        ({"error": "timeout", "tokens": (), "end": 3.0}, "timeout"),
        ({}, None),
    ],
)
def test_a_request_whose_times_cannot_be_has_failed_and_ends_no_benchmark(spoilt, error):
    whole = Sent("r0", 0.0, 0.001, (0.1, 0.2), 0.25, 12, 2)
    (row,) = request_rows(1, 0, "variant", "single", [(False, replace(whole, **spoilt))])
    assert row["error.type"] == error
    if error == "impossible times":
        assert (row["dispatched"], row["tokens"], row["end"]) == (None, [], None)
    check_rows([row], [block_record(1, valid=False)], Path("rows"))


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from quick_pairs import measured, quick, tiny
from quantize.artifact import Provenance
from quantize.parts import StoreParts
from quantize.store import Store

folder = Path(sys.argv[1])
starts = 0

def counting():
    global starts
    starts += 1
    if starts == 3:  # the second block has begun: die once it is kept
        os.environ["QUANTIZE_FAULT"] = "worker.look_kept"
    return tiny()

provenance = Provenance(created="now", host="here", seconds=0, peak_memory_bytes=0, python="3", libraries={})
parts = StoreParts(Store(folder / "store"), "base", "benchmark", lambda seconds: provenance)
measured(folder, quick(), {"baseline": counting, "variant": counting}, parts=parts)
"""


def test_a_killed_stage_goes_on_after_its_last_block(tmp_path):
    from quantize.artifact import Provenance
    from quantize.parts import StoreParts
    from quantize.store import Store

    here = Path(__file__).parent
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path, here], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    starts = Counter()

    def counting(arm):
        def start():
            starts[arm] += 1
            return tiny()

        return start

    provenance = Provenance(created="now", host="here", seconds=0, peak_memory_bytes=0, python="3", libraries={})
    parts = StoreParts(Store(tmp_path / "store"), "base", "benchmark", lambda seconds: provenance)
    kept = {number: parts.find(number) for number in range(10_000) if parts.find(number)}
    assert list(kept) == [0, 1001, 2001]
    before = [row for number in (1001, 2001) for row in rows_of(kept[number], "rows.parquet")]
    job = pair(tmp_path, quick(), {name: counting(name) for name in ("baseline", "variant")}, parts=parts)
    measure(job)
    assert starts == {"baseline": 4, "variant": 4}
    assert rows_of(job.out)[: len(before)] == before
    assert [record.block for record in read_blocks(job.out)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_stage_put_together_again_has_the_same_bytes(tmp_path):
    out = measured(tmp_path, quick(), watch=Disturbed(2), curves=("baseline",))
    first = {path.name: path.read_bytes() for path in out.iterdir()}

    def never():
        pytest.fail("everything was measured")

    measured(
        tmp_path, quick(), {"baseline": never, "variant": never}, curves=("baseline",), parts=Folder(tmp_path / "parts")
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
