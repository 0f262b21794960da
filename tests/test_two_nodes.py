"""Two nodes and one shared store: each stage once between them, and a node that dies, sleeps or wakes up late.

A node is a name here (`QUANTIZE_NODE`); nodes share no flock.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest
from program import (
    alive,
    below,
    command,
    commits,
    contents,
    kill_at_once,
    start,
    stopped_worker,
    tiny_recipe,
    wait_for,
    write_recipe,
)

from quantize.leases import NODE, SECONDS

QUICK = {SECONDS: "2"}
A, B = {NODE: "a", **QUICK}, {NODE: "b", **QUICK}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody disturbed: its recipe, and what it made."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, tiny_recipe(early_stopping={"look": 16}))
    result = command("run", recipe, "--store", folder / "store", "--no-release")
    assert result.returncode == 0, result.stderr
    return recipe, contents(folder / "store")


@pytest.fixture
def to_judge(undisturbed, tmp_path):
    """(what to run, the store in which evaluations are still to do, what is in it in the end)."""
    recipe, expected = undisturbed
    store = tmp_path / "store"
    shutil.copytree(recipe.parent / "store", store, symlinks=True)
    for kind in ("evaluate", "look", "judge"):
        shutil.rmtree(store / kind)
    return ("run", recipe, "--store", store, "--no-release", "--json"), store, expected


@pytest.mark.slow
def test_two_scheduled_jobs_on_two_nodes_do_each_stage_once_between_them(undisturbed, tmp_path):
    recipe, expected = undisturbed
    store = tmp_path / "store"
    jobs = [start("run", recipe, "--store", store, "--no-release", "--json", **node) for node in (A, B)]
    outputs = [job.communicate(timeout=240) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    one, two = (set(json.loads(output)["ran"]) for output, _ in outputs)
    assert not one & two
    assert len(one | two) == 6
    assert contents(store) == expected


@pytest.mark.slow
def test_a_node_that_dies_amid_a_stage_is_succeeded_by_another(to_judge):
    arguments, store, expected = to_judge
    lost = start(*arguments, **A, QUANTIZE_FAULT="worker.look_kept:STOP")
    stopped_worker(lost)
    kill_at_once(lost)
    between = contents(store)
    successor = command(*arguments, **B)
    assert successor.returncode == 0, successor.stderr
    assert between.items() < expected.items(), "its first look was kept"
    assert contents(store) == expected
    assert list((store / "drafts").iterdir()) == []


@pytest.mark.parametrize("point", ["worker.made", "store.checked"])
def test_an_orphan_of_a_dead_node_does_not_publish_over_its_successor(to_judge, point):
    """Stopped before it asks whether the lease is still its own, and between that and the rename."""
    arguments, store, expected = to_judge
    for kind in ("evaluate", "look"):  # no look is kept on the way: the stage's own commit is what is stopped
        shutil.copytree(arguments[1].parent / "store" / kind, store / kind)
    lost = start(*arguments, **A, QUANTIZE_FAULT=f"{point}:STOP")
    orphan = stopped_worker(lost)
    others = [pid for pid in below(lost.pid) if pid != orphan]
    for pid in (lost.pid, *others):
        os.kill(pid, signal.SIGKILL)
    lost.communicate()
    successor = command(*arguments, **B)
    assert successor.returncode == 0, successor.stderr
    made = commits(store)
    os.kill(orphan, signal.SIGCONT)
    deadline = time.monotonic() + 60
    while alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert contents(store) == expected
    assert commits(store) == made
    assert list((store / "drafts").iterdir()) == []


def test_a_node_that_sleeps_past_its_time_takes_what_its_successor_made(to_judge):
    arguments, store, expected = to_judge
    sleeper = start(*arguments, **A, QUANTIZE_FAULT="worker.started:STOP")
    wait_for(sleeper, "evaluate baseline facts ...")
    worker = stopped_worker(sleeper)
    os.kill(sleeper.pid, signal.SIGSTOP)
    successor = command(*arguments, **B)
    assert successor.returncode == 0, successor.stderr
    os.kill(sleeper.pid, signal.SIGCONT)
    os.kill(worker, signal.SIGCONT)
    output, said = sleeper.communicate(timeout=120)
    assert sleeper.returncode == 0, said
    assert "another node has taken this work over (pid" in said
    assert "evaluate baseline facts" in json.loads(output)["reused"]
    assert "evaluate baseline facts" in json.loads(successor.stdout)["ran"]
    assert contents(store) == expected
