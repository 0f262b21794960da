"""kill -9 at any moment, Ctrl-C, a second process: nothing committed runs again, nothing half-made is read.

The points at which a process can be killed are read from the source (`faults.point`), and every one must be reached.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from program import command, kill_at_once, seldom, start, stopped_worker, tiny_recipe, wait_for, write_recipe

import quantize
from quantize.store import Store

STAGES = 6
#: So small that an arm keeps many looks, and a process can be killed between them.
LOOK = 16
#: The point after a look is kept, which is on the way of an evaluation alone.
IN_LOOKS = "worker.look_kept"


def points(*prefixes: str) -> list[str]:
    """All fault points of the program whose names begin with one of `prefixes`, in the order of the source."""
    files = sorted(Path(quantize.__file__).parent.rglob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.point"]
    found = [str(ast.literal_eval(call.args[0])) for call in calls]
    return [name for name in found if name.startswith(prefixes)]


def contents(store: Path) -> dict[str, tuple[str, str]]:
    """Key -> (digest of the bytes, when it was made) of everything committed."""
    return {
        manifest.key: (manifest.content_digest(), manifest.provenance.created + str(manifest.provenance.seconds))
        for _, manifest in Store(store).manifests()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody disturbed: recipe and the digests of all it made."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, tiny_recipe(early_stopping={"look": LOOK}))
    result = command("run", recipe, "--store", folder / "store", "--no-release")
    assert result.returncode == 0, result.stderr
    return recipe, {key: digest for key, (digest, _) in contents(folder / "store").items()}


def looks(store: Path, arm: str) -> list[int]:
    """Numbers of the looks of an arm that are kept."""
    return sorted(m.summary["number"] for _, m in Store(store).manifests("look") if m.name.startswith(f"{arm} "))


def without(recipe: Path, store: Path, *kinds: str, arm: str | None = None) -> Path:
    """A copy of the undisturbed store in which artifacts of these kinds (of one arm) are still to do."""
    shutil.copytree(recipe.parent / "store", store, symlinks=True)
    for kind in kinds:
        for directory, manifest in list(Store(store).manifests(kind)):
            if arm is None or manifest.name.startswith(arm):
                shutil.rmtree(directory)
    return store


POINTS = [name for name in points("store.", "worker.", "run.") if name != IN_LOOKS]


@pytest.mark.parametrize("name", seldom(POINTS, often=("store.checked", "run.stage_done")))
def test_a_run_killed_at_any_point_resumes_with_the_same_bytes_and_repeats_nothing(undisturbed, tmp_path, name):
    """The first and the last stage are still to do, so that every point lies on the way; the others are not redone."""
    recipe, expected = undisturbed
    store = without(recipe, tmp_path / "store", "fetch", "judge")
    before = contents(store)
    killed = command("run", recipe, "--store", store, "--no-release", QUANTIZE_FAULT=name)
    died = (
        killed.returncode == -signal.SIGKILL or "SIGKILL" in killed.stderr or "after it had committed" in killed.stderr
    )
    assert died, f"{name} was never reached: {killed.stderr}"
    between = contents(store)
    finished = command("run", recipe, "--store", store, "--no-release", "--json")
    assert finished.returncode == 0, finished.stderr
    now = contents(store)
    for earlier in (before, between):
        assert {key: now[key] for key in earlier} == earlier, "a committed stage was made again"
    assert {key: digest for key, (digest, _) in now.items()} == expected
    assert list((store / "drafts").iterdir()) == []


@pytest.mark.slow
def test_an_evaluation_killed_after_a_look_goes_on_with_the_next(undisturbed, tmp_path):
    recipe, expected = undisturbed
    assert IN_LOOKS in points("worker.")
    store = without(recipe, tmp_path / "store", "evaluate", "look", "judge", arm="int8")
    arguments = ("run", recipe, "--store", store, "--no-release", "--json")
    killed = command(*arguments, QUANTIZE_FAULT=IN_LOOKS)
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr
    assert looks(store, "int8") == [0]
    between = contents(store)
    finished = command(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["ran"] == ["evaluate int8 facts", "judge int8"]
    assert len(looks(store, "int8")) > 1
    now = contents(store)
    assert {key: now[key] for key in between} == between, "a kept look was answered again"
    assert {key: digest for key, (digest, _) in now.items()} == expected
    assert list((store / "drafts").iterdir()) == []


@pytest.mark.slow
def test_a_run_lost_with_its_worker_amid_the_looks_goes_on_after_the_last(undisturbed, tmp_path):
    recipe, expected = undisturbed
    store = without(recipe, tmp_path / "store", "evaluate", "look", "judge")
    process = start("run", recipe, "--store", store, "--no-release")
    deadline = time.monotonic() + 120
    while not looks(store, "baseline"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_at_once(process)
    kept = looks(store, "baseline")
    assert kept == list(range(len(kept)))
    assert not (store / "evaluate").exists() or not list((store / "evaluate").iterdir())
    between = contents(store)
    finished = command("run", recipe, "--store", store, "--no-release", "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["ran"] == ["evaluate baseline facts", "evaluate int8 facts", "judge int8"]
    assert len(looks(store, "baseline")) > len(kept)
    now = contents(store)
    assert {key: now[key] for key in between} == between, "a kept look was answered again"
    assert {key: digest for key, (digest, _) in now.items()} == expected


@pytest.mark.slow
def test_two_processes_with_one_recipe_share_the_work(undisturbed, tmp_path):
    recipe, expected = undisturbed
    store = tmp_path / "store"
    both = [start("run", recipe, "--store", store, "--no-release", "--json") for _ in range(2)]
    documents = [json.loads(process.communicate(timeout=240)[0]) for process in both]
    ran = [set(document["ran"]) for document in documents]
    assert not ran[0] & ran[1]
    assert len(ran[0] | ran[1]) == STAGES
    assert {key: digest for key, (digest, _) in contents(store).items()} == expected


@pytest.mark.slow
def test_a_run_whose_workers_are_new_processes_makes_the_same_bytes(undisturbed, tmp_path):
    """An import that leaves a thread behind forbids to fork (`quantize.forkserver`)."""
    recipe, expected = undisturbed
    leaves_a_thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(leaves_a_thread, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = command("run", recipe, "--store", tmp_path / "store", "--no-release", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert {key: digest for key, (digest, _) in contents(tmp_path / "store").items()} == expected


@pytest.mark.parametrize("name", seldom(["SIGINT", "SIGTERM"], often=("SIGTERM",)))
def test_a_stopped_run_says_so_and_the_same_command_resumes(undisturbed, tmp_path, name):
    recipe, expected = undisturbed
    store = without(recipe, tmp_path / "store", "evaluate", "look", "judge")
    process = start("run", recipe, "--store", store, "--no-release")
    wait_for(process, "evaluate baseline facts ...")
    before = contents(store)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "resume" in error
    resumed = command("run", recipe, "--store", store, "--no-release", "--json")
    assert resumed.returncode == 0
    assert "fetch" in json.loads(resumed.stdout)["reused"]
    now = contents(store)
    assert {key: now[key] for key in before} == before
    assert {key: digest for key, (digest, _) in now.items()} == expected


@pytest.mark.slow
def test_the_stage_of_a_killed_driver_is_finished_by_its_worker_and_not_started_twice(
    undisturbed, tmp_path, monkeypatch
):
    """The worker is stopped at its start, so that the second run surely finds it at work."""
    recipe, _ = undisturbed
    store = without(recipe, tmp_path / "store", "evaluate", "look", "judge")
    monkeypatch.setenv("QUANTIZE_FAULT", "worker.started:STOP")
    process = start("run", recipe, "--store", store, "--no-release")
    wait_for(process, "evaluate baseline facts ...")
    stopped = stopped_worker(process)
    process.kill()
    process.communicate()
    monkeypatch.delenv("QUANTIZE_FAULT")
    second = start("run", recipe, "--store", store, "--no-release", "--json")
    wait_for(second, "is at it; waiting")
    os.kill(stopped, signal.SIGCONT)
    output, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "evaluate baseline facts" in json.loads(output)["reused"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up_is_named_and_the_run_resumes_once_there_is_room(undisturbed, tmp_path):
    recipe, expected = undisturbed
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", store], capture_output=True).returncode != 0:
        pytest.skip("this machine may not mount a file system")
    try:
        stopped = command("run", recipe, "--store", store, "--no-release")
        assert stopped.returncode == 1
        assert "The disk is full" in stopped.stderr
        assert "Traceback" not in stopped.stderr.split("FAILED")[0]
        before = contents(store)
        assert before
        subprocess.run(["mount", "-o", "remount,size=64m", store], check=True)
        resumed = command("run", recipe, "--store", store, "--no-release", "--json")
        assert resumed.returncode == 0, resumed.stderr
        assert "evaluate baseline facts" in json.loads(resumed.stdout)["reused"]
        now = contents(store)
        assert {key: now[key] for key in before} == before
        assert {key: digest for key, (digest, _) in now.items()} == expected
    finally:
        subprocess.run(["umount", store], check=True)
