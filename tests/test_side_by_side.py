"""Two stages at once on one machine: they overlap, and nothing else differs from one after the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from datetime import datetime
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
from program import TINY, command, contents, start, tiny_recipe, wait_for, workers_of, write_recipe

from quantize.device import choose
from quantize.errors import StageFailed
from quantize.planner import make_plan
from quantize.preflight import check
from quantize.recipe import load

TWO = {"device": "cpu", "stages": 2}
VARIANTS = [
    {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}},
    {"name": "int4", "scheme": "W4A16", "method": {"kind": "rtn"}},
]
#: A process of its own: what a test forks must not be forked from a thread.
alone = partial(command, PYTHONUNBUFFERED="1")


def recipe(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    made = tiny_recipe(variants=VARIANTS, noise_floor=True, early_stopping={"look": 16}, **changes)
    return write_recipe(folder, made)


def spans(document) -> list[tuple[str, datetime, datetime]]:
    times = document["times"]
    return [(t["stage"], datetime.fromisoformat(t["began"]), datetime.fromisoformat(t["ended"])) for t in times]


def overlapping(document) -> set[frozenset[str]]:
    """The pairs of stages that ran at the same time."""
    pairs = combinations(spans(document), 2)
    return {frozenset((one[0], two[0])) for one, two in pairs if one[1] < two[2] and two[1] < one[2]}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    """The run with one stage at once: (store, its JSON document)."""
    folder = tmp_path_factory.mktemp("in-turn")
    result = command("run", recipe(folder), "--store", folder / "store", "--no-release", "--json")
    assert result.returncode in (0, 3, 4), result.stderr
    return folder / "store", json.loads(result.stdout)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same with two: (store, its JSON document)."""
    folder = tmp_path_factory.mktemp("together")
    result = alone("run", recipe(folder, resources=TWO), "--store", folder / "store", "--no-release", "--json")
    assert result.returncode in (0, 3, 4), result.stderr
    return folder / "store", json.loads(result.stdout)


def test_stages_of_two_variants_run_at_the_same_time(together):
    pairs = {tuple(sorted(name.split()[1] for name in pair if " " in name)) for pair in overlapping(together[1])}
    assert ("int4", "int8") in pairs


def test_no_more_than_two_stages_run_at_once_and_none_shares_a_device(together):
    document = together[1]
    triples = combinations(spans(document), 3)
    assert not any(max(t[1] for t in three) < min(t[2] for t in three) for three in triples)
    devices = {time["stage"]: time["device"] for time in document["times"]}
    assert {devices[stage] for stage in devices if stage.startswith("evaluate")} <= {"cpu:0", "cpu:1"}
    assert devices["fetch"] == devices["judge int8"] == ""
    for one, two in (tuple(pair) for pair in overlapping(document) if len(pair) == 2):
        assert not devices[one] or devices[one] != devices[two]


def test_a_variant_is_made_while_the_baseline_is_measured(together):
    made = {frozenset((f"quantize {name}", "evaluate baseline facts")) for name in ("int8", "int4")}
    assert made & overlapping(together[1])


@pytest.mark.slow
def test_verdicts_keys_bytes_and_the_order_of_what_is_told_are_those_of_one_after_the_other(in_turn, together):
    assert contents(together[0]) == contents(in_turn[0])
    for name in ("ran", "reused", "baseline_stages"):
        assert together[1][name] == in_turn[1][name]
    for one, two in zip(in_turn[1]["variants"], together[1]["variants"], strict=True):
        assert (one["name"], one["stages"]) == (two["name"], two["stages"])
        assert {**one["verdict"], "recipe_digest": ""} == {**two["verdict"], "recipe_digest": ""}
    assert overlapping(in_turn[1]) == set()


