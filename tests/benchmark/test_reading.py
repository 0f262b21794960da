"""Artifacts into measurements and comparisons, and what makes an artifact worthless."""

from __future__ import annotations

import math
import random

import pytest
from load_rows import failed, pair_rows, point, queue, record, write_artifact

from quantize.benchmark.config import Slo
from quantize.benchmark.reading import knee, read
from quantize.errors import DataError

RANDOM = random.Random(5)
NOISE = [RANDOM.gauss(0, 0.01) for _ in range(40)]


def slower(arm: str, block: int) -> float:
    """A variant that takes 1.2 times as long, in blocks that differ."""
    return 0.01 * math.exp(NOISE[block] + (math.log(1.2) + NOISE[20 + block] if arm == "variant" else 0.0))


def by_name(found):
    names = [getattr(each, "metric", getattr(each, "name", None)) for each in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


@pytest.fixture
def ten(tmp_path):
    return read(write_artifact(tmp_path / "a", pair_rows(10, slower), [record(block) for block in range(1, 11)]))


def test_the_ratio_of_two_arms_is_over_blocks_with_its_t_interval(ten):
    found = by_name(ten.comparisons())["load.tpot_p50/single"]
    logs = [math.log(1.2) + NOISE[20 + block] for block in range(1, 11)]
    mean = sum(logs) / 10
    reach = 1.8331129 * math.sqrt(sum((log - mean) ** 2 for log in logs) / 9) / math.sqrt(10)
    assert found.extra["logs"] == pytest.approx(logs)
    assert (found.difference, found.low, found.high) == pytest.approx(
        (math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))
    )
    assert (found.unit, found.n, found.level, found.method) == ("ratio", 10, 0.9, "t over blocks")
    assert found.extra["direction"] == "lower" and (found.extra["blocks"], found.extra["invalid"]) == (10, 0)
    assert found.extra["saturated"] == {"baseline": False, "variant": False}
    assert found.low < 1.2 < found.high and found.variant > found.baseline


def test_more_is_better_where_it_is(ten):
    found = by_name(ten.comparisons(Slo(e2e=1.0)))
    for name in ("output_tokens_per_second", "requests_per_second", "goodput"):
        assert found[f"load.{name}/single"].extra["direction"] == "higher"
        assert found[f"load.{name}/single"].difference == pytest.approx(1 / 1.2, rel=0.02)
    assert "load.goodput/single" not in by_name(ten.comparisons())


def test_an_arm_is_measured_over_all_requests_with_an_interval_over_blocks(ten):
    found = by_name(ten.measurements("baseline"))
    tpot = found["load.tpot_p50/single"]
    assert tpot.low < tpot.value < tpot.high and tpot.low < 0.01 < tpot.high
    assert (tpot.n, tpot.unit, tpot.direction) == (10, "seconds", "lower")
    assert found["load.requests_per_second/single"].direction == "higher"
    assert "load.tpot_p90/single" in found  # 160 requests, 16 beyond
    assert "load.tpot_p95/single" not in found
    assert found["load.memory_peak"].value == 1000 and found["load.memory_peak"].unit == "bytes"
    assert found["load.concurrency"].value == 4  # 100 tokens fit, the longest request has 25
    assert set(by_name(ten.measurements("variant"))) == set(found) and ten.measurements("other") == []


def test_memory_is_compared_over_blocks(tmp_path):
    blocks = [
        record(b, memory={"baseline": {"peak": 1000 + b, "kv_tokens": 100}, "variant": {"peak": 500, "kv_tokens": 220}})
        for b in range(1, 7)
    ]
    found = by_name(read(write_artifact(tmp_path / "a", pair_rows(6, slower), blocks)).comparisons())
    peak = found["load.memory_peak"]
    assert peak.extra["logs"] == pytest.approx([math.log(500 / (1000 + b)) for b in range(1, 7)])
    assert peak.low < peak.difference < peak.high < 0.5 and peak.extra["direction"] == "lower"
    assert found["load.concurrency"].difference == pytest.approx(2.0) and found["load.concurrency"].variant == 8
    assert "load.memory_kv" not in found  # not known of both


def test_failures_are_a_difference_of_shares_and_none_seen_does_not_mean_none(tmp_path, ten):
    none = by_name(ten.comparisons())["load.failures/single"]
    assert (none.difference, none.unit, none.extra["failed"]) == (0, "share", {"baseline": 0, "variant": 0})
    assert none.high == pytest.approx(1 - 0.05 ** (1 / 160)) and none.extra["requests"] == 160
    assert by_name(ten.measurements("variant"))["load.failures/single"].high > 0.01
    rows = pair_rows(6, slower)
    for each in rows:
        if each["arm"] == "variant" and each["place"] in (3, 4) and each["block"] != 2:
            each.update(failed(each["place"], each["scheduled"], each["end"], block=each["block"], arm="variant"))
    some = by_name(read(write_artifact(tmp_path / "b", rows, [record(b) for b in range(1, 7)])).comparisons())
    found = some["load.failures/single"]
    assert found.extra["differences"] == pytest.approx([0.125, 0, 0.125, 0.125, 0.125, 0.125])
    assert found.difference == pytest.approx(10 / 96) and found.extra["failed"] == {"baseline": 0, "variant": 10}
    assert found.low < found.difference < found.high and some["load.ttft_p50/single"].n == 6


