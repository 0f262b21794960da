"""Run in the llamacpp environment: `python -I THIS job.json` measures what the inputs of every weight matrix weigh.

llama.cpp computes a graph node by node and asks a callback which results it wants to see. For every product of a weight
matrix with activations, the activations' squares are summed per input column: the diagonal of the layer's Hessian up to
a factor, which is what `llama_model_quantize` weighs rounding errors with. In a mixture of experts each expert has sums
of its own, over the tokens that were sent to it.

Writes an `.npz` with `<tensor>.in_sum2` float64 (experts, columns) and `<tensor>.counts` int64 (experts): the sums, and
the tokens that they are over. Imports nothing of the package. Structures are those of ggml 0.2x; that they still are
where they were is checked on every tensor.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Collector", "Tensor", "main"]

_DIMENSIONS, _SOURCES, _NAME_BYTES, _PARAMETERS = 4, 10, 64, 16
_F32 = 0
#: Longer prompts are computed in pieces of so many tokens; only memory depends on it.
_PIECE = 512


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` as far as its name."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _DIMENSIONS),
        ("nb", ctypes.c_size_t * _DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * _PARAMETERS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME_BYTES),
    ]


class Collector:
    """Sums by weight name; `callback` is for `cb_eval`. An exception in it is kept in `error`, and ends the graph."""

    def __init__(self, ggml: ctypes.CDLL) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._ggml = ggml
        self._last: tuple[int, Any] = (0, None)
        ggml.ggml_op_name.restype = ctypes.c_char_p
        ggml.ggml_get_name.restype = ctypes.c_void_p
        ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
        ggml.ggml_nbytes.restype = ctypes.c_size_t
        ggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_tensor_get.restype = None
        ggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

    def forget(self) -> None:
        """Before a new graph: its tensors may lie where others lay."""
        self._last = (0, None)

    def callback(self, address: int, ask: bool, _data: Any) -> bool:
        """`ask`: whether this node's result is wanted. Otherwise: it is there; False would end the graph."""
        try:
            node = self._tensor(address)
            wanted = self._wanted(node)
            if wanted and not ask:
                self._add(node)
        except BaseException as error:  # noqa: BLE001 (it must not travel through llama.cpp's frames)
            self.error = self.error or error
            return False
        return wanted or not ask

    def _tensor(self, address: int) -> Tensor:
        tensor = Tensor.from_address(address)
        if self._ggml.ggml_get_name(address) != address + Tensor.name.offset:
            raise RuntimeError("this build of llama.cpp lays its tensors out differently: pin llama-cpp-python 0.3.36")
        return tensor

    def _operation(self, node: Tensor) -> str:
        return str(self._ggml.ggml_op_name(node.op).decode())

    def _wanted(self, node: Tensor) -> bool:
        if self._operation(node) not in ("MUL_MAT", "MUL_MAT_ID"):
            return False
        return bool(self._tensor(node.src[0]).name.endswith(b".weight"))

    def _read(self, address: int, dtype: Any) -> Any:
        """A strided view of a tensor's numbers, slowest dimension first, wherever its device is."""
        import numpy as np

        tensor = self._tensor(address)
        size = self._ggml.ggml_nbytes(address)
        buffer = np.empty(size, dtype=np.uint8)
        self._ggml.ggml_backend_tensor_get(address, buffer.ctypes.data, 0, size)
        shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
        return np.ndarray(shape, dtype, buffer, 0, strides)

    def _add(self, node: Tensor) -> None:
        import numpy as np

        weight, inputs = self._tensor(node.src[0]), node.src[1]
        if self._tensor(inputs).type != _F32:
            raise RuntimeError(f"the inputs of {weight.name.decode()} are not float32")
        if self._last[0] != inputs:  # query, key and value, gate and up: one input each
            self._last = (inputs, np.square(self._read(inputs, np.float32), dtype=np.float64))
        squares = self._last[1]
        name, columns, experts = weight.name.decode(), weight.ne[0], weight.ne[2]
        sums = self.sums.setdefault(name, np.zeros((experts, columns)))
        counts = self.counts.setdefault(name, np.zeros(experts, dtype=np.int64))
        if self._operation(node) == "MUL_MAT":
            sums += squares.reshape(-1, columns).sum(0)
            counts += squares.size // columns
            return
        chosen = self._read(node.src[2], np.int32)[0, 0]  # (tokens, experts used)
        for slot in range(chosen.shape[1]):
            of_slot = squares[
                0, :, slot % squares.shape[2]
            ]  # (tokens, columns); one row serves all experts, or each its own
            np.add.at(sums, chosen[:, slot], of_slot)
            np.add.at(counts, chosen[:, slot], 1)


def main(job: dict[str, Any]) -> None:
    """Run every row of tokens through the model, and save the sums. The rows lie end to end."""
    import llama_cpp
    import numpy as np

    tokens = np.load(job["tokens"])
    log = llama_cpp.llama_log_callback(lambda _level, text, _data: os.write(1, text) and None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    library = next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base*"))
    collector = Collector(ctypes.CDLL(str(library)))
    callback = llama_cpp.ggml_backend_sched_eval_callback(collector.callback)
    context, model = _open(job, max(job["lengths"]), callback)
    ends = np.cumsum(job["lengths"])
    for number, row in enumerate(np.split(tokens, ends[:-1])):
        _run(context, row, collector)
        os.write(1, f"[ {number + 1}/ {len(ends)}]\n".encode())
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    arrays = {f"{name}.in_sum2": sums for name, sums in collector.sums.items()}
    arrays |= {f"{name}.counts": counts for name, counts in collector.counts.items()}
    np.savez(job["out"], **arrays)


def _open(job: dict[str, Any], tokens: int, callback: Callable[..., Any]) -> tuple[Any, Any]:
    """A context whose keys and values stay float32: the cache's usual float16 would be another model's sums."""
    import llama_cpp

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = job["gpu_layers"]
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), params)
    if not model:
        sys.exit(f"llama.cpp does not load {job['model']}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = tokens, min(tokens, _PIECE), min(tokens, _PIECE)
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if job["threads"]:
        settings.n_threads = settings.n_threads_batch = job["threads"]
    settings.cb_eval = callback
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        sys.exit("llama.cpp makes no context for the model")
    return context, model


def _run(context: Any, row: Any, collector: Collector) -> None:
    """One row, from an empty context. Every token's logits are asked for: otherwise the last layer sees one token."""
    import llama_cpp

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    for start in range(0, len(row), _PIECE):
        piece = row[start : start + _PIECE]
        batch = llama_cpp.llama_batch_init(len(piece), 0, 1)
        batch.n_tokens = len(piece)
        for place, token in enumerate(piece):
            batch.token[place], batch.pos[place] = int(token), start + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        collector.forget()
        status = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        if collector.error is not None:
            raise collector.error
        if status != 0:
            sys.exit(f"llama.cpp could not compute a row of {len(row)} tokens (status {status})")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
