"""Files that cannot be a checkpoint, in one sentence each: what an engine says of them is seldom as clear."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["damage"]


def damage(checkpoint: Path) -> list[str]:
    """What of the checkpoint's weight files is missing, cut short or not finite. Reads every number once."""
    gguf = checkpoint / "model.gguf"
    if gguf.is_file():
        return _gguf_damage(gguf)
    index = checkpoint / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    lost = sorted(name for name in shards if not (checkpoint / name).is_file())
    if lost:
        return [f"the checkpoint lacks {len(lost)} of {len(shards)} weight files, {lost[0]} among them"]
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        return ["the checkpoint has no weight files"]
    return [sentence for path in files for sentence in _safetensors_damage(path)]


def _safetensors_damage(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    broken = []
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                # one byte of exponent and mantissa (FP8) has no isfinite of its own
                if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
                    broken.append(name)
    except (SafetensorError, OSError) as error:
        return [f"{path.name} is damaged or cut short: {error}"]
    if not broken:
        return []
    kind = "scales" if any("scale" in name or "absmax" in name or "SCB" in name for name in broken) else "weights"
    return [f"{len(broken)} tensors of {path.name} hold {kind} that are not finite, {broken[0]} among them"]


def _gguf_damage(path: Path) -> list[str]:
    from quantize import fingerprint

    try:
        projections, _ = fingerprint.of_gguf(path)
    except Exception as error:  # noqa: BLE001 - the reader raises whatever comes of bytes that are not there
        return [f"{path.name} is damaged or cut short: {error}"]
    broken = [name for name, projection in projections.items() if not bool(projection.isfinite().all())]
    if not broken:
        return []
    return [f"{len(broken)} tensors of {path.name} hold scales that are not finite, {broken[0]} among them"]
