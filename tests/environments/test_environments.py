"""Environments, made for real from pins of one small package that lies beside them: no network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from quantize import environments
from quantize.environments import making
from quantize.environments.keeping import alone
from quantize.errors import QuantizeError, UsageError

#: Where a creation may be killed, read from the source.
POINTS = re.findall(r'faults\.point\("(.+?)"\)', Path(making.__file__).read_text(encoding="utf-8"))

#: Makes `tiny` as the program does: SIGTERM is an exception there.
MAKE = """
import signal, sys
from pathlib import Path
from quantize.environments import create
from quantize.errors import Interrupted

def stop(*_):
    raise Interrupted("stopped")

signal.signal(signal.SIGTERM, stop)
create("tiny", lambda sentence: print(sentence, flush=True), pins=Path(sys.argv[1]))
"""

#: A module whose import takes a minute, and says where it is, if it is told to.
THING = """
import os, time
from pathlib import Path
if "THING_WAITS" in os.environ:
    Path(os.environ["THING_WAITS"]).write_text(str(os.getpid()))
    time.sleep(60)
"""


def wheel(folder: Path, version: str) -> Path:
    """The package `thing` as a wheel."""
    path = folder / f"thing-{version}-py3-none-any.whl"
    info = f"thing-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing.py", THING)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_pins(folder: Path, package: str, *, imports: str = "thing", more: str = "") -> Path:
    """Pins of the environment `tiny`."""
    folder.mkdir(exist_ok=True)
    lines = ['about = "for tests"', "gigabytes = 0.1", "minutes = 0.1", f'imports = ["{imports}"]', more]
    text = "\n".join([*lines, "[[steps]]", f'packages = ["{package}"]'])
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    (folder / "tiny.txt").write_text("# all of it\nthing==1.0\n", encoding="utf-8")
    return folder


def start(pins: Path, root: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, str(pins)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "QUANTIZE_ENVS": str(root), "PIP_NO_INDEX": "1", **variables},
    )


@pytest.fixture(scope="module")
def pins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pins")
    return write_pins(folder, str(wheel(folder, "1.0")))


@pytest.fixture(scope="module")
def first(pins, tmp_path_factory):
    """(root, what the two processes said that were asked for the same environment at the same time). Read only."""
    root = tmp_path_factory.mktemp("made")
    processes = [start(pins, root) for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return root, said


@pytest.fixture
def made(first, tmp_path, monkeypatch):
    """A copy of the root in which `tiny` is made, for this test alone."""
    root = shutil.copytree(first[0], tmp_path / "envs", symlinks=True)
    monkeypatch.setenv("QUANTIZE_ENVS", str(root))
    return root


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("tiny-*"))


def test_two_processes_that_want_one_environment_make_it_once(first):
    _, said = first
    assert sorted("made in" in text for text in said) == [False, True]
    assert next(text for text in said if "made in" not in text).count("waiting") == 1


def test_what_is_made_is_found_and_imports_its_packages(made, pins):
    found = environments.locate("tiny", pins=pins)
    assert found.source == "created"
    result = subprocess.run([found.python, "-I", "-c", "import thing; print(thing.__file__)"], capture_output=True)
    assert str(made).encode() in result.stdout
    record = json.loads((Path(found.place) / "environment.json").read_text())
    assert record["packages"]["thing"] == "1.0"
    assert record["bytes"] > 1e6


def test_what_is_made_is_not_made_again(made, pins):
    said: list[str] = []
    before = environments.locate("tiny", pins=pins)
    assert environments.create("tiny", said.append, pins=pins) == before
    assert said == []


def test_what_is_made_is_known_by_its_pins_and_by_all_that_is_installed(made, pins, monkeypatch, tmp_path):
    there = environments.locate("tiny", pins=pins)
    monkeypatch.setenv("QUANTIZE_ENVS", str(tmp_path / "elsewhere"))
    missing = environments.locate("tiny", pins=pins)
    assert missing.python is None
    assert missing.command == "quantize env create tiny"
    assert set(there.identity) == {"pins", "packages", "python", "options"}
    assert missing.identity == {"pins": there.identity["pins"]}


@pytest.mark.parametrize("changed", ["package", "constraint"])
def test_changed_pins_are_another_environment(made, pins, tmp_path, changed):
    other = shutil.copytree(pins, tmp_path / "pins")
    if changed == "package":
        write_pins(other, str(wheel(other, "1.1")))
    else:
        (other / "tiny.txt").write_text("thing==1.0\nunused==2\n", encoding="utf-8")
    before, after = environments.locate("tiny", pins=pins), environments.locate("tiny", pins=other)
    assert after.python is None
    assert after.identity != before.identity
    states = {entry.state: entry.place for entry in environments.entries(other)}
    assert states == {"missing": after.place, "outdated": before.place}
    assert environments.remove_outdated(pins=other) == [Path(before.place)]
    assert folders(made) == []


def test_words_about_the_pins_are_not_in_the_key(pins, tmp_path):
    other = shutil.copytree(pins, tmp_path / "pins")
    text = (other / "tiny.toml").read_text(encoding="utf-8")
    (other / "tiny.toml").write_text(text.replace("for tests", "for others").replace("0.1", "0.2"), encoding="utf-8")
    assert environments.read("tiny", other).key == environments.read("tiny", pins).key


def gone(pid: int) -> bool:
    """Whether a process ends within the guard's grace."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_creation_leaves_nothing(empty, pins, tmp_path, how):
    waits = tmp_path / "waits"
    process = start(pins, empty, THING_WAITS=str(waits))
    while not waits.exists() or not waits.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    assert len(folders(empty)) == 1, "it is under way"
    assert environments.entries(pins)[0].state == "being made"
    with pytest.raises(QuantizeError, match="is making tiny"):
        environments.remove("tiny", pins=pins)
    process.send_signal(how)
    process.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert folders(empty) == []
    assert environments.locate("tiny", pins=pins).python is None
    assert environments.entries(pins)[0].state == "missing"
    environments.clean()
    assert folders(empty) == []
    assert gone(int(waits.read_text())), "what it had started ends with it"


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_creation_that_is_killed_at_any_point_is_made_by_the_next(empty, pins, point):
    process = start(pins, empty, QUANTIZE_FAULT=point)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, f"the point {point} was never reached"
    assert len(folders(empty)) == 1
    assert environments.locate("tiny", pins=pins).python is None
    said: list[str] = []
    found = environments.create("tiny", said.append, pins=pins)
    assert found.python is not None
    assert found.python.exists()
    assert environments.locate("tiny", pins=pins) == found