def test_an_arm_that_answered_nothing_in_a_block_has_no_ratio_at_all(tmp_path):
    rows = pair_rows(6, slower)
    for each in rows:
        if each["arm"] == "variant" and each["block"] == 2:
            each.update(failed(each["place"], each["scheduled"], each["end"], block=2, arm="variant"))
    found = read(write_artifact(tmp_path / "a", rows, [record(b) for b in range(1, 7)]))
    for name in ("tpot_p50", "requests_per_second"):
        ratio = by_name(found.comparisons())[f"load.{name}/single"]
        assert (ratio.n, ratio.low, ratio.high, ratio.extra["logs"]) == (0, None, None, [])
    measured = by_name(found.measurements("variant"))
    assert measured["load.tpot_p50/single"].low is None
    rate = measured["load.requests_per_second/single"]
    assert 0 <= rate.low < 0.7 * rate.value  # the block in which nothing came is one of them


def test_an_invalid_block_is_on_record_and_in_no_number(tmp_path, ten):
    rows = pair_rows(10, slower)
    disturbed = [
        row | {"block": 4, "attempt": attempt, "tokens": [time + 50 for time in row["tokens"]], "end": row["end"] + 50}
        for row in rows
        if row["block"] == 4 and row["arm"] == "baseline"
        for attempt in (1, 2)
    ]
    blocks = [record(b) for b in range(1, 11) if b != 4]
    invalid = [record(4, attempt, valid=False, reasons=["x"]) for attempt in (1, 2)]
    found = read(write_artifact(tmp_path / "b", rows + disturbed, [*blocks, *invalid, record(4)]))
    assert len(found.all_rows) == len(found.rows) + 32 and len(found.blocks) == 12 and len(found.valid) == 10
    tpot = by_name(found.comparisons())["load.tpot_p50/single"]
    assert sorted(tpot.extra["logs"]) == sorted(by_name(ten.comparisons())["load.tpot_p50/single"].extra["logs"])
    assert (tpot.extra["blocks"], tpot.extra["invalid"]) == (12, 2)


def test_of_two_valid_attempts_the_last_counts(tmp_path):
    rows = pair_rows(6, slower)
    again = [row | {"attempt": 1, "end": row["end"] + 1.0} for row in rows if row["block"] == 1]
    found = read(write_artifact(tmp_path / "a", rows + again, [*(record(b) for b in range(1, 7)), record(1, 1)]))
    assert [each.attempt for each in found.valid] == [1, 0, 0, 0, 0, 0]
    assert len(found.rows) == len(rows) and {row["attempt"] for row in found.rows if row["block"] == 1} == {1}


def test_an_arm_is_saturated_where_most_of_its_blocks_are(tmp_path):
    rng = random.Random(11)
    rows = [
        row | {"block": block, "arm": arm, "load": "traffic"}
        for block in range(1, 7)
        for arm, used in (("baseline", 0.5), ("variant", 1.6))
        for row in queue(rng, 64, used)
    ]
    found = by_name(read(write_artifact(tmp_path / "a", rows, [record(b) for b in range(1, 7)])).comparisons())
    assert found["load.ttft_p50/traffic"].extra["saturated"] == {"baseline": False, "variant": True}
    assert found["load.ttft_p95/traffic"].n == 6


def test_the_baseline_against_itself_has_the_same_names(tmp_path, ten):
    rows = [row | {"arm": "again" if row["arm"] == "variant" else "baseline"} for row in pair_rows(10, slower)]
    blocks = [record(b, arms=("baseline", "again")) for b in range(1, 11)]
    found = read(write_artifact(tmp_path / "b", rows, blocks))
    assert found.arms == ["baseline", "again"]
    assert set(by_name(found.comparisons())) == set(by_name(ten.comparisons()))


def test_one_arm_alone_is_measured_and_not_compared(tmp_path):
    rows = [row for row in pair_rows(6, slower) if row["arm"] == "variant"]
    found = read(write_artifact(tmp_path / "a", rows, [record(b, arms=("variant",)) for b in range(1, 7)]))
    assert found.comparisons() == [] and by_name(found.measurements("variant"))["load.tpot_p50/single"].n == 6


def test_without_a_valid_block_nothing_has_an_interval_or_counts_a_block(tmp_path):
    blocks = [record(b, valid=False, reasons=["throttled"]) for b in range(1, 7)]
    found = read(write_artifact(tmp_path / "a", pair_rows(6, slower), blocks))
    assert len(found.all_rows) == 192
    compared, measured = found.comparisons(), [m for arm in found.arms for m in found.measurements(arm)]
    assert {c.metric for c in compared} >= {"load.tpot_p50/single", "load.failures/single"}
    assert {(c.n, c.low, c.high) for c in compared} == {(0, None, None)}
    assert {(m.n, m.low, m.high) for m in measured} == {(0, None, None)}


