from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quantize.device_locks import FOLDER, holding, runtime_folder
from quantize.errors import QuantizeError
from quantize.executors import Local
from quantize.handed import StageSpec
from quantize.leases import Lease

#: Says "waiting ..." and "got" as it comes to that, and leaves when its standard input ends.
_HOLDER = """
import sys
from quantize.device_locks import holding
def say(text): print(text, flush=True)
with holding([sys.argv[1]], sys.argv[2], lambda owner: say(f"waiting {owner}"), alone=sys.argv[2] == "alone"):
    say("got")
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Locks of this test's own."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    return tmp_path / "locks"


class Holder:
    """Another process that wants a device, `alone` or `shared`."""

    def __init__(self, how, device="cpu"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, device, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self):
        """The next thing that it says."""
        return self.process.stdout.readline().strip()

    def leave(self):
        self.process.communicate()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder():
    """Makes holders, and leaves none behind."""
    made = []

    def make(*arguments):
        made.append(Holder(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def test_two_that_share_a_device_have_it_at_the_same_time(holder):
    assert holder("shared").says() == "got"
    assert holder("shared").says() == "got"


@pytest.mark.parametrize(("first", "second"), [("shared", "alone"), ("alone", "shared"), ("alone", "alone")])
def test_who_wants_a_device_alone_waits_and_is_waited_for(holder, first, second):
    has = holder(first)
    assert has.says() == "got"
    wants = holder(second)
    assert wants.says() == f"waiting {first} (pid {has.process.pid})"
    has.leave()
    assert wants.says() == "got"


def test_another_device_is_free(holder):
    assert holder("alone", "gpu-0").says() == "got"
    assert holder("alone", "gpu-1").says() == "got"


def test_a_killed_holder_frees_the_device(holder):
    has = holder("alone")
    assert has.says() == "got"
    wants = holder("alone")
    assert wants.says().startswith("waiting")
    has.kill()
    assert wants.says() == "got"


def test_those_that_share_do_not_starve_who_waits_to_be_alone(holder):
    has = holder("shared")
    assert has.says() == "got"
    alone = holder("alone")
    assert alone.says().startswith("waiting")
    late = holder("shared")
    assert late.says().startswith("waiting shared")  # behind the one that waits, though it could share
    has.leave()
    assert alone.says() == "got"
    assert late.says() == f"waiting alone (pid {alone.process.pid})"
    alone.leave()
    assert late.says() == "got"


def test_who_gives_up_waiting_lets_the_others_through(holder):
    assert holder("shared").says() == "got"
    impatient = holder("alone")
    assert impatient.says().startswith("waiting")
    late = holder("shared")
    assert late.says().startswith("waiting")
    impatient.kill()
    assert late.says() == "got"


def test_a_lock_whose_file_was_removed_is_not_believed(holder, folder):
    has = holder("alone")
    assert has.says() == "got"
    wants = holder("alone")
    assert wants.says().startswith("waiting")
    for path in folder.iterdir():
        path.unlink()
    newer = holder("alone")
    assert newer.says() == "got"
    has.leave()
    assert wants.says() == f"waiting alone (pid {newer.process.pid})"
    newer.leave()
    assert wants.says() == "got"


def test_the_folder_is_ours_alone_and_at_the_same_place_for_every_job(folder, monkeypatch):
    with holding(["cpu"], "it", lambda _owner: None, alone=False):
        assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv(FOLDER)
    at_home = runtime_folder()
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert runtime_folder() == at_home and at_home.name == f"quantize-{os.getuid()}"


def _refused():
    with pytest.raises(QuantizeError) as caught, holding(["cpu"], "it", lambda _owner: None, alone=True):
        pass
    assert FOLDER in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "target").mkdir()
    folder.symlink_to(tmp_path / "target")
    assert "is a link or a file" in _refused()


def test_a_folder_that_others_may_write_into_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    assert "others may write" in _refused()


def test_a_lock_that_is_a_link_is_refused_and_what_it_names_is_left_alone(folder, tmp_path):
    folder.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("words")
    (folder / "cpu.lock").symlink_to(tmp_path / "precious")
    assert "cpu.lock cannot be opened" in _refused()
    assert (tmp_path / "precious").read_text() == "words"


def held(descriptor: int) -> Lease:
    return Lease(Path("/nowhere"), 1, 60.0, descriptor)


class Stage:
    """A stage whose process says in a file that it runs, and ends when another one is there."""

    def __init__(self, tmp_path, kind, name, *, alone=False):
        self.running, self.enough = tmp_path / f"{name}.running", tmp_path / f"{name}.enough"
        self.log = tmp_path / f"{name}.log"
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/sh\necho $$ > {self.running}\nuntil test -e {self.enough}; do sleep 0.05; done\n")
        script.chmod(0o755)
        self.spec = StageSpec(
            kind, name, "0" * 64, 1, {}, {}, {}, (), "cpu", {"script": script}, environment="script", alone=alone
        )
        self.told: list[str] = []
        self.store = tmp_path / "store"

    def run(self, descriptor):
        Local().run(self.spec, self.store, self.log, lambda what, *_: self.told.append(what), held(descriptor))

    def start(self, descriptor):
        self.thread = threading.Thread(target=self.run, args=(descriptor,))
        self.thread.start()

    def end(self):
        self.enough.touch()
        self.thread.join(20)
        assert not self.thread.is_alive()


def _until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.fixture
def lease(tmp_path):
    """The descriptor of some stage's lock."""
    with (tmp_path / "lease").open("w") as file:
        yield file.fileno()


def test_a_stage_that_measures_time_has_the_device_alone(tmp_path, lease):
    one, two = Stage(tmp_path, "evaluate", "one"), Stage(tmp_path, "quantize", "two")
    alone = Stage(tmp_path, "benchmark", "three", alone=True)
    free = Stage(tmp_path, "judge", "four")
    one.start(lease)
    two.start(lease)
    _until(lambda: one.running.exists() and two.running.exists())
    alone.start(lease)
    _until(lambda: alone.told)
    assert alone.told[0].startswith("waiting: device used by ") and str(os.getpid()) in alone.told[0]
    one.end()
    assert not alone.running.exists()
    two.end()
    _until(alone.running.exists)
    late = Stage(tmp_path, "evaluate", "five")
    late.start(lease)
    _until(lambda: late.told)
    free.start(lease)  # numbers are judged meanwhile
    _until(free.running.exists)
    assert late.told[0].startswith("waiting: device used by benchmark three") and not late.running.exists()
    free.end()
    alone.end()
    late.end()
    assert late.running.exists()


def test_a_stage_whose_driver_was_killed_still_has_its_device(tmp_path, holder):
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_alone import Stage\n"
        "Stage(Path(sys.argv[2]), 'benchmark', 'b', alone=True).run(os.open(os.devnull, os.O_RDONLY))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)])
    running = tmp_path / "b.running"
    _until(lambda: running.exists() and running.read_text().strip())
    driver.kill()
    driver.wait()
    wants = holder("alone")
    assert wants.says() == f"waiting benchmark b (pid {driver.pid})"
    os.kill(int(running.read_text()), signal.SIGKILL)
    # The shell's own child has inherited the lock as well, for a moment.
    assert wants.says() == "got"
