"""Which GPU a stage gets: what its process sees, which locks it holds, and what a run on several asks for."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest
from planted_nvml import PlantedGpu
from program import tiny_recipe, write_recipe

from quantize.device import Device
from quantize.device_locks import FOLDER
from quantize.executors import Local, _workers
from quantize.handed import StageSpec
from quantize.leases import Lease
from quantize.locks import try_lock
from quantize.planner import make_plan
from quantize.recipe import Resources, load
from quantize.sharing import Cost, Sharing, at_once, share_of_threads

GPU = Device("cuda", "NVIDIA Planted", 80_000_000_000, (9, 0))
SMALLER = Device("cuda", "NVIDIA Other", 24_000_000_000, (8, 9))


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """Two planted GPUs, and locks of this test's own; returns the folder of the locks."""
    PlantedGpu().plant(monkeypatch)
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "locks"


class Stage:
    """A stage whose process writes down which GPUs it sees, and ends when a file is there."""

    def __init__(self, folder, name, device="cuda", gpus=None, threads=None):
        self.saw, self.enough, self.folder = folder / f"{name}.saw", folder / f"{name}.enough", folder
        script = folder / f"{name}.sh"
        seen = '"$CUDA_VISIBLE_DEVICES" "$CUDA_DEVICE_ORDER" "$OMP_NUM_THREADS"'
        script.write_text(
            f"#!/bin/sh\nprintf '%s/%s/%s' {seen} > {self.saw}.part\nmv {self.saw}.part {self.saw}\n"
            f"until test -e {self.enough}; do sleep 0.05; done\n"
        )
        script.chmod(0o755)
        self.spec = StageSpec(
            "evaluate",
            name,
            "0" * 64,
            1,
            {},
            {},
            {},
            (),
            device,
            {"script": script},
            environment="script",
            gpus=gpus,
            threads=threads,
        )

    def start(self, executor):
        log = self.folder / f"{self.spec.name}.log"
        arguments = (self.spec, self.folder / "store", log, lambda *_: None, self.lease())
        self.thread = threading.Thread(target=executor.run, args=arguments)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.saw.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self.saw.read_text().split("/")

    def lease(self):
        self.held = os.open(os.devnull, os.O_RDONLY)
        return Lease(self.folder, 1, 60.0, self.held)

    def end(self):
        self.enough.touch()
        self.thread.join(20)
        os.close(self.held)


def free(folder):
    """The GPUs whose locks nobody holds, by their place on the bus."""
    found = set()
    for place in ("60", "61"):
        path = folder / f"gpu-00000000-{place}-00-0.lock"
        with path.open("a") as lock:
            if try_lock(lock.fileno()):
                found.add(place)
    return found


@pytest.mark.parametrize(
    ("own", "gpus", "seen"),
    [
        (None, (1,), "1"),
        (None, (0, 1), "0,1"),
        ("1,0", (1,), "0"),
        ("GPU-1a, GPU-0a", (0,), "GPU-1a"),
        ("1", None, "1"),
    ],
)
def test_a_process_sees_the_gpus_that_it_was_given_as_the_user_names_them(
    two_gpus, monkeypatch, tmp_path, own, gpus, seen
):
    if own is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    stage = Stage(tmp_path, "it", gpus=gpus)
    assert stage.start(Local())[:2] == [seen, "PCI_BUS_ID"]
    stage.end()


def test_a_stage_on_the_cpu_sees_no_gpu_and_has_its_share_of_threads(two_gpus, tmp_path):
    stage = Stage(tmp_path, "it", device="cpu", threads=3)
    assert stage.start(Local()) == ["", "PCI_BUS_ID", "3"]
    stage.end()


def test_two_stages_hold_the_lock_of_their_own_gpu_alone(two_gpus, tmp_path):
    one, two, executor = Stage(tmp_path, "one", gpus=(0,)), Stage(tmp_path, "two", gpus=(1,)), Local()
    one.start(executor)
    assert free(two_gpus) == {"61"}
    two.start(executor)
    assert free(two_gpus) == set()
    one.end()
    assert free(two_gpus) == {"60"}
    two.end()
    assert free(two_gpus) == {"60", "61"}


