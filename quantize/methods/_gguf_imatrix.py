"""Importance matrices: how much each input column of a weight matters, from calibration tokens.

A rounding error in column j costs, in the layer's output, in proportion to the mean square of input j. llama.cpp's
quantizers weigh errors with it. The sums come from llama.cpp's own computation of the unquantized model, and are kept
in llama.cpp's own file, so that `llama-imatrix` and `llama-quantize` read it too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import QuantizeError
from quantize.gguf_file import gguf_reader
from quantize.handed import Host, Progress
from quantize.methods._gguf_call import call, write_job

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["collect_imatrix", "read_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASET = "calibration tokens"


def collect_imatrix(
    full: Path, tokens: Sequence[torch.Tensor], out: Path, device: str, host: Host, progress: Progress
) -> dict[str, Any]:
    """Run `tokens`, rows of int64 ids, through the GGUF file `full` and write the importance matrix `out`.

    On a GPU where `device` is one and llama.cpp was built for it. Returns how much was measured. Raises QuantizeError
    when llama.cpp fails, or when a sum is not finite.
    """
    import numpy as np

    lengths = [len(row) for row in tokens]
    with tempfile.TemporaryDirectory() as folder:
        rows, sums = Path(folder) / "tokens.npy", Path(folder) / "sums.npz"
        np.save(rows, np.concatenate([row.numpy() for row in tokens]).astype(np.int64))
        job = {
            "model": str(full.resolve()),
            "tokens": str(rows),
            "lengths": lengths,
            "out": str(sums),
            "threads": host.threads,
            "gpu_layers": 0 if device == "cpu" else -1,
        }
        arguments = [write_job(Path(folder), job)]
        call(host, "_gguf_child_imatrix.py", arguments, what="measuring importance", progress=progress)
        with np.load(sums) as stored:
            arrays = {name: stored[name] for name in stored.files}
    _check(arrays, full)
    _write(out, arrays, len(lengths), max(lengths))
    return {"tensors": len(arrays) // 2, "samples": len(lengths), "tokens": max(lengths)}


def _check(arrays: dict[str, np.ndarray[Any, Any]], full: Path) -> None:
    import numpy as np

    damaged = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if damaged or not arrays:
        what = f"the inputs of {damaged[0].removesuffix(_SUMS)} are not finite" if damaged else "no weight was used"
        raise QuantizeError(
            f"{what} when the calibration tokens run through the model.",
            where=str(full),
            fix="Check that the unquantized model works in llama.cpp; large activations may need dtype F32.",
        )


def _write(out: Path, arrays: dict[str, np.ndarray[Any, Any]], samples: int, length: int) -> None:
    """As `llama-imatrix` does: float32 sums (experts, columns) and counts (experts, 1), in the order of their names."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(out, arch="")
    writer.kv_data[0].pop("general.architecture", None)  # no model: the file says what it is instead
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [_DATASET])
    writer.add_uint32("imatrix.chunk_count", samples)
    writer.add_uint32("imatrix.chunk_size", length)
    for name in sorted(arrays):
        array = arrays[name].astype(np.float32)
        writer.add_tensor(name, array.reshape(-1, 1) if name.endswith(_COUNTS) else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Mean squared inputs by tensor name, float32 (experts, columns); ones for an expert that no token was sent to."""
    import numpy as np

    tensors = {tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in gguf_reader(path).tensors}
    means = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        base = name.removesuffix(_SUMS)
        counts = tensors[base + _COUNTS].reshape(-1, 1)
        mean = sums.reshape(len(counts), -1) / np.maximum(counts, 1)
        means[base] = np.where(counts > 0, mean, np.float32(1))
    return means