def test_a_run_records_when_where_and_with_what_each_stage_was_done(in_turn, together):
    for store, document in (in_turn, together):
        assert [time["stage"] for time in document["times"]] == document["ran"]
        for told in document["times"]:
            assert told["seconds"] > 0 and told["peak_memory_bytes"] > 1e7
            assert (store / "runs" / document["run"] / told["log"]).is_file()
    assert {time["device"] for time in in_turn[1]["times"]} == {"", "cpu"}


def test_a_second_run_side_by_side_finds_everything_done(together, tmp_path):
    shutil.copytree(together[0], tmp_path / "store", symlinks=True)
    again = alone("run", recipe(tmp_path, resources=TWO), "--store", tmp_path / "store", "--no-release", "--json")
    document = json.loads(again.stdout)
    assert (document["ran"], document["times"]) == ([], [])
    assert document["reused"] == together[1]["ran"]


def test_how_many_stages_run_at_once_is_in_no_key_and_the_plan_says_it(tmp_path):
    loaded = [load(recipe(tmp_path / name, resources=found)) for name, found in (("1", {"device": "cpu"}), ("2", TWO))]
    one, two = (make_plan(each, choose("cpu")) for each in loaded)
    assert [stage.key for stage in one.stages()] == [stage.key for stage in two.stages()]
    store = tmp_path / "store"
    told = [
        check(p.recipe, p.recipe.model.facts(), p.device, store, tuple(p.recipe.variants)).notes for p in (one, two)
    ]
    assert not any("side by side" in note for note in told[0])
    assert any(note.startswith("up to 2 stages run side by side, with 1 CPU thread each") for note in told[1])


@pytest.mark.slow
def test_one_variants_failure_does_not_stop_the_other(together, tmp_path):
    shutil.copytree(together[0], tmp_path / "store", symlinks=True)
    odd = {"name": "odd", "scheme": "W4A16", "method": {"kind": "rtn"}, "ignore": ["re:.*router"]}
    late = {"name": "late", "scheme": "W8A16", "method": {"kind": "rtn"}}
    changed = tiny_recipe(variants=[*VARIANTS, odd, late], noise_floor=True, early_stopping={"look": 16}, resources=TWO)
    result = alone("run", write_recipe(tmp_path, changed), "--store", tmp_path / "store", "--no-release", "--json")
    assert result.returncode == 1, result.stderr
    document = json.loads(result.stdout)
    outcomes = {variant["name"]: variant["verdict"]["outcome"] for variant in document["variants"]}
    assert outcomes["odd"] == "error" and outcomes["late"] != "error"
    assert "quantize odd FAILED" in result.stderr
    assert "judge late" in document["ran"]


def test_a_stage_that_may_never_have_its_memory_names_the_setting(tmp_path):
    path = recipe(tmp_path, resources={**TWO, "memory_gb": 0.5})
    result = alone("run", path, "--store", tmp_path / "store", "--no-release")
    assert result.returncode == 1
    assert "stages may have 0.5 GB. Raise resources.memory_gb" in result.stderr


def ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_baseline_that_cannot_be_measured_ends_the_run_and_what_is_at_work_with_it(tmp_path):
    items = tmp_path / "items.jsonl"
    shutil.copy(TINY / "items.jsonl", items)
    path = recipe(tmp_path, resources=TWO, evals=[{"kind": "items", "name": "facts", "path": str(items)}])
    process = start("run", path, "--store", tmp_path / "store", "--no-release")
    wait_for(process, "fetch ...")
    items.write_text("\n".join(items.read_text(encoding="utf-8").splitlines()[1:]), encoding="utf-8")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the eval set was changed after the run was planned" in error and "Traceback" not in error.split("|")[0]
    assert not (tmp_path / "store" / "evaluate").exists()


