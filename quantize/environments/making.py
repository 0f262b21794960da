"""Make environments.

A virtual environment cannot be moved, so it is built where it will lie; `environment.json`, written last and by
renaming, is what makes it visible. pip runs with this machine's own configuration and nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from quantize import faults
from quantize.child import Child, died
from quantize.environments.interpreter import Installed, ask
from quantize.environments.keeping import Note, alone, discard, reporting, sweep
from quantize.environments.pins import SHIPPED, Pins, read
from quantize.environments.places import RECORD, Environment, Made, created, directory, read_made, root
from quantize.errors import QuantizeError, UsageError

__all__ = ["create"]

_QUIET = ("--disable-pip-version-check", "--no-input")
#: Variables that would let another interpreter's packages in, or send pip's elsewhere.
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")
#: Variables that packages which are compiled here look at.
_OPTIONS = ("CMAKE_ARGS",)
_UNREACHABLE = r"name resolution|Name or service not known|NewConnectionError|Connection refused|unreachable|timed out"
_NO_COMPILER = r"CMAKE_CX*_COMPILER|CMake Error|command '.*(gcc|g\+\+|cc|clang)' failed|[Uu]nable to find a compiler"
_KNOWN_CAUSES = {
    r"No space left on device|Disk quota exceeded": (
        "the disk is full: free some space, or set QUANTIZE_ENVS (environments) or TMPDIR (builds) to another one"
    ),
    _UNREACHABLE: ("the package index cannot be reached: see the network and `pip config list`, then run it again"),
    # pip tells the second where the version is asked for by the step and by its constraints, as ours are.
    r"No matching distribution found|ResolutionImpossible": (
        "the index of this machine's pip configuration does not offer what is pinned for this Python: see "
        "`pip config list`, or name an existing interpreter by the environment's variable"
    ),
    _NO_COMPILER: (
        "a package is compiled here, which needs a C and C++ compiler (Debian, Ubuntu: apt install build-essential)"
    ),
    r"ensurepip is not|No module named venv": (
        "this Python makes no virtual environments (Debian, Ubuntu: apt install python3-venv); --python names another"
    ),
    r"Permission denied|Read-only file system": (
        "it may not be written there: set QUANTIZE_ENVS to a folder of your own"
    ),
}


def create(
    name: str, note: Note, *, force: bool = False, python: Path | None = None, pins: Path = SHIPPED
) -> Environment:
    """Make an environment, unless it is made already (`force` makes it anew), and say where it is.

    `python` is the interpreter to make it with, else the program's own. Waits while another process makes it. Raises
    QuantizeError with the log's tail where a step fails; then, and on an interrupt, nothing is left but the logs.
    """
    what = read(name, pins)
    place = directory(what)
    with reporting(), alone(name, note):
        sweep(name)
        if force or read_made(place) is None:
            python = python or Path(sys.executable)
            _check(what, python)
            discard(place)
            try:
                _build(what, place, python, note)
            except BaseException:
                discard(place)
                raise
    return created(what)


def _build(what: Pins, place: Path, python: Path, note: Note) -> None:
    """All steps, and the record last."""
    started = time.monotonic()
    note(f"{what.name}: making {place} (about {what.gigabytes:g} GB, {what.minutes:g} minutes on two cores)")
    logs = root() / "logs" / what.name
    shutil.rmtree(logs, ignore_errors=True)
    own = place / "bin" / "python"
    pip = (own, "-m", "pip", *_QUIET)
    steps: list[tuple[str, Sequence[str | Path]]] = [("virtual environment", (python, "-m", "venv", place))]
    constraints = logs / "constraints.txt"
    for step in what.steps:
        options = () if step.isolated else ("--no-build-isolation",)
        install = (*pip, "install", "--progress-bar", "off", *options, "-c", constraints, *step.packages)
        steps.append((" ".join(step.packages), install))
    if what.remove:
        steps.append((f"without {' '.join(what.remove)}", (*pip, "uninstall", "--yes", *what.remove)))
    steps.append(("imports", (own, "-I", "-c", "\n".join(f"import {module}" for module in what.imports))))
    logs.mkdir(parents=True)
    constraints.write_text("".join(f"{line}\n" for line in what.constraints), encoding="utf-8")
    for number, (title, command) in enumerate(steps, 1):
        note(f"{what.name}: step {number} of {len(steps)}: {title}")
        _run(command, logs / f"{number}.log", f"{what.name}, step {number} ({title})")
        faults.point("environments.step")
    answer = ask(own, str(own), f"Remove {place} and make it again.")
    _record(what, place, answer, time.monotonic() - started)
    note(f"{what.name}: made in {time.monotonic() - started:.0f} s")


def _record(what: Pins, place: Path, answer: Installed, seconds: float) -> None:
    size = sum(path.lstat().st_size for path in place.rglob("*") if not path.is_symlink() and path.is_file())
    record = Made(
        name=what.name,
        pins=what.key,
        packages=answer.packages,
        python=answer.version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        bytes=size,
        options={name: os.environ[name] for name in _OPTIONS if os.environ.get(name)},
    )
    part = place / f"{RECORD}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    faults.point("environments.recorded")
    part.replace(place / RECORD)


def _check(what: Pins, python: Path) -> None:
    """Refuse what cannot work, before anything is fetched."""
    answer = ask(python, "--python", "Name another interpreter.")
    below = what.needs.python_below
    if below is not None and answer.python[:2] >= tuple(map(int, below.split("."))):
        raise UsageError(
            f"{what.name} needs a Python older than {below}; {python} is {answer.version}.",
            fix=f"Name one: quantize env create {what.name} --python /path/to/python",
        )
    root().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root()).free
    if free < what.gigabytes * 1e9:
        raise QuantizeError(
            f"{what.name} takes about {what.gigabytes:g} GB; {free / 1e9:.1f} GB are free.",
            where=str(root()),
            fix="Free some space, or set QUANTIZE_ENVS to a folder on another disk.",
        )


def _run(command: Sequence[str | Path], log: Path, what: str) -> None:
    env = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
    with Child(command, log, env=env, what=what) as child:
        if child.wait(None) != 0:
            raise died(child, _KNOWN_CAUSES)
