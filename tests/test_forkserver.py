"""Workers that are forked from a process with the libraries imported: real processes, real locks, real signals."""

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from program import TINY

from quantize import forkserver
from quantize.executors import _workers

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
STOPPED_FIRST = {"QUANTIZE_FAULT": "worker.started:STOP"}


@pytest.fixture
def stage(tmp_path):
    """The path of a STAGE.json that copies the tiny model."""
    leases = tmp_path / "leases"
    leases.mkdir()
    (leases / "1").write_text("{}", encoding="utf-8")
    job = {
        "kind": "fetch",
        "name": "",
        "key": "0" * 64,
        "config": {"source": {"kind": "directory", "path": str(TINY / "checkpoint")}},
        "inputs": {},
        "input_keys": {},
        "libraries": [],
        "interpreters": {},
        "device": "cpu",
        "store": str(tmp_path / "store"),
        "events": 0,
        "logs": str(tmp_path / "logs"),
        "threads": None,
        "lease": {"folder": str(leases), "generation": 1, "seconds": 60.0},
    }
    (tmp_path / "stage.json").write_text(json.dumps(job))
    return tmp_path / "stage.json"


@pytest.fixture
def fork(stage, tmp_path):
    """Fork a worker for the stage; returns it with the reading end of its events."""
    opened = []
    with (tmp_path / "log").open("wb") as output:

        def forked(*held, **variables):
            read, write = os.pipe()
            environment = {**os.environ, **variables}
            worker = _workers.forked(stage, output.fileno(), write, held, environment)
            os.close(write)
            opened.append(os.fdopen(read))
            return worker, opened[-1]

        yield forked
    for events in opened:
        events.close()


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forked_worker_commits_its_stage_and_the_next_comes_from_the_same_process(fork, stage):
    first, events = fork()
    assert first.wait() == 0
    assert events.read().count("progress") > 0
    assert list((stage.parent / "store" / "fetch").iterdir())
    second, _ = fork(**STOPPED_FIRST)
    third, _ = fork(**STOPPED_FIRST)
    for worker in (second, third):
        wait_until(lambda worker=worker: is_stopped(worker._pid))
    parents = [Path(f"/proc/{one._pid}/status").read_text().split("PPid:")[1].split()[0] for one in (second, third)]
    assert parents[0] == parents[1]
    for worker in (second, third):
        assert os.getsid(worker._pid) == worker._pid, "a worker is a session of its own"
        worker.kill()
        assert worker.wait() == -signal.SIGKILL


def test_a_worker_tells_its_error_and_its_exit_code(fork, stage):
    nowhere = {"source": {"kind": "directory", "path": str(stage.parent / "nowhere")}}
    stage.write_text(json.dumps({**json.loads(stage.read_text()), "config": nowhere}))
    worker, events = fork()
    assert worker.wait() == 1
    assert "nowhere" in json.loads(events.read().splitlines()[-1])["error"]["where"]
    assert "Traceback" in (stage.parent / "log").read_text(), "what it prints is the stage's log"


def test_waiting_ends_when_the_time_is_up(fork):
    worker, _ = fork(**STOPPED_FIRST)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.2)
    worker.kill()
    assert worker.wait(30) == -signal.SIGKILL


def test_a_lock_is_the_workers_and_not_the_servers(fork, tmp_path):
    with (tmp_path / "lock").open("w") as lock, (tmp_path / "lock").open() as again:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker, _ = fork(lock.fileno(), **STOPPED_FIRST)
        lock.close()
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        worker.kill()
        worker.wait()
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_worker_whose_server_was_killed_counts_as_killed_and_the_next_stage_runs(fork):
    worker, _ = fork(**STOPPED_FIRST)
    wait_until(lambda: is_stopped(worker._pid))
    server = next(one for one in _workers._servers if worker in one._workers)
    server._process.kill()
    assert worker.wait() == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{worker._pid}").exists())
    nothing, _ = fork(**STOPPED_FIRST)
    assert nothing is None, "who asks starts a new process then"


def test_where_an_import_leaves_a_thread_behind_workers_are_new_processes(fork, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    assert fork(PYTHONPATH=str(tmp_path))[0] is None


def test_a_process_that_knows_a_gpu_or_has_threads_may_not_fork(monkeypatch, tmp_path):
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert forkserver._may_fork()
    (tmp_path / "maps").write_text("7f00-7f01 r-xp 00000000 00:00 1  /usr/lib/x86_64-linux-gnu/libcuda.so.570.1\n")
    monkeypatch.setattr(forkserver, "_MAPS", tmp_path / "maps")
    assert not forkserver._may_fork()
    monkeypatch.undo()
    more = threading.Event()
    waiting = threading.Thread(target=more.wait)
    waiting.start()
    assert not forkserver._may_fork()
    more.set()
    waiting.join()
