"""Stages on a real Ray cluster of several nodes: where they run, what kills them, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from program import alive, command, commits, contents, start, state, tiny_recipe, wait_for, write_recipe
from ray_cluster import cluster

from quantize.errors import StageFailed
from quantize.executors import _ray_task
from quantize.executors._ray_submit import Node, infeasible, share_of_cpus
from quantize.handed import StageSpec

GB = 1e9
STAGES = ("fetch", "quantize", "prove", "evaluate", "judge", "look")


# --- what it asks for ----------------------------------------------------------------------------------------------


def nodes(*resources: dict[str, float]) -> list[Node]:
    return [Node(f"10.0.0.{number}", found) for number, found in enumerate(resources)]


def test_what_no_node_could_ever_run_is_refused_with_what_there_is():
    found = nodes({"CPU": 8, "memory": 64 * GB}, {"CPU": 4, "GPU": 2, "memory": 8 * GB})
    assert infeasible({"CPU": 8}, found) is None
    assert infeasible({"CPU": 4, "GPU": 2}, found) is None
    problem = infeasible({"CPU": 4, "GPU": 1, "memory": 16 * GB}, found)
    assert problem is not None
    assert "asks for CPU 4, GPU 1, memory 16.0 GB" in problem
    assert "10.0.0.0: CPU 8, GPU 0, memory 64.0 GB; 10.0.0.1: CPU 4, GPU 2, memory 8.0 GB" in problem
    assert infeasible({"CPU": 1}, []) == (
        "no node of the Ray cluster can ever run it. It asks for CPU 1; there are no nodes."
    )


@pytest.mark.parametrize(("gpus", "cpus"), [(0, 16), (1, 12), (2, 24), (8, 96)])
def test_a_stage_has_its_gpus_share_of_the_cpus(gpus, cpus):
    assert share_of_cpus(nodes({"CPU": 16}, {"CPU": 96, "GPU": 8}), gpus) == cpus


def spec(tmp_path: Path, **changes) -> StageSpec:
    asked = {"kind": "judge", "name": "", "key": "0" * 64, "version": 1, "config": {}, "inputs": {}, "input_keys": {}}
    return StageSpec(**{**asked, "libraries": (), "device": "cpu", **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": {"model": Path("/nowhere/fetch")}}, "does not have the store"),
        ({"interpreters": {"vllm": Path("/nowhere/python")}}, "does not have the environment vllm"),
        (
            {"kind": "quantize", "device_class": "NVIDIA H100"},
            r"this node has cpu-\w+, and the plan is for NVIDIA H100",
        ),
    ],
)
def test_a_node_that_lacks_what_a_stage_needs_is_named(tmp_path, changes, says):
    from quantize import __version__

    with pytest.raises(StageFailed, match=says):
        _ray_task._refuse(__version__, spec(tmp_path, **changes), tmp_path)


def test_a_node_without_the_model_or_of_another_version_is_named(tmp_path):
    from quantize import __version__

    (tmp_path / "fetch").mkdir()
    (tmp_path / "fetch" / "model.safetensors").symlink_to(tmp_path / "gone.safetensors")
    asked = spec(tmp_path, inputs={"model": tmp_path / "fetch"})
    with pytest.raises(StageFailed, match=r"this node does not have .*gone\.safetensors") as caught:
        _ray_task._refuse(__version__, asked, tmp_path)
    assert "a folder that all share" in str(caught.value)
    with pytest.raises(StageFailed, match=r"quantize is .* on this node, and 0\.0 where the run was started"):
        _ray_task._refuse("0.0", asked, tmp_path)


def test_a_stage_comes_out_of_its_document_as_it_went_in(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    asked = spec(tmp_path, inputs={"model": tmp_path}, libraries=("torch",), gpus=(1,), gpus_wanted=1)
    document = json.loads(json.dumps(_ray_task.document(asked, tmp_path, tmp_path / "a.log")))
    found = _ray_task._spec(document["stage"])
    assert found.gpus is None, "Ray says which"
    assert (found.inputs, found.libraries, found.key) == (asked.inputs, asked.libraries, asked.key)
    assert document["variables"]["OMP_NUM_THREADS"] == "7"


# --- a cluster -----------------------------------------------------------------------------------------------------


def owners(store: Path) -> set[str]:
    """The nodes that last had a lease of a stage; those of a run and of its attempts are the driver's."""
    tickets = [path for kind in STAGES for path in store.glob(f"leases/{kind}-*/*") if path.name.isdecimal()]
    return {json.loads(path.read_text(encoding="utf-8"))["node"] for path in tickets}


@pytest.fixture(scope="module")
def running():
    with cluster() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run on this machine alone: its store."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, tiny_recipe(early_stopping={"look": 16}))
    result = command("run", recipe, "--store", folder / "store", "--no-release")
    assert result.returncode == 0, result.stderr
    return folder / "store"


