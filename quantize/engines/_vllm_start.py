"""How vLLM's server is started on a checkpoint: its arguments, its environment's variables, its interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.engines import _vllm_asked as asked
from quantize.engines._vllm_server import Server
from quantize.errors import QuantizeError
from quantize.handed import Host

if TYPE_CHECKING:
    from quantize.engines.vllm import Vllm

__all__ = ["start_server"]

#: Where the server's processes find what they import of ours, and its module for CPUs with AMX.
_WORKER, _AMX = Path(__file__).with_name("_vllm_worker"), "quantize_amx"


def start_server(
    engine: Vllm,
    checkpoint: Path,
    config: dict[str, Any],
    device: str,
    host: Host,
    *,
    length: int,
    beyond: bool = False,
    more: tuple[str, ...] = (),
) -> Server:
    """Start the server, for requests of `length` tokens, their answers included; it is not ready yet.

    `beyond`: that is more than the model was trained on. `more` are arguments that come last and so decide. Raises
    QuantizeError where the environment is not made.
    """
    on_gpu = device != "cpu"
    name = "vllm" if on_gpu else "vllm-cpu"
    if name not in host.interpreters:
        raise QuantizeError(f"the environment {name} is not made.", fix=f"quantize env create {name}")
    arguments = _arguments(engine, checkpoint, engine.arithmetic(config, device), length, on_gpu=on_gpu)
    return Server(host.interpreters[name], [*arguments, *more], _variables(engine, on_gpu, beyond), host)


def _arguments(engine: Vllm, checkpoint: Path, dtype: str, length: int, *, on_gpu: bool) -> list[str]:
    eager = not on_gpu if engine.enforce_eager is None else engine.enforce_eager
    named = {
        "--model": checkpoint,
        "--dtype": dtype,
        "--max-model-len": length,
        "--max-num-seqs": engine.max_num_seqs,
        # The scheduler refuses fewer tokens in a pass than requests.
        "--max-num-batched-tokens": max(engine.max_num_batched_tokens, engine.max_num_seqs),
        "--max-logprobs": asked.MOST,
        "--kv-cache-dtype": engine.kv_cache_dtype,
        "--tensor-parallel-size": engine.tensor_parallel_size,
        "--gpu-memory-utilization": engine.gpu_memory_utilization,
    }
    if not on_gpu:
        named["--worker-extension-cls"] = f"{_AMX}.Permitted"
    return [
        *(str(part) for pair in named.items() for part in pair),
        "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching",
        "--enforce-eager" if eager else "--no-enforce-eager",
        "--disable-uvicorn-access-log",
    ]


def _variables(engine: Vllm, on_gpu: bool, beyond: bool) -> dict[str, str]:
    """The server's environment, beside what every server gets."""
    variables = {} if on_gpu else _on_cpu(engine)
    if (not on_gpu) if engine.enforce_eager is None else engine.enforce_eager:
        # Eager mode leaves a few functions compiled; on CPUs that takes a compiler and 15 s of the first request.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    if beyond:
        # The one token that is generated after the longest prompt stands beyond what the model was trained on. It is
        # never read, so no position is used that the model does not have.
        variables["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    return variables


def _on_cpu(engine: Vllm) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        # Left to itself vLLM rounds the activations of 4-bit weights to 8 bits where there is AMX: W4A8, another scheme
        # than the one that was asked for.
        "VLLM_CPU_INT4_W4A8": "0",
        "PYTHONPATH": str(_WORKER),
    }
