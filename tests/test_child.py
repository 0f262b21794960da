from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantize.child import Child, died, link_to_package, run
from quantize.errors import QuantizeError

_SLEEPS = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
_TELLS = f"{_SLEEPS} print(p.pid, flush=True); time.sleep(60)"


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def _grandchild(log: Path) -> int:
    assert _until(lambda: log.exists() and log.read_text().strip())
    return int(log.read_text())


def test_closing_ends_what_the_child_started(tmp_path):
    child = Child([sys.executable, "-c", _TELLS], tmp_path / "log", what="it")
    pid = _grandchild(tmp_path / "log")
    child.close()
    assert _until(lambda: not _alive(pid))


def test_a_starter_that_is_killed_leaves_nothing_running(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from quantize.child import Child\n"
        f"Child([sys.executable, '-c', {_TELLS!r}], Path({str(tmp_path / 'log')!r}), what='it')\n"
        "time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    pid = _grandchild(tmp_path / "log")
    starter.kill()
    starter.wait()
    assert _until(lambda: not _alive(pid))


def test_a_child_is_stopped_at_its_deadline(tmp_path):
    with pytest.raises(QuantizeError, match="did not end within 1 seconds"):
        run([sys.executable, "-c", _TELLS], tmp_path / "log", what="it", seconds=1)
    pid = _grandchild(tmp_path / "log")
    assert _until(lambda: not _alive(pid))


def test_a_failure_shows_the_status_and_the_end_of_the_log(tmp_path):
    with pytest.raises(QuantizeError, match=r"(?s)the tool ended with status 3\.\n.*so it goes"):
        run([sys.executable, "-c", "print('so it goes'); raise SystemExit(3)"], tmp_path / "log", what="the tool")


def test_a_known_cause_is_named(tmp_path):
    code = "raise OSError('[Errno 28] No space left on device')"
    with pytest.raises(QuantizeError, match="the disk is full"):
        run([sys.executable, "-c", code], tmp_path / "log", what="the tool")


def test_a_kill_is_called_one(tmp_path):
    with Child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "log", what="it") as child:
        assert child.wait(10) == -signal.SIGKILL
        assert "usual cause is memory" in str(died(child))


def test_another_interpreter_finds_the_package_and_not_our_libraries(tmp_path):
    place = link_to_package(tmp_path)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    code = "import importlib.util as u, quantize.errors; print(u.find_spec('torch'), u.find_spec('pydantic'))"
    environment = {**os.environ, "PYTHONPATH": str(place)}
    found = subprocess.run([bare / "bin" / "python", "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["None", "None"], found.stderr
