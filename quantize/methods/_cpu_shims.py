"""Where a library of ours does not run without an accelerator, although nothing in its work needs one.

Each shim names the symptom, the versions that have it, and changes nothing anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

__all__ = ["awq_without_accelerator"]

_AFFECTED = ("0.14.",)


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