def test_a_percentile_that_each_block_has_is_compared_though_all_blocks_together_do_not_report_it(tmp_path):
    """Of 6 blocks of 24 each tells its own p95; 144 requests are too few for one that is reported."""
    rows = pair_rows(6, slower, requests=24)
    found = read(write_artifact(tmp_path / "a", rows, [record(b) for b in range(1, 7)]))
    compared = {c.metric: c for c in found.comparisons()}
    assert compared["load.ttft_p95/single"].n == 6
    assert "load.ttft_p95/single" not in {m.name for m in found.measurements("variant")}


def _without_arm(rows):
    return [row for row in rows if (row["block"], row["arm"]) != (3, "variant")]


def _twice(rows):
    return [*rows, next(row for row in rows if row["block"] == 3)]


def _changed(**changes):
    return lambda rows: [
        row | changes if (row["block"], row["arm"], row["place"]) == (3, "variant", 2) else row for row in rows
    ]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without_arm, "no rows of the arm 'variant'"),
        (_twice, "r00000 (baseline, load single, place 0) is there twice"),
        (_changed(request="r9"), "not sent the same requests"),
        (_changed(tokens=[5.0, 4.0], end=6.0), "do not follow each other"),
        (_changed(end=-1.0), "do not follow each other"),
        (_changed(end=float("nan")), "do not follow each other"),
        (_changed(scheduled=99.0), "do not follow each other"),
        (_changed(tokens=[]), "has no 'tokens'"),
        (_changed(end=None), "has no 'end'"),
        (_changed(**{"gen_ai.usage.output_tokens": 1}), "has one token"),
        (_changed(arm="other"), "an arm 'other'"),
    ],
)
def test_rows_that_cannot_be_are_refused_with_their_block(tmp_path, damage, says):
    rows = damage(pair_rows(6, slower))
    with pytest.raises(DataError) as error:
        read(write_artifact(tmp_path / "a", rows, [record(b) for b in range(1, 7)]))
    assert says in str(error.value) and "requests.parquet, block 3" in str(error.value)


def test_rows_and_records_must_be_of_the_same_blocks(tmp_path):
    rows = pair_rows(6, slower)
    with pytest.raises(DataError, match=r"requests.parquet, block 6: there are rows of this block and no record"):
        read(write_artifact(tmp_path / "a", rows, [record(b) for b in range(1, 6)]))
    with pytest.raises(DataError, match="block 7: there are no rows of the arm 'baseline'"):
        read(write_artifact(tmp_path / "b", rows, [record(b) for b in range(1, 8)]))
    with pytest.raises(DataError, match="on record twice"):
        read(write_artifact(tmp_path / "c", rows, [record(b) for b in (1, 1, 2, 3, 4, 5, 6)]))


def test_columns_are_those_of_the_contract(tmp_path):
    import pyarrow as pa

    rows, blocks = pair_rows(6, slower), [record(b) for b in range(1, 7)]
    for columns, says in (
        ({"extra": pa.int32()}, "no column 'extra'"),
        ({"end": None}, "'end' is missing"),
        ({"place": pa.int64()}, "'place' holds int64 and not int32"),
    ):
        with pytest.raises(DataError, match=f"requests.parquet.*{says}"):
            read(write_artifact(tmp_path / "a", rows, blocks, columns))


def test_files_that_are_missing_or_changed_are_named(tmp_path):
    for name in ("requests.parquet", "blocks.json", "curve.json", "fingerprint.json", "requests.jsonl"):
        artifact = write_artifact(tmp_path / name, pair_rows(6, slower), [record(b) for b in range(1, 7)])
        (artifact / name).write_text("[{}]\n")
        with pytest.raises(DataError, match=name):
            read(artifact)
        (artifact / name).unlink()
        with pytest.raises(DataError, match=name):
            read(artifact)


def test_the_knee_is_the_highest_rate_and_a_curve_that_still_rises_is_told():
    found = knee([point(4, 3.9), point(1, 1.0), point(2, 2.0), point(8, 3.7)])
    assert (found.rate, found.streams, found.warning) == (3.9, 4, None)
    rising = knee([point(1, 1.0), point(2, 2.0)])
    assert rising.rate == 2.0 and rising.warning is not None and "still rises" in rising.warning
    assert knee([point(1, 1.0), point(2, 1.09)]).warning is None
    assert "single point" in str(knee([point(1, 1.0)]).warning)


def test_a_knee_is_of_one_arm_that_completed_something():
    with pytest.raises(DataError, match="several arms"):
        knee([point(1, 1.0), point(1, 1.0, "variant")])
    for points in ([], [point(1, 0.0)]):
        with pytest.raises(DataError, match="completed no request"):
            knee(points)
