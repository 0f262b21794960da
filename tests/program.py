"""The program as a process, and a small recipe for the tiny Llama: what tests of the whole program share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
