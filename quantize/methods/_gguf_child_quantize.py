"""Run in the llamacpp environment: `python -I THIS job.json` writes a GGUF file in other types, by llama.cpp itself.

`llama_model_quantize` is called through llama-cpp-python's own ctypes declarations. The job names types as llama.cpp
does; `importance` is an `.npz` of mean squared inputs, one float32 array (experts x columns) by tensor name. llama.cpp
reports each tensor as `[ 3/ 290]`, which the caller reads as progress. Imports nothing of the package: the environment
has numpy and llama-cpp-python, and no more is needed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

#: llama.cpp's key-value overrides hold at most 127 bytes of text.
_TEXT_BYTES = 127
_INTEGER, _TEXT = 0, 3  # LLAMA_KV_OVERRIDE_TYPE_INT, ..._STR


def main(job: dict[str, Any]) -> int:
    """Quantize; the status of llama.cpp, 0 when the file is whole."""
    import llama_cpp

    log = llama_cpp.llama_log_callback(lambda _level, text, _data: os.write(1, text) and None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _file_type(job["type"])
    params.nthread = job["threads"] or 0
    params.allow_requantize = job["requantize"]
    params.pure = job["pure"]
    for field, key in (("output_tensor_type", "output"), ("token_embedding_type", "token_embedding")):
        if job[key] is not None:
            setattr(params, field, getattr(llama_cpp, f"GGML_TYPE_{job[key]}"))
    kept: list[Any] = []  # what the parameters point at must live as long as they do
    if job["tensor_types"]:
        kept.append(_tensor_types(job["tensor_types"]))
        params.tt_overrides = ctypes.cast(kept[-1], type(params.tt_overrides))
    if job["metadata"]:
        kept.append(_metadata(job["metadata"]))
        params.kv_overrides = ctypes.cast(kept[-1], type(params.kv_overrides))
    if job["importance"] is not None:
        entries, arrays = _importance(Path(job["importance"]))
        kept += [entries, arrays]
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    return int(llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(params)))


def _file_type(name: str) -> int:
    """llama.cpp's `llama_ftype` of a name such as `Q4_K_M`."""
    import llama_cpp

    return int(getattr(llama_cpp, "LLAMA_FTYPE_ALL_F32" if name == "F32" else f"LLAMA_FTYPE_MOSTLY_{name}"))


def _tensor_types(types: dict[str, str]) -> Any:
    """Patterns and types, in their order, ended by an empty entry."""
    import llama_cpp

    overrides = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for entry, (pattern, name) in zip(overrides, types.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), getattr(llama_cpp, f"GGML_TYPE_{name}")
    overrides[len(types)].type = llama_cpp.GGML_TYPE_COUNT
    return overrides


def _metadata(values: dict[str, str | int]) -> Any:
    """Keys to set in the new file, ended by an entry without a key."""
    import llama_cpp

    overrides = (llama_cpp.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(overrides, values.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = _INTEGER, value
        else:
            entry.tag = _TEXT
            entry.value.val_str = value.encode()[:_TEXT_BYTES].decode(errors="ignore").encode()
    return overrides


def _importance(path: Path) -> tuple[Any, list[Any]]:
    """The matrix as llama.cpp takes it, ended by an entry without a name, and the memory that it points at."""
    import llama_cpp
    import numpy as np

    with np.load(path) as stored:
        arrays = {name: np.ascontiguousarray(stored[name], dtype=np.float32).reshape(-1) for name in stored.files}
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries, list(arrays.values())


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
