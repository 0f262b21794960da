"""Where a library of ours does not run, or goes wrong, without an accelerator, although nothing in its work needs one.

Each shim names the symptom, the versions that have it, and changes nothing anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

__all__ = ["autoawq_without_accelerator", "awq_without_accelerator"]

_AFFECTED = ("0.14.",)
_AFFECTED_AUTOAWQ = ("0.2.",)


@contextmanager
def awq_without_accelerator() -> Iterator[None]:
    """Let llm-compressor 0.14's AWQ run on a machine without an accelerator.

    Symptom: `RuntimeError: Cannot access accelerator device when none is available`, raised by `Tensor.pin_memory()`
    in `llmcompressor.pipelines.cache.IntermediatesCache.pin_memory`, which AWQ calls for each of its cached inputs.
    Pinning only speeds up copies to an accelerator, so that without one leaving it out changes no number. With an
    accelerator, and with any other version, this does nothing.
    """
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available() or not version("llmcompressor").startswith(_AFFECTED):
        yield
        return
    original = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original


@contextmanager
def autoawq_without_accelerator() -> Iterator[None]:
    """Let AutoAWQ 0.2's search leave the weights as they were on a machine without an accelerator.

    Symptom: no error, but bad answers (a tiny Llama in 4 bits: a KL divergence 20 times that of rounding to nearest).
    `awq.quantize.quantizer.AwqQuantizer._compute_best_scale` keeps the weights of a block as `state_dict()` on the CPU,
    multiplies them in place by the scales that it tries, and puts back what it kept. From an accelerator that is a
    copy; on the CPU it is the same memory, so that what is put back has been multiplied by the first scales. Here it is
    given a copy. With an accelerator, and with any other version, this does nothing.
    """
    import torch
    from awq.quantize.quantizer import AwqQuantizer

    if torch.accelerator.is_available() or not version("autoawq").startswith(_AFFECTED_AUTOAWQ):
        yield
        return
    original = AwqQuantizer._compute_best_scale  # noqa: SLF001 (there is no public way in between)

    def search(self: Any, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *rest: Any) -> Any:
        kept = {name: tensor.clone() for name, tensor in module2inspect.state_dict().items()}
        module2inspect.state_dict = lambda: kept
        try:
            return original(self, x, w_mean, x_mean, module2inspect, *rest)
        finally:
            del module2inspect.state_dict

    AwqQuantizer._compute_best_scale = search  # noqa: SLF001
    try:
        yield
    finally:
        AwqQuantizer._compute_best_scale = original  # noqa: SLF001
