"""A run with a benchmark, the whole way through: survivors only, pairs in blocks, gates on times, evidence, capacity.

The model is timed in its own process, so that the run needs no environment. Other tests run beside it: the recipe lets
others use the machine, and no limit on times is one that a busy machine could miss.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from planted.plant import planted
from program import TINY, command, tiny_recipe, write_recipe

from quantize.benchmark import FILES, read
from quantize.store import Store

pytestmark = pytest.mark.slow

BLOCKS = 6
BENCHMARK = {
    "traffic": {"kind": "in_process"},
    "requests": {"kind": "synthetic", "shapes": [{"input": 12, "output": 8}]},
    "loads": [
        {"kind": "synchronous", "name": "single", "requests": 4},
        {"kind": "concurrent", "name": "batch", "streams": 2, "requests": 4},
    ],
    "blocks": BLOCKS,
    "warmup": 1,
    "drift": 0.99,
    "foreign": 1.0,
    "reruns": 20,
    "curve": [1, 2],
    "curve_requests": 4,
    "slo": {"tpot": 20.0},
    "price": {"per_device_hour": 1.5},
}
GATES = [
    {"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.1},
    {"kind": "latency", "metric": "load.tpot_p50/single", "at_most": 10.0},
    {"kind": "slo", "metric": "load.e2e_p50/batch", "at_most": 60.0},
    {"kind": "slo", "metric": "load.goodput/batch", "at_least": 1e-3},
    {"kind": "benefit", "metric": "weights.bytes", "at_least": 0.2},
]


def recipe(folder: Path, **changes) -> Path:
    made = tiny_recipe(
        variants=[
            {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}},
            {"name": "bad", "scheme": "W4A16", "method": {"kind": "rtn"}},
        ],
        gates=GATES,
        benchmark={**BENCHMARK, **changes},
    )
    return write_recipe(folder, made)


def wrong_answers() -> dict[str, str]:
    """To every item of the eval set, an answer that is not right."""
    items = [json.loads(line) for line in (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    return {item["prompt"]: item["choices"][item["answer"] - 1] for item in items}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A finished run of one variant that passes its eval and one that does not: (store, its JSON document, recipe)."""
    folder = tmp_path_factory.mktemp("under-load")
    path, plants = recipe(folder), planted(folder, {"bad": wrong_answers()})
    result = command("run", path, "--store", folder / "store", "--json", seconds=900, **plants)
    assert result.returncode == 3, result.stderr
    return folder / "store", json.loads(result.stdout), path


def variant(document, name):
    return next(variant for variant in document["variants"] if variant["name"] == name)


def test_only_what_passed_its_evals_is_benchmarked(measured):
    _, document, _ = measured
    benchmarked = [label for label in document["ran"] if label.startswith("benchmark")]
    assert benchmarked == ["benchmark baseline", "benchmark int8"]
    assert "benchmark" not in variant(document, "bad")["stages"]
    assert variant(document, "bad")["verdict"]["outcome"] == "fail"


def test_times_goodput_and_bytes_are_judged_with_the_rest(measured):
    _, document, _ = measured
    judged = variant(document, "int8")
    outcomes = {(f["kind"], f["metric"]): f["outcome"] for f in judged["verdict"]["findings"]}
    assert {key: outcomes[key] for key in outcomes if key[0] in ("latency", "slo", "benefit")} == {
        ("latency", "load.tpot_p50/single"): "pass",
        ("slo", "load.e2e_p50/batch"): "pass",
        ("slo", "load.goodput/batch"): "pass",
        ("benefit", "weights.bytes"): "pass",
    }
    assert judged["decision"]["action"] == "promote"


def test_ratios_are_of_blocks_and_the_baseline_is_measured_beside_itself(measured):
    _, document, _ = measured
    evidence = variant(document, "int8")["evidence"]
    compared = {c["metric"]: c for c in evidence["comparisons"]}
    ratio = compared["load.tpot_p50/single"]
    assert ratio["n"] == len(ratio["extra"]["logs"]) == BLOCKS
    assert ratio["low"] < ratio["difference"] < ratio["high"]
    own = {c["metric"]: c for c in evidence["noise"]}
    assert own["load.tpot_p50/single"]["n"] == BLOCKS
    assert {m["name"] for m in evidence["measurements"]} >= {"load.ttft_p50/batch", "load.goodput/single"}


def test_every_request_is_on_record(measured):
    store, document, _ = measured
    found = read(Store(store).path("benchmark", variant(document, "int8")["stages"]["benchmark"]))
    sent = [row for row in found.rows if not row["warmup"]]
    assert len(sent) == BLOCKS * 2 * (4 + 4)
    assert {len(row["tokens"]) for row in sent} == {8}
    assert all(
        row["scheduled"] <= row["dispatched"] < row["tokens"][0] <= row["tokens"][-1] <= row["end"] for row in sent
    )
    assert {record.order[0] for record in found.valid} == {"baseline", "variant"}


