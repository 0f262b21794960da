"""What all tests share: the program as a process, and a small recipe for the tiny Llama."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY = Path(__file__).parent / "tiny_llama"

#: One thread: on a tiny model the cost of threads is far above what they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def tiny_recipe(**changes: Any) -> dict[str, Any]:
    """A recipe for the tiny Llama: one data-free variant, two evals. `changes` replace top-level keys."""
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": {"kind": "directory", "path": str(TINY / "checkpoint")},
        "variants": [{"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}}],
        "evals": [{"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")}],
        "gates": [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.05}],
        "registry": {"kind": "mlflow", "name": "tiny", "targets": {"production": {"from": ["int8"]}}},
        "resources": {"device": "cpu"},
    }
    return {**recipe, **changes}


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe into `folder`."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "quantize", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A finished run of three variants on the tiny Llama: (store, its JSON document, recipe). Read only."""
    folder = tmp_path_factory.mktemp("finished")
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
    path = write_recipe(folder, recipe)
    result = command("run", path, "--store", folder / "store", "--json")
    assert result.returncode == 0, result.stderr
    return folder / "store", json.loads(result.stdout), path


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any], Path], tmp_path: Path) -> Path:
    """A copy of the finished store that a test may damage. (Its MLflow database points at the original's files.)"""
    shutil.copytree(finished[0], tmp_path / "store", symlinks=True)
    return tmp_path / "store"


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Path]:
    """A recipe file with changes."""
    return lambda **changes: write_recipe(tmp_path, tiny_recipe(**changes))