def two_at_work(finished: Path, folder: Path) -> tuple[Path, Path, subprocess.Popen[str], list[int]]:
    """A run that has two stages at work: its recipe, its store, its driver, and the processes below."""
    store = folder / "store"
    shutil.copytree(finished, store, symlinks=True, ignore=shutil.ignore_patterns("evaluate", "look", "judge"))
    path = recipe(folder, resources=TWO)
    process = start("run", path, "--store", store, "--no-release")
    for _ in range(2):
        wait_for(process, " ...")
    deadline = time.monotonic() + 60
    while len(at_work := workers_of(process)) < 3:  # the one that forks, and two stages
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path, store, process, at_work


def wait_for_the_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not ended(processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_ends_both_stages_at_work_and_the_same_command_resumes(in_turn, tmp_path, name):
    path, store, process, at_work = two_at_work(in_turn[0], tmp_path)
    before = contents(store)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "resume" in error and "FAILED" not in error
    wait_for_the_end(at_work)
    resumed = alone("run", path, "--store", store, "--no-release", "--json")
    assert resumed.returncode in (0, 3, 4), resumed.stderr
    now = contents(store)
    assert now == contents(in_turn[0]) and before.items() <= now.items()
    assert list((store / "drafts").iterdir()) == []


@pytest.mark.slow
def test_the_stages_of_a_killed_driver_are_finished_by_their_workers(in_turn, tmp_path):
    path, store, process, at_work = two_at_work(in_turn[0], tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_the_end(at_work)
    assert len(list((store / "evaluate").glob("*/manifest.json"))) >= 1
    resumed = alone("run", path, "--store", store, "--no-release", "--json")
    assert "evaluate baseline facts" in json.loads(resumed.stdout)["reused"]
    assert contents(store) == contents(in_turn[0])


@pytest.mark.slow
def test_a_benchmark_overlaps_with_nothing(together, tmp_path):
    shutil.copytree(together[0], tmp_path / "store", symlinks=True)
    benchmark = {
        "traffic": {"kind": "in_process"},
        "requests": {"kind": "synthetic", "shapes": [{"input": 8, "output": 4}]},
        "loads": [{"kind": "synchronous", "name": "single", "requests": 4}],
        "blocks": 6,
        "warmup": 1,
        "drift": 0.99,
        "foreign": 1.0,
        "reruns": 20,
        "curve": [1],
        "curve_requests": 4,
    }
    gates = [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.3}]
    third = {"name": "late", "scheme": "W8A16", "method": {"kind": "rtn"}}
    changed = tiny_recipe(
        variants=[*VARIANTS, third], resources=TWO, benchmark=benchmark, gates=gates, early_stopping={"look": 16}
    )
    result = alone("run", write_recipe(tmp_path, changed), "--store", tmp_path / "store", "--no-release", "--json")
    document = json.loads(result.stdout)
    timed = [name for name, _, _ in spans(document) if name.startswith("benchmark")]
    assert timed == ["benchmark baseline", "benchmark int8", "benchmark int4", "benchmark late"]
    assert not [pair for pair in overlapping(document) if any(name.startswith("benchmark") for name in pair)]
    assert {t["device"] for t in document["times"] if t["stage"] in timed} == {"cpu:0, cpu:1"}


def test_a_terminal_shows_a_bar_for_each_stage_at_work(tmp_path):
    from quantize.display import Bars

    plan = make_plan(load(recipe(tmp_path, resources=TWO)), choose("cpu"))
    one, two = plan.variants[0].quantize, plan.variants[1].quantize
    bars = Bars()
    bars.plan(plan)
    try:
        bars.started(one)
        bars.started(two)
        bars.progress(one)("rounding", 1, 4)
        bars.progress(two)("rounding", 3, 4)
        shown = {task.description: task.completed for task in bars._progress.tasks}
        assert shown == {"all stages": 0, "quantize int8 [dim]rounding[/]": 1, "quantize int4 [dim]rounding[/]": 3}
        bars.failed(one, StageFailed("broken"))
        assert [task.description for task in bars._progress.tasks] == ["all stages", "quantize int4 [dim]rounding[/]"]
    finally:
        bars.close()
