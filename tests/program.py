"""The program as a process, and a small recipe for the tiny Llama: what tests of the whole program share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import run_program

from quantize.errors import RecipeError
from quantize.recipe import load
from quantize.store import Store

TINY = Path(__file__).parent / "tiny_llama"

#: One thread: on a tiny model the cost of threads is far above what they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    """What is read when a process starts or a library is imported, and never again."""
    read = ("PYTHON", "LD_", "OMP_", "HF_", "TRANSFORMERS_", "CUDA_")
    return {name: value for name, value in environment.items() if name.startswith(read)}


_READ_ONCE = _read_once(os.environ)


def tiny_recipe(**changes: Any) -> dict[str, Any]:
    """A recipe for the tiny Llama: one data-free variant, one eval. `changes` replace top-level keys.

    The noise floor, which measures the baseline once more, is off: most tests are about something else.
    """
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": {"kind": "directory", "path": str(TINY / "checkpoint")},
        "variants": [{"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}}],
        "evals": [{"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")}],
        "gates": [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.05}],
        "registry": {"kind": "mlflow", "name": "tiny", "targets": {"production": {"from": ["int8"]}}},
        "resources": {"device": "cpu"},
        "noise_floor": False,
    }
    return {**recipe, **changes}


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe into `folder`."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def command(*arguments: str | Path, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program and wait for it, `seconds` at most; forked, where no more is asked than a fork can give."""
    everything = {**os.environ, **environment}
    if _read_once(everything) == _READ_ONCE:
        return run_program(list(map(str, arguments)), everything, seconds)
    return subprocess.run(
        [sys.executable, "-m", "quantize", *map(str, arguments)],
        env=everything,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The program in the background, with its standard error to read from."""
    return subprocess.Popen(
        [sys.executable, "-m", "quantize", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read standard error up to a line that holds `text`."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} was never printed, but {''.join(seen)}")


def state(pid: int) -> str:
    """The kernel's letter for a process: R, S, T (stopped), Z (dead, not buried yet); empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    return state(pid) not in ("", "Z")


def stopped_worker(driver: subprocess.Popen[str]) -> int:
    """The worker of a driver that a fault point has stopped, once it is."""
    deadline = time.monotonic() + 120
    while not (found := [pid for pid in workers_of(driver) if state(pid) == "T"]):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.01)
    return found[0]


def kill_at_once(driver: subprocess.Popen[str]) -> None:
    """Kill a driver and its workers together, as a node that is lost takes all."""
    workers = workers_of(driver)
    assert workers
    for pid in (driver.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    driver.communicate()
    while any(alive(pid) for pid in workers):
        time.sleep(0.01)


def below(pid: int) -> list[int]:
    """A process's children, their children, and so on."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for found in threads for child in found.read_text(encoding="utf-8").split()]
    return [*children, *(deeper for child in children for deeper in below(child))]


def workers_of(driver: subprocess.Popen[str]) -> list[int]:
    """The processes of a driver's stages, and those that they were forked from; not what they started themselves."""
    programs = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below(driver.pid)}
    return [pid for pid, program in programs.items() if b"quantize.worker" in program or b"quantize.fork" in program]


def contents(store: Path) -> dict[str, str]:
    """Key -> digest of the bytes of everything that is committed in a store."""
    return {manifest.key: manifest.content_digest() for _, manifest in Store(store).manifests()}


def commits(store: Path) -> dict[Path, tuple[int, int]]:
    """Of every artifact in a store, which file its manifest is and when it was written."""
    found = {path: path.stat() for path in store.glob("*/*/manifest.json")}
    return {path: (manifest.st_ino, manifest.st_mtime_ns) for path, manifest in found.items()}


def seldom(values: Iterable[Any], often: Collection[Any]) -> list[Any]:
    """Parameters of a test that takes long: those of `often` in the quick suite, the others in the slow one."""
    slow = pytest.mark.slow
    return [value if value in often else pytest.param(value, marks=slow) for value in values]


def problems_of(path: Path, *overrides: str) -> list[str]:
    """The problems that loading tells, each with the recipe's own path as its first word where it has a line."""
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return [problem.replace(str(path), "recipe.yaml") for problem in caught.value.problems]
