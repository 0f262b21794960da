"""The report of a benchmark: what is smaller but slower is seen at once, and how it was measured stands below."""

from __future__ import annotations

import pytest
from report_load import TPOT, TTFT, block, closed, failed, judged, keep, loaded, ratio, recipe, run_of, write_run
from report_runs import drawn, record

from quantize.report import Summary, markdown, read_benchmarks, summarise
from quantize.run import RunRecord
from quantize.store import Store

pytest_plugins = ["report_fixtures"]

TIMES = "\N{MULTIPLICATION SIGN}"
SLOWER = [ratio(TPOT, 0.0241, 1.31, 1.27, 1.35), ratio(TTFT, 0.512, 1.0, 0.9, 1.1), failed(0.004)]
FASTER = [ratio(TPOT, 0.0241, 0.78, 0.74, 0.82), ratio(TTFT, 0.512, 1.0, 0.9, 1.1)]
UNSURE = [ratio(TPOT, 0.0241, 1.02, 0.97, 1.07)]
MIXED = [ratio(TPOT, 0.0241, 0.78, 0.74, 0.82), ratio(TTFT, 0.512, 1.4, 1.2, 1.6)]
LOADS = [
    {"kind": "synchronous", "name": "single", "requests": 10},
    {"kind": "poisson", "name": "traffic", "of_knee": 0.7, "requests": 24},
    {"kind": "concurrent", "name": "eight", "streams": 8, "requests": 20},
    {"kind": "constant", "name": "steady", "rate": 2.5, "requests": 20},
]
DISTURBED = "variant: others used 7.3 % of the CPU"


def row_of(summary: Summary, name: str) -> str:
    return " ".join(cell for row in summary.table.rows if row[0] == name for cell in row).replace("\n", " ")


@pytest.fixture
def measured(tmp_path) -> tuple[RunRecord, Summary]:
    """A run whose artifacts are in the store: twelve blocks, of which the second was disturbed twice."""
    store = Store(tmp_path / "store")
    blocks = [
        block(1, kernel="marlin"),
        block(2, [f"{DISTURBED}."]),
        block(3, kernel="marlin"),
        block(2, ["variant: others used 11.25 % of the CPU."], attempt=1),
    ]
    curve = [closed("variant", 1, 20, 0.1, 0.01), closed("variant", 2, 20, 0.1, 0.01)]
    own = [closed("baseline", 1, 20, 0.1, 0.02), closed("baseline", 2, 20, 0.3, 0.04)]
    stages = {"benchmark": keep(store, "variant", curve, blocks)}
    run = run_of(loaded("int8", SLOWER, stages=stages), benchmark=keep(store, "baseline", own, [block(1)]))
    folder = write_run(store.root, run, recipe({"loads": LOADS}))
    return run, summarise(run, {}, read_benchmarks(run, folder, store))


def test_what_is_smaller_but_slower_is_said_in_its_row_and_below_the_table(monkeypatch):
    run = record(loaded("q4", FASTER), loaded("w8a8-vllm", SLOWER))
    summary = summarise(run)
    assert f"smaller but slower {TIMES}1.31 (1.27, 1.35)" in row_of(summary, "w8a8-vllm")
    assert f"smaller and faster {TIMES}0.78" in row_of(summary, "q4")
    assert summary.headlines[0] == (
        "w8a8-vllm is smaller but slower: 0.41 of the bytes, TPOT p50 at single 1.31 times (1.27 to 1.35), "
        "TTFT p95 at traffic 1.00 times (0.90 to 1.10)."
    )
    assert summary.headlines[1].startswith("q4 is smaller and faster: 0.41 of the bytes, TPOT p50 at single 0.78 times")
    for told in (drawn(run, monkeypatch, 100), markdown(summary)):
        flat = " ".join(told.replace("**", "").split())
        assert flat.index(summary.headlines[0]) < flat.index(summary.headlines[1]) < flat.index("limit said so.")


