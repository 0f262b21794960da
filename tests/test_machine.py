from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from planted_nvml import PlantedGpu

from quantize import gpu_watch, watching
from quantize.machine import device_names, fingerprint, quota
from quantize.processes import CpuTime, MachineTime, machine_time, tree
from quantize.watching import Watch, check_alone

BURN = "import time\nwhile time.process_time() < {}: pass"


def burner(seconds):
    return subprocess.Popen([sys.executable, "-c", BURN.format(seconds)])


@pytest.fixture
def gpu(monkeypatch):
    """The first of two planted GPUs, on a machine without containers."""
    planted = PlantedGpu()
    planted.plant(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(gpu_watch, "in_container", lambda: False)
    return planted


@pytest.fixture
def stranger():
    """A process that is not of the tree that a test calls its own."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process.pid
    process.kill()
    process.wait()


def test_the_fingerprint_of_a_cpu_is_the_same_in_every_process_and_names_no_machine():
    code = "import json; from quantize.machine import fingerprint; print(json.dumps(fingerprint('cpu')))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    busy = burner(0.5)
    found = fingerprint("cpu")
    busy.wait()
    assert json.loads(elsewhere) == found == fingerprint("cpu")
    assert all(isinstance(value, str) for value in found.values())
    assert found["cpu cores"] == str(len(os.sched_getaffinity(0)))
    assert found["memory"].endswith(" GiB")
    assert all(socket.gethostname() != value for value in found.values())


def test_fewer_cores_are_another_fingerprint():
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "from quantize.machine import fingerprint; print(fingerprint('cpu')['cpu cores'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/not/here", {"cpu.max": "50000 100000"}, 0.5),
        (
            "3:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("2:cpuset:/a", {"a/cpu.max": "100000 100000"}, None),
    ],
)
def test_the_least_quota_of_a_group_and_those_above_it_counts(tmp_path, line, files, cores):
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cgroup").write_text(f"{line}\n")
    assert quota(tmp_path / "cgroup", tmp_path / "groups") == cores


def test_the_fingerprint_of_gpus_holds_limits_and_no_readings(gpu, monkeypatch):
    before = fingerprint("cuda")
    gpu.clock, gpu.temperature, gpu.power, gpu.reasons, gpu.pids = 300, 90, 1, 0x40, [1]
    assert fingerprint("cuda") == before
    assert before["gpu"] == "NVIDIA Planted" and before["gpu cuda"] == "13.1" and before["gpu set clock"] == "unknown"
    assert before["gpu power limit"] == "700 W" and before["gpu pcie"] == "5 x16" and before["gpu nvlinks"] == "4 v4"
    assert not any("serial" in value for value in before.values())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    both = fingerprint("cuda")
    assert both["gpus"] == "2" and both["gpu"] == "NVIDIA Planted" and both["gpu power limit"] == "700 W, 600 W"


def test_a_gpu_has_one_name_for_everybody_who_sees_it(gpu, monkeypatch):
    assert device_names("cuda") == ("gpu-00000000-60-00-0",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a,0")
    assert device_names("cuda") == ("gpu-00000000-61-00-0", "gpu-00000000-60-00-0")
    assert device_names("cuda:1") == ("gpu-00000000-60-00-0",)
    assert device_names("cpu") == ("cpu",)


def test_cpu_time_of_ended_children_and_their_children_is_ours():
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}])"
    spent = CpuTime([os.getpid()])
    subprocess.run([sys.executable, "-c", parent], check=True)
    spent.sample([os.getpid()])
    assert spent.seconds() >= 0.25


def test_cpu_time_from_before_is_not_counted_and_an_orphan_stays_ours():
    old = burner(0.5)
    old.wait()
    orphaned = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {BURN.format(1.0)!r}]); "
        "print(p.pid, flush=True); time.sleep(0.3)"
    )
    spent = CpuTime([os.getpid()])
    assert spent.seconds() == 0
    starter = subprocess.Popen([sys.executable, "-c", orphaned], stdout=subprocess.PIPE, text=True)
    pid = int(starter.stdout.readline())
    assert {starter.pid, pid} <= tree(os.getpid())
    spent.sample([os.getpid()])
    starter.communicate()
    time.sleep(0.5)
    assert pid not in tree(os.getpid())
    spent.sample([os.getpid()])
    assert pid in spent.pids and spent.seconds() >= 0.15


def test_cpu_time_of_children_that_nobody_waits_for_is_ours():
    careless = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        f"p = subprocess.Popen([sys.executable, '-c', {BURN.format(0.4)!r}]); print(p.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    spent = CpuTime([os.getpid()])
    parent = subprocess.Popen(
        [sys.executable, "-c", careless], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    while pid in tree(parent.pid):
        spent.sample([os.getpid()])
        time.sleep(0.02)
    spent.sample([os.getpid()])
    parent.communicate()
    assert spent.seconds() >= 0.3


class Counts:
    """The machine's time as a test wants it: ours and what others add to it, a second after the other."""

    def __init__(self, monkeypatch):
        self.others = self.stolen = 0.0
        monkeypatch.setattr(watching, "machine_time", self.now)

    def now(self):
        own = os.times()
        return MachineTime(2, sum(own[:4]) + self.others, self.stolen)


def test_a_burning_child_is_ours(monkeypatch):
    Counts(monkeypatch)
    watch = Watch("cpu")
    watch.begin()
    burner(0.4).wait()
    watched = watch.end()
    assert watched.reasons == [] and watched.facts["foreign"] < 0.05


def test_a_foreign_process_that_burns_is_a_reason():
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    foreign = burner(1.0)
    watch = Watch("cpu", lambda: {ours.pid})
    watch.begin()
    foreign.wait()
    watched = watch.end()
    ours.kill()
    ours.wait()
    assert any("other processes used" in reason for reason in watched.reasons)
    # One core of all, less its start and what the machine's other work took from it.
    assert watched.facts["foreign"] > 0.3 / machine_time().cores


def test_time_of_others_and_of_the_hypervisor_is_a_reason_above_its_share_only(monkeypatch):
    counts = Counts(monkeypatch)
    watch = Watch("cpu", foreign=0.2, stolen=0.1)
    for others, stolen, sentences in ((0.0, 0.0, 0), (0.04, 0.04, 0), (0.5, 0.0, 1), (0.0, 0.5, 1), (0.5, 0.5, 2)):
        watch.begin()
        counts.others += others
        counts.stolen += stolen
        time.sleep(0.05)
        assert len(watch.end().reasons) == sentences


def test_a_clock_that_is_set_is_a_reason(monkeypatch):
    Counts(monkeypatch)
    watch, real = Watch("cpu"), time.time
    watch.begin()
    monkeypatch.setattr(time, "time", lambda: real() + 0.050)
    assert watch.end().reasons == ["the clock was set by +50 ms."]


def test_cpu_clocks_lowered_for_heat_are_a_reason(monkeypatch, tmp_path):
    counter = tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count"
    counter.parent.mkdir(parents=True)
    counter.write_text("7")
    read = watching._throttles
    monkeypatch.setattr(watching, "_throttles", lambda: read(tmp_path))
    Counts(monkeypatch)
    watch = Watch("cpu")
    watch.begin()
    counter.write_text("9")
    assert watch.end().reasons == ["CPU clocks were lowered for heat (2 times)."]


def test_a_quiet_gpu_gives_facts_and_no_reason(gpu):
    gpu.pids, gpu.using = [os.getpid()], {os.getpid(): 90}
    watch = Watch("cuda")
    watch.begin()
    time.sleep(0.5)
    watched = watch.end()
    assert watched.reasons == []
    assert watched.facts["sm_clock_mean"] == 1500 and watched.facts["temperature_max"] == 60
    assert watched.facts["power_mean"] == 300 and watched.facts["at_power_limit"] == 0
    assert gpu.reads >= 3  # it looks meanwhile, and not at the end alone


@pytest.mark.parametrize(("bits", "name"), [(0x08, "slow-down"), (0x20, "heat"), (0x40, "heat"), (0x80, "brake")])
def test_clocks_lowered_from_outside_are_a_reason_though_they_recover(gpu, bits, name):
    watch = Watch("cuda")
    watch.begin()
    gpu.reasons = bits
    time.sleep(0.3)
    gpu.reasons = 0
    [reason] = watch.end().reasons
    assert name in reason


def test_the_power_limit_is_a_fact(gpu):
    gpu.reasons = 0x04
    watch = Watch("cuda")
    watch.begin()
    watched = watch.end()
    assert watched.reasons == [] and watched.facts["at_power_limit"] == 1.0


def test_a_stranger_on_the_gpu_is_named(gpu, stranger):
    gpu.pids = [os.getpid(), stranger]
    watch = Watch("cuda", lambda: {os.getpid()} - {stranger})
    monitor = Watch("cuda", set)
    monitor.begin()
    gpu.using = {stranger: 40}
    [first, second] = sorted(monitor.end().reasons, key=lambda reason: str(stranger) in reason)
    assert "was on the GPU" in first and f"process {stranger} (" in second and "up to 40 %" in second
    watch.begin()
    assert watch.end().reasons == []  # a child of ours is ours


def test_in_a_container_those_that_were_there_are_unknown_and_newcomers_are_strangers(gpu, monkeypatch):
    monkeypatch.setattr(gpu_watch, "in_container", lambda: True)
    gpu.pids = [4_000_001]
    watch = Watch("cuda")
    watch.begin()
    watched = watch.end()
    assert watched.reasons == [] and watched.facts["unknown_processes"] == 1
    watch.begin()
    gpu.pids = [4_000_001, 4_000_002]
    assert watch.end().reasons == ["process 4000002 (as the driver counts) was on the GPU."]


def test_before_the_first_block_everybody_on_the_gpu_is_a_stranger(gpu, monkeypatch):
    monkeypatch.setattr(gpu_watch, "in_container", lambda: True)
    assert check_alone("cuda", seconds=0.1) == []
    gpu.pids = [4_000_001]
    [reason] = check_alone("cuda", seconds=0.1)
    assert "4000001" in reason


def test_load_of_others_is_found_before_the_first_block(monkeypatch):
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    foreign = burner(1.5)
    time.sleep(0.2)
    found = check_alone("cpu", lambda: {ours.pid}, seconds=0.8)
    for process in (ours, foreign):
        process.kill()
        process.wait()
    assert any("other processes used" in reason for reason in found)