def test_a_second_run_measures_nothing_again_and_another_slo_judges_again_only(measured, tmp_path):
    store, _, path = measured
    plants = planted(tmp_path, {"bad": wrong_answers()})
    again = json.loads(command("run", path, "--store", store, "--json", **plants).stdout)
    assert again["ran"] == []
    stricter = recipe(tmp_path, slo={"tpot": 1e-9})
    result = command("run", stricter, "--store", store, "--json", "--no-release", **plants)
    changed = json.loads(result.stdout)
    assert {label.split()[0] for label in changed["ran"]} == {"judge"}
    finding = next(f for f in variant(changed, "int8")["verdict"]["findings"] if f["metric"] == "load.goodput/batch")
    assert finding["outcome"] == "fail"


def test_verify_computes_the_verdict_again_and_finds_a_request_that_was_made_faster(measured, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, document, _ = measured
    run = document["run"]
    assert command("verify", run, "--store", store).returncode == 0
    shutil.copytree(store, tmp_path / "store", symlinks=True)
    rows = Store(tmp_path / "store").path("benchmark", variant(document, "int8")["stages"]["benchmark"]) / FILES[1]
    table = pq.read_table(rows)
    faster = [[time / 2 for time in times] for times in table["tokens"].to_pylist()]
    place = table.schema.get_field_index("tokens")
    column = pa.array(faster, type=table.schema.field(place).type)
    rows.chmod(0o644)
    pq.write_table(table.set_column(place, table.schema.field(place), column), rows)
    result = command("verify", run, "--store", tmp_path / "store")
    assert result.returncode != 0
    assert FILES[1] in result.stdout + result.stderr


def test_the_report_shows_it_and_capacity_counts_replicas(measured):
    store, document, _ = measured
    told = command("report", document["run"], "--store", store).stdout
    assert "single: TPOT p50" in told
    assert "int8 is smaller" in told
    assert re.search(rf"{BLOCKS} of \d+\s+blocks\s+that\s+were\s+run\s+are\s+valid", told)
    result = command("capacity", document["run"], "--rps", "50", "--slo", "tpot_p50=30", "--store", store, "--json")
    assert result.returncode == 0, result.stderr
    arms = json.loads(result.stdout)["arms"]
    assert {arm["name"] for arm in arms} == {"baseline", "int8"}
    assert all(arm["replicas"] >= 1 for arm in arms)


def test_a_killed_benchmark_goes_on_after_its_last_block(measured, tmp_path):
    store, _, path = measured
    shutil.copytree(store, tmp_path / "store", symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    longer = yaml.safe_load(path.read_text(encoding="utf-8"))
    longer["benchmark"]["request_seconds"] = 299  # measured anew
    longer["variants"] = longer["variants"][:1]
    again = write_recipe(tmp_path, longer)
    before = blocks(tmp_path / "store")
    for _ in range(2):  # it dies after the first part that it keeps: the curve, then a block
        result = command("run", again, "--store", tmp_path / "store", "--no-release", QUANTIZE_FAULT="worker.look_kept")
        assert result.returncode not in (0, 3, 4)
    kept = {key: made for key, made in blocks(tmp_path / "store").items() if key not in before}
    assert len(kept) == 2
    result = command("run", again, "--store", tmp_path / "store", "--no-release", "--json", seconds=600)
    assert result.returncode == 0, result.stderr
    assert "benchmark baseline" in json.loads(result.stdout)["ran"]
    after = blocks(tmp_path / "store")
    assert {key: after[key] for key in kept} == kept


def test_more_blocks_measure_only_what_is_new(measured, tmp_path):
    store, _, path = measured
    shutil.copytree(store, tmp_path / "store", symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    longer = yaml.safe_load(path.read_text(encoding="utf-8"))
    longer["benchmark"] |= {"blocks": BLOCKS + 1, "reruns": 21}
    longer["variants"] = longer["variants"][:1]
    before = blocks(tmp_path / "store")
    again = write_recipe(tmp_path, longer)
    result = command("run", again, "--store", tmp_path / "store", "--no-release", "--json", seconds=600)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["variants"]
    compared = {c["metric"]: c for c in found["evidence"]["comparisons"]}
    assert compared["load.tpot_p50/single"]["n"] == BLOCKS + 1
    after = blocks(tmp_path / "store")
    assert {key: after[key] for key in before} == before
    assert 2 <= len(after) - len(before) <= 4  # the new block of both stages, and what had to be run again


def blocks(store: Path) -> dict[str, str]:
    """When each kept part of a benchmark was made, by key."""
    looks = Store(store).manifests("look")
    return {found.key: found.provenance.created for _, found in looks if found.name.startswith("blocks ")}