@pytest.mark.parametrize(
    ("comparisons", "size", "word", "said"),
    [
        (UNSURE, 0.41, "smaller speed unclear", "is smaller; that it is faster or slower is not shown: 0.41"),
        (MIXED, 0.41, "smaller mixed speed", "is smaller, and faster in one time but slower in another: 0.41"),
        (FASTER, 1.2, "larger and faster", "is larger but faster: 1.20"),
        (SLOWER, 1.2, "larger but slower", "is larger and slower: 1.20"),
    ],
)
def test_a_variant_is_called_faster_or_slower_only_where_the_whole_interval_says_so(comparisons, size, word, said):
    summary = summarise(record(loaded("q4", comparisons, size=size)))
    assert word in row_of(summary, "q4")
    assert said in summary.headlines[0]


def test_the_interval_that_decides_is_the_gates_and_not_a_service_levels():
    looser = judged(TPOT, "latency", "inconclusive", lower=0.99, upper=1.6)
    absolute = judged(TPOT, "slo", "pass", lower=0.03, upper=0.04)
    (headline,) = summarise(record(loaded("q4", SLOWER[:1], [absolute, looser]))).headlines
    assert "not shown" in headline and "1.31 times (0.99 to 1.60)" in headline
    (headline,) = summarise(record(loaded("q4", SLOWER[:1], [absolute]))).headlines
    assert "slower" in headline and "1.31 times (1.27 to 1.35)" in headline


def test_few_blocks_or_a_baseline_that_differs_as_much_from_itself_show_no_speed():
    slower = SLOWER[0]
    assert "but slower" in row_of(summarise(record(loaded("q4", [slower]))), "q4")
    few = slower.model_copy(update={"n": 5})
    assert "speed unclear" in row_of(summarise(record(loaded("q4", [few]))), "q4")
    within = ratio(slower.metric, 0.0241, 1.025, 1.02, 1.029)  # beside itself it is up to 1.03
    assert "speed unclear" in row_of(summarise(record(loaded("q4", [within]))), "q4")


def test_the_times_in_the_table_are_those_that_a_gate_looks_at():
    tail = "load.tpot_p95/traffic"
    comparisons = [*FASTER, ratio(tail, 0.03, 1.2, 1.1, 1.3)]
    heads = [column.head for column in summarise(record(loaded("q4", comparisons))).table.columns]
    assert "TPOT p50\nsingle" in heads and "TTFT p95\ntraffic" in heads
    summary = summarise(record(loaded("q4", comparisons, [judged(tail, "latency", "fail")])))
    assert "TPOT p95\ntraffic" in [column.head for column in summary.table.columns]
    assert "but slower" in row_of(summary, "q4")


def test_the_baselines_times_and_its_distance_from_itself_stand_in_its_rows():
    summary = summarise(record(loaded("q4", FASTER)))
    assert "24.1 ms 512 ms" in " ".join(row_of(summary, "baseline").split())
    assert f"{TIMES}1.00 (0.98, 1.03) {TIMES}1.01 (0.91, 1.12)" in " ".join(row_of(summary, "baseline again").split())


def test_every_quantity_of_every_load_stands_beside_the_baselines_with_the_gates_word(measured):
    tail = ratio("load.itl_p99/single", 0.02, 1.1, 1.0, 1.2)
    findings = [judged(TPOT, "latency", "fail"), judged(TPOT, "slo", "pass"), judged(tail.metric, "latency", "error")]
    (section,) = summarise(record(loaded("int8", [*SLOWER, tail], findings))).sections
    assert section.load is not None
    by_name = {row[0]: " | ".join(row[1:]) for row in section.load.rows}
    assert by_name["single: TPOT p50"] == (
        f"24.1 ms | 31.6 ms | {TIMES}1.31 (1.27, 1.35) | latency FAIL, slo pass | {TIMES}1.00 (0.98, 1.03)"
    )
    assert by_name["traffic: failed requests"].startswith("0.0 % | 0.4 % | +0.4 (+0.0, +0.8)")
    assert "latency ERROR" in by_name["single: ITL p99"], "a quantity that a gate looks at is shown, whichever it is"
    assert by_name["peak memory"] == " | 1,200.0 MB |  |  | "
    assert by_name["longest requests that fit"] == "8.00 | 12.00 |  |  | "
    unjudged = summarise(record(loaded("int8", [*SLOWER, tail]))).sections[0].load
    assert unjudged is not None
    assert "single: ITL p99" not in [row[0] for row in unjudged.rows]


