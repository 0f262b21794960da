"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from program import TINY, command, tiny_recipe, write_recipe

from quantize.environments import locate


@pytest.fixture(scope="session", autouse=True)
def own_device_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that run beside each other must not wait for each other's devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTIZE_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A finished run of three variants on the tiny Llama: (store, its JSON document, recipe). Read only.

    It is one for all processes that run tests beside each other.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    path, told = folder / "recipe.yaml", folder / "told.json"
    with FileLock(f"{folder}.lock"):
        if not told.exists():
            folder.mkdir()
            told.write_text(_finish(folder), encoding="utf-8")
    return folder / "store", json.loads(told.read_text(encoding="utf-8")), path


def _finish(folder: Path) -> str:
    """Run it in `folder`, and give what it prints."""
    recipe = tiny_recipe(
        calibration={"kind": "self", "samples": 16, "tokens": 128},
        variants=[
            {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}},
            {"name": "int4-gptq", "scheme": "W4A16", "method": {"kind": "gptq"}},
        ],
        evals=[
            {"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")},
            {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")},
        ],
        registry={
            "kind": "mlflow",
            "name": "tiny",
            "targets": {"production": {"from": ["int8", "int4-gptq"], "prefer": "bytes"}},
        },
    )
    result = command("run", write_recipe(folder, recipe), "--store", folder / "store", "--json")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def environment() -> Callable[[str], Path]:
    """The interpreter of an environment. A test is skipped by name where it is not made, and fails where it must be."""

    def interpreter(name: str) -> Path:
        python = locate(name).python
        if python is None:
            sentence = f"the environment {name} is not made (quantize env create {name})"
            if os.environ.get("QUANTIZE_ENVIRONMENTS") == "required":
                pytest.fail(sentence)
            pytest.skip(sentence)
        return python

    return interpreter


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any], Path], tmp_path: Path) -> Path:
    """A copy of the finished store that a test may damage. (Its MLflow database points at the original's files.)"""
    shutil.copytree(finished[0], tmp_path / "store", symlinks=True)
    return tmp_path / "store"


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Path]:
    """A recipe file with changes."""
    return lambda **changes: write_recipe(tmp_path, tiny_recipe(**changes))


@pytest.fixture(scope="session")
def judge_server() -> Iterator[str]:
    """The address of a judge with rules instead of a model, in a process of its own (`scorers/judge_server.py`)."""
    script = Path(__file__).parent / "scorers" / "judge_server.py"
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.wait()
    process.stdout.close()
