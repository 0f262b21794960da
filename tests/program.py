"""The program as a process, and a small recipe for the tiny Llama: what tests of the whole program share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantize.errors import RecipeError
from quantize.recipe import load

TINY = Path(__file__).parent / "tiny_llama"

#: One thread: on a tiny model the cost of threads is far above what they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
    """Run the program and wait for it, `seconds` at most."""
    return subprocess.run(
        [sys.executable, "-m", "quantize", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The program in the background, with its standard error to read from."""
    return subprocess.Popen(
        [sys.executable, "-m", "quantize", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read standard error up to a line that holds `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"{text!r} was never printed")


def problems_of(path: Path, *overrides: str) -> list[str]:
    """The problems that loading tells, each with the recipe's own path as its first word where it has a line."""
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return [problem.replace(str(path), "recipe.yaml") for problem in caught.value.problems]
