"""Fingerprints of the quantized weights, in memory and in the checkpoint's files."""

from __future__ import annotations

from pathlib import Path

from quantize.proof.result import Numbers
from quantize.proof.witness import Witness

__all__ = ["weight_differences"]


def weight_differences(checkpoint: Path, witness: Witness, numbers: Numbers) -> list[str]:
    """Fills `numbers`, returns what is wrong."""
    from quantize import fingerprint

    expected = witness.fingerprints
    found = fingerprint.on_disk(checkpoint, witness.layouts, witness.dtype)
    numbers["fingerprints"] = len(found)
    # An architecture whose tensors have other names on disk than its modules in memory: the answers must do.
    if not found:
        return []
    missing = sorted(set(expected) - set(found))
    if missing:
        return [f"the checkpoint lacks {len(missing)} of {len(expected)} quantized Linears, {missing[0]} among them"]
    shapes = sorted(name for name in expected if found[name].shape != expected[name].shape)
    if shapes:
        return [f"{len(shapes)} of {len(expected)} quantized Linears have another shape on disk, {shapes[0]} first"]
    apart = {name: float((found[name] - t).norm() / t.norm().clamp_min(1e-30)) for name, t in expected.items()}
    limits = {name: fingerprint.LIMITS[witness.layouts[name]["kind"]] for name in expected}
    numbers |= {"fingerprint_difference": max(apart.values()), "fingerprint_limit": max(limits.values())}
    wrong = {name: value for name, value in apart.items() if not value <= limits[name]}
    if not wrong:
        return []
    worst = max(wrong, key=lambda name: wrong[name])
    sentence = (
        f"{len(wrong)} of {len(expected)} quantized Linears have other weights on disk than they had in memory; "
        f"the worst is {worst}, {wrong[worst]:.1%} apart"
    )
    return [sentence]