@pytest.fixture
def on_ray(running, tmp_path):
    """What to run: the same recipe on the cluster, with these settings of the executor."""

    def arguments(**settings):
        executor = {"kind": "ray", "address": running.address, **settings}
        recipe = tiny_recipe(early_stopping={"look": 16}, resources={"device": "cpu", "executor": executor})
        return "run", write_recipe(tmp_path, recipe), "--store", tmp_path / "store", "--no-release", "--json"

    return arguments


@pytest.fixture
def node(running):
    """A node that lives as long as a test, with variables of its own."""
    added = []

    def add(**variables):
        added.append(running.add(**variables))
        return added[-1]

    yield add
    for one in added:
        if one in running._cluster.worker_nodes:
            running.kill(one)


def to_evaluate(undisturbed: Path, store: Path) -> None:
    shutil.copytree(undisturbed, store, symlinks=True)
    for kind in ("evaluate", "look", "judge"):
        shutil.rmtree(store / kind)


def stopped_stage(folder: Path) -> int:
    """The process of a stage that a fault point has stopped, known by its open draft."""
    deadline = time.monotonic() + 120
    while True:
        for path in Path("/proc").iterdir():
            if path.name.isdecimal() and state(int(path.name)) == "T":
                environment = (path / "environ").read_bytes()
                if f"QUANTIZE_RAY_TEST={folder}".encode() in environment:
                    return int(path.name)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_stages_run_on_the_nodes_and_make_the_same_bytes(undisturbed, on_ray, node, tmp_path):
    node()
    node()
    process = start(*on_ray())
    output, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert contents(tmp_path / "store") == contents(undisturbed)
    assert len(json.loads(output)["ran"]) == 6
    found = owners(tmp_path / "store")
    assert found and all(name.startswith("ray-") for name in found)
    assert list((tmp_path / "store" / "drafts").iterdir()) == []


@pytest.mark.slow
def test_a_stage_whose_node_is_lost_is_done_by_another_and_its_orphan_publishes_nothing(
    undisturbed, on_ray, node, running, tmp_path
):
    to_evaluate(undisturbed, tmp_path / "store")
    lost = node(QUANTIZE_FAULT="store.checked:STOP", QUANTIZE_RAY_TEST=str(tmp_path))
    process = start(*on_ray(retries=1))
    orphan = stopped_stage(tmp_path)
    node()
    running.kill(lost)
    output, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    made = commits(tmp_path / "store")
    os.kill(orphan, signal.SIGCONT)
    wait_for_end(orphan)
    assert commits(tmp_path / "store") == made
    assert contents(tmp_path / "store") == contents(undisturbed)
    assert "evaluate baseline facts" in json.loads(output)["ran"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_is_started_again_and_goes_on(undisturbed, on_ray, node, tmp_path, how):
    to_evaluate(undisturbed, tmp_path / "store")
    node()
    process = start(*on_ray())
    wait_for(process, "evaluate baseline facts ...")
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (75 if how == signal.SIGTERM else -signal.SIGKILL), said
    again = start(*on_ray())
    output, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert contents(tmp_path / "store") == contents(undisturbed)
    assert "fetch" in json.loads(output)["reused"]


@pytest.mark.slow
def test_a_stage_that_does_not_end_in_time_is_given_up(undisturbed, on_ray, node, tmp_path):
    to_evaluate(undisturbed, tmp_path / "store")
    node(QUANTIZE_FAULT="worker.started:STOP", QUANTIZE_RAY_TEST=str(tmp_path))
    process = start(*on_ray(deadline_hours=0.012))
    stage = stopped_stage(tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "it has not ended in 0.012 hours" in said
    wait_for_end(stage)


@pytest.mark.slow
def test_what_the_cluster_cannot_do_is_said_at_once(on_ray, node, tmp_path):
    node()
    process = start(*on_ray(cpus=64))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no node of the Ray cluster can ever run it. It asks for CPU 64" in said


@pytest.mark.slow
def test_a_cluster_of_another_version_is_refused(on_ray, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '0.1'\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start(*on_ray(), PYTHONPATH=path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the Ray cluster is of another version" in said
    assert "Ray: 0.1" in said


@pytest.mark.slow
def test_where_no_cluster_answers_the_address_is_named(tmp_path):
    pytest.importorskip("ray")
    executor = {"kind": "ray", "address": "127.0.0.1:1"}
    recipe = tiny_recipe(resources={"device": "cpu", "executor": executor})
    process = start("run", write_recipe(tmp_path, recipe), "--store", tmp_path / "store", "--no-release")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "resources.executor.address 127.0.0.1:1: no Ray cluster answers" in said