def test_how_it_was_measured_is_told_in_words(measured):
    _, summary = measured
    told = summary.sections[0].load_sentences
    assert "single: one at a time, 10 requests in each block." in told
    assert "traffic: Poisson, 3.08 requests/s = 70 % of the baseline's knee of 4.4, 24 requests in each block." in told
    assert "eight: 8 under way at any time, 20 requests in each block." in told
    assert "steady: at even intervals, 2.5 requests/s, 20 requests in each block." in told
    assert f"2 of 4 blocks that were run are valid; the others were not: {DISTURBED} (2 times)." in told
    assert "1 of 3 blocks have no valid attempt: no reruns were left." in told
    assert "the baseline against itself: TPOT p50 at single 0.98 to 1.03, TTFT p95 at traffic 0.91 to 1.12." in told
    assert (
        "while it served: 1,200.0 MB of memory at most, 410.0 MB of weights, room for 12 requests of 240 tokens at the "
        "same time (baseline: 8)." in told
    )
    assert "both servers say: attention: flash." in told
    assert "the variant's server says: kernel: marlin." in told
    assert not any("no production engine" in sentence for sentence in told)


def test_a_curve_that_still_rises_is_doubted(measured):
    _, summary = measured
    told = " ".join(summary.sections[0].load_sentences)
    assert "at most, it completes 8 requests/s with 2 under way; the baseline completes 2.5 requests/s with 1" in told
    assert "it: the curve still rises at its last point (4 requests/s with 1 under way, 8 with 2)" in told
    assert "the baseline: the curve" not in told


def test_without_the_store_the_record_alone_is_told(measured):
    run, _ = measured
    told = summarise(run).sections[0].load_sentences
    assert "10 of 11 blocks are valid." in told
    assert any("room for 12 requests of the longest kind" in sentence for sentence in told)
    assert summarise(run).headlines


def test_a_damaged_artifact_is_left_out_of_the_report(measured, tmp_path):
    run, _ = measured
    store = Store(tmp_path / "store")
    (store.path("benchmark", run.variants[0].stages["benchmark"]) / "blocks.json").write_text("[]")
    found = read_benchmarks(run, store.root / "runs" / run.run, store)
    assert not found.variants and found.baselines
    assert "10 of 11 blocks are valid." in summarise(run, {}, found).sections[0].load_sentences


def test_a_load_that_an_arm_cannot_keep_up_with_is_named():
    full = ratio(TTFT, 0.5, 9.0, 5.0, 16.0, saturated={"baseline": False, "variant": True})
    (section,) = summarise(record(loaded("q4", [*UNSURE, full]))).sections
    assert any(sentence.startswith("at traffic the variant did not keep up") for sentence in section.load_sentences)
    assert not any("single the" in sentence for sentence in section.load_sentences)


def test_transformers_server_is_said_to_promise_nothing():
    (section,) = summarise(record(loaded("q4", UNSURE, engine="transformers"))).sections
    assert any("transformers' server is no production engine" in sentence for sentence in section.load_sentences)


def test_an_attempt_is_not_told_of_a_gate_on_time():
    finding = judged(TPOT, "latency", "pass", alpha=0.05, lower=0.9, upper=1.04)
    (section,) = summarise(record(loaded("q4", UNSURE, [finding]))).sections
    assert not any("attempt" in sentence for sentence in section.sentences)


@pytest.mark.parametrize(("width", "room"), [(None, 120), (80, 80), (100, 100), (200, 200)])
def test_no_line_is_wider_than_the_paper_and_no_cell_is_cut(measured, monkeypatch, width, room):
    run, summary = measured
    told = drawn(run, monkeypatch, width)
    flat = " ".join(told.split())
    assert max(map(len, told.splitlines())) <= room
    (section,) = summary.sections
    assert section.load is not None
    for grid in (summary.table, section.load):
        for line in (line for row in grid.rows for cell in row for line in cell.split("\n")):
            assert " ".join(line.split()) in flat


def test_without_a_benchmark_nothing_is_said_of_speed(variant):
    summary = summarise(record(variant("int8", 0.0)))
    assert summary.headlines == ()
    assert [column.head for column in summary.table.columns if column.group == "load"] == []
    assert summary.sections[0].load is None and summary.sections[0].load_sentences == ()
    assert "nder load" not in markdown(summary) and "TPOT" not in markdown(summary)


def test_failures_have_no_part_in_what_is_called_slower():
    assert summarise(record(loaded("q4", [failed(0.2)]))).headlines == ()