def test_an_environment_that_is_being_made_is_not_swept_away(made, pins):
    half = made / f"tiny-{'0' * 12}"
    half.mkdir()
    with alone("tiny", None):
        environments.clean()
        assert half.exists()
    environments.clean()
    assert not half.exists()
    assert environments.locate("tiny", pins=pins).python is not None


def test_an_environment_whose_python_was_removed_is_missing(made, pins):
    python = environments.locate("tiny", pins=pins).python
    assert python is not None
    python.unlink()
    python.symlink_to(made / "python-of-last-year")
    assert environments.locate("tiny", pins=pins).python is None


@pytest.mark.slow
def test_a_step_that_fails_says_why_and_leaves_nothing_but_its_log(empty, tmp_path):
    bad = write_pins(tmp_path / "pins", "thing==1.0")
    with pytest.raises(QuantizeError) as caught:
        environments.create("tiny", lambda _: None, pins=bad)
    assert "step 2 (thing==1.0)" in caught.value.what
    assert "does not offer what is pinned" in caught.value.what
    assert "ERROR" in Path(caught.value.where or "").read_text(encoding="utf-8")
    assert folders(empty) == []


@pytest.mark.slow
def test_without_a_network_the_error_says_so(empty, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    for variable, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(QuantizeError, match="the package index cannot be reached"):
        environments.create("tiny", lambda _: None, pins=write_pins(tmp_path / "pins", "thing==1.0"))
    assert folders(empty) == []


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ('[needs]\npython_below = "3.11"', "needs a Python older than 3.11"),
        ("[needs]\ncuda = false", "takes about"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(empty, tmp_path, more, sentence):
    bad = write_pins(tmp_path / "pins", "thing==1.0", more=more)
    if sentence == "takes about":
        text = (bad / "tiny.toml").read_text(encoding="utf-8")
        (bad / "tiny.toml").write_text(text.replace("gigabytes = 0.1", "gigabytes = 1e6"), encoding="utf-8")
    said: list[str] = []
    with pytest.raises(QuantizeError, match=sentence):
        environments.create("tiny", said.append, pins=bad)
    assert said == []
    assert folders(empty) == []


def test_remove_removes_all_that_was_made_of_it(made, pins):
    older = made / f"tiny-{'0' * 12}"
    shutil.copytree(environments.locate("tiny", pins=pins).place, older, symlinks=True)
    there = folders(made)
    assert len(there) == 2
    assert environments.remove("tiny", pins=pins) == [made / name for name in there]
    assert folders(made) == []
    assert environments.remove("tiny", pins=pins) == []


def counting(folder: Path, python: Path) -> tuple[Path, Path]:
    """(an interpreter that notes each start, its notes)."""
    notes = folder / "started"
    script = folder / "python"
    script.write_text(f'#!/bin/sh\necho >> {notes}\nexec {python} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script, notes


@pytest.mark.parametrize("source", ["variable", "recipe"])
def test_a_named_interpreter_is_known_by_its_packages_and_asked_once(made, pins, tmp_path, monkeypatch, source):
    own = environments.locate("tiny", pins=pins)
    assert own.python is not None
    python, notes = counting(tmp_path, own.python)
    named = {"tiny": str(python)} if source == "recipe" else {}
    if source == "variable":
        monkeypatch.setenv("QUANTIZE_ENV_TINY", str(python))
    found = environments.locate("tiny", named, pins=pins)
    assert (found.source, found.python) == (source, python)
    assert set(found.identity) == {"packages"}
    assert environments.locate("tiny", named, pins=pins) == found
    assert notes.read_text().count("\n") == 1
    (site,) = Path(own.place).glob("lib/python*/site-packages")
    (site / "more-2.0.dist-info").mkdir()
    (site / "more-2.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 2.0\n")
    assert environments.locate("tiny", named, pins=pins).identity != found.identity
    assert notes.read_text().count("\n") == 2


def test_the_recipe_comes_before_the_variable_and_a_folder_means_its_interpreter(made, pins, monkeypatch):
    place = environments.locate("tiny", pins=pins).place
    monkeypatch.setenv("QUANTIZE_ENV_TINY", sys.executable)
    found = environments.locate("tiny", {"tiny": place}, pins=pins)
    assert (found.source, found.python) == ("recipe", Path(place) / "bin" / "python")
    assert environments.entries(pins)[0].state == "named"


@pytest.mark.parametrize("source", ["variable", "recipe"])
@pytest.mark.parametrize("what", ["nothing", "not a Python", "an old Python"])
def test_a_wrong_interpreter_is_refused_where_it_is_named(empty, pins, tmp_path, monkeypatch, what, source):
    path = tmp_path / "python"
    if what != "nothing":
        answer = {"python": [3, 8, 1], "paths": [], "packages": {}}
        said = json.dumps(answer) if what == "an old Python" else "hello"
        path.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("QUANTIZE_ENV_TINY", str(path))
    with pytest.raises(UsageError) as caught:
        environments.locate("tiny", {"tiny": str(path)} if source == "recipe" else {}, pins=pins)
    assert caught.value.where == ("environments.tiny" if source == "recipe" else "QUANTIZE_ENV_TINY")
    assert str(path) in caught.value.what
    assert "remove `environments.tiny`" in str(caught.value) or "quantize env create tiny" in str(caught.value)
    entry = environments.entries(pins)[0]
    assert (entry.state, entry.place) == ("wrong", "QUANTIZE_ENV_TINY")


@pytest.mark.parametrize(("name", "near"), [("vllm_cpu", "vllm-cpu"), ("lamacpp", "llamacpp"), ("AutoAWQ", "autoawq")])
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        environments.locate(name)