def test_forked_workers_on_two_gpus_come_from_one_server_and_each_sees_its_own(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'quantize.forkserver' in sys.orig_argv:\n"
        "    from quantize import worker\n"
        "    worker.main = lambda arguments, events: print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True) or 0\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    parents = set()
    for gpu in "01":
        read, write = os.pipe()
        with (tmp_path / gpu).open("w") as log:
            environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": gpu}
            worker = _workers.forked(tmp_path / "stage.json", log.fileno(), write, (), environment)
        assert worker is not None and worker.wait() == 0
        parents |= {id(server) for server in _workers._servers if worker in server._workers}
        os.close(read)
        os.close(write)
    assert [(tmp_path / gpu).read_text() for gpu in "01"] == ["0\n", "1\n"]
    assert len(parents) == 1


def sharing(tmp_path, gpus, costs=None, **resources):
    """How a run of the tiny recipe would share these GPUs."""
    variants = [
        {"name": name, "scheme": scheme, "method": {"kind": "rtn"}} for name, scheme in (("a", "W8A8"), ("b", "W4A16"))
    ]
    registry = {"kind": "mlflow", "name": "tiny"}
    path = write_recipe(tmp_path, tiny_recipe(variants=variants, registry=registry, resources={"device": "cuda"}))
    plan = make_plan(load(path), gpus[0])
    costs = {label: Cost(seconds, memory) for label, (seconds, memory) in (costs or {}).items()}
    shared = Sharing.of(plan, Resources(device="cuda", **resources), gpus, 512e9, costs)
    return shared, {stage.label: stage for stage in plan.stages()}


def test_a_slot_for_each_gpu_of_the_class_that_stands_in_the_keys(tmp_path):
    shared, _ = sharing(tmp_path, (GPU, SMALLER, GPU))
    assert shared.capacity.devices == {"cuda:0": GPU.memory, "cuda:2": GPU.memory}
    assert shared.capacity.stages is None
    assert at_once(Resources(), GPU, (GPU, SMALLER, GPU)) == 2
    assert at_once(Resources(stages=1), GPU, (GPU, GPU)) == 1


def test_one_gpu_runs_one_stage_at_once_as_one_cpu_does(tmp_path):
    assert sharing(tmp_path, (GPU,))[0].capacity.stages == 1
    assert at_once(Resources(), Device("cpu", "", None), ()) == 1
    assert share_of_threads(Resources(), Device("cpu", "", None), ()) is None


def test_a_model_that_one_gpu_does_not_hold_is_given_as_many_as_do(tmp_path):
    costs = {"evaluate a facts": (9.0, 100e9), "prove a": (1.0, 20e9), "quantize a": (1.0, 20e9)}
    shared, stages = sharing(tmp_path, (GPU, GPU, GPU), costs)
    large, small, made = (shared.request(stages[name]) for name in ("evaluate a facts", "prove a", "quantize a"))
    assert (large.devices, large.device_memory, large.memory) == (2, 100e9, None)
    assert (small.devices, small.memory) == (1, None)
    assert shared.request(stages["prove b"]).devices == 3, "what is not known may need all"
    assert made.memory == 20e9, "while it is quantized, the host holds it too"
    assert shared.request(stages["judge a"]).devices == shared.request(stages["fetch"]).devices == 0


def test_an_engine_over_several_gpus_is_given_so_many(tmp_path):
    shared, stages = sharing(tmp_path, (GPU, GPU, GPU, GPU), {"prove a": (1.0, 20e9)})
    engine = {**stages["prove a"].config["engine"], "tensor_parallel_size": 3}
    assert shared.request(replace(stages["prove a"], config={"engine": engine})).devices == 3


def test_the_variant_with_the_fewest_seconds_left_comes_first_and_what_all_need_before_it(tmp_path):
    costs = {"quantize a": (100.0, None), "quantize b": (10.0, None), "evaluate baseline facts": (50.0, None)}
    shared, stages = sharing(tmp_path, (GPU, GPU), costs)
    order = sorted(["prove a", "prove b", "evaluate baseline facts"], key=shared.urgency)
    assert order == ["evaluate baseline facts", "prove b", "prove a"]
    shared.passed("quantize a")
    assert sorted(["prove a", "prove b"], key=shared.urgency) == ["prove a", "prove b"]
    assert all(shared.urgency(label) == shared.request(stage).priority for label, stage in stages.items())
