"""From facts to files: which engines serve an artifact, with which draft, and the text of every file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from quantize.compatibility import verdict
from quantize.device import Device
from quantize.serving import scripts
from quantize.serving.model import Limits, Served
from quantize.serving.readme import Place, page
from quantize.serving.scripts import Serving
from quantize.serving.sizing import MOST_GPUS, size_for

__all__ = ["pick_draft", "write_serving"]

_WRITERS: dict[str, Callable[[Serving], dict[str, str]]] = {
    "vllm": scripts.vllm,
    "sglang": scripts.sglang,
    "tensorrt-llm": scripts.tensorrt_llm,
    "llamacpp": scripts.llamacpp,
}

#: GPUs by architecture, with a compute capability of each.
_GPUS = {"Turing": (7, 5), "Ampere": (8, 0), "Ada": (8, 9), "Hopper": (9, 0), "Blackwell": (10, 0)}
_CPUS = {"CPUs": frozenset({"avx2"}), "CPUs with AVX-512": frozenset({"avx2", "avx512f"})}

#: The card that defaults are for where no GPU is named, and requests at once where they do not follow from it.
_CARD, _REQUESTS = 80e9, 8


def write_serving(
    served: Served,
    *,
    gpu: Device | None = None,
    draft: Served | None = None,
    limits: Limits | None = None,
    dtype: str = "auto",
    kv_cache: str = "auto",
) -> dict[str, str]:
    """File name -> text: `README.md`, and scripts and settings for the engines that serve the format somewhere.

    `gpu` is the card whose numbers become the scripts' defaults (80 GB where none is named); `draft` a smaller artifact
    of the same model, used where the engine can; `dtype` of computation and `kv_cache` (`auto`, `fp8`) those that the
    artifact was measured with. Where its scheme rounds keys and values, engines keep them so, and `auto` means that.
    """
    if kv_cache == "auto" and served.scheme is not None and served.scheme.kv_cache is not None:
        kv_cache = served.scheme.kv_cache
    limits = limits or Limits.of(served.shape)
    memory = gpu.memory if gpu is not None and gpu.kind == "cuda" and gpu.memory else _CARD
    size = size_for(served, memory, limits, bits=8 if kv_cache.startswith("fp8") else 16)
    fallback = (MOST_GPUS if served.shape is not None else 1, _REQUESTS)
    gpus, requests = (size.gpus, size.requests) if size is not None else fallback
    what = Serving(served, limits, gpus, requests, None, dtype, kv_cache)
    places = {name: _place(served, name) for name in _WRITERS}
    drafts: dict[str, Served] = {}
    files: dict[str, str] = {}
    for name, write in _WRITERS.items():
        if not places[name].devices:
            continue
        if draft is not None and _drafts(name, served, draft):
            drafts[name] = draft
        files |= write(replace(what, draft=drafts.get(name)))
    return {"README.md": page(served, places, limits, drafts, memory, kv_cache), **files}


def pick_draft(served: Served, others: Iterable[Served]) -> Served | None:
    """The smallest other artifact of the same model with less than half the bytes; None where there is none."""
    small = [other for other in others if other.alias != served.alias and 2 * other.weights < served.weights]
    return min(small, key=lambda other: (other.weights, other.alias), default=None)


def _drafts(engine: str, served: Served, draft: Served) -> bool:
    """Whether an engine takes that draft beside that model.

    SGLang loads a draft by the same quantization as the model; TensorRT-LLM's PyTorch backend takes EAGLE drafts only.
    """
    if engine == "tensorrt-llm" or (engine == "sglang" and draft.format != served.format):
        return False
    return bool(_place(draft, engine).devices)


def _place(served: Served, engine: str) -> Place:
    """The devices on which an engine serves an artifact, in words."""
    told = {name: verdict(served.format, served.scheme, engine, device) for name, device in _machines().items()}
    fit = [name for name, found in told.items() if found.outcome != "no"]
    gpus = [name for name in fit if name in _GPUS]
    cpus = [name for name in fit if name in _CPUS][:1]
    words = [f"{', '.join(gpus)} GPUs"] if gpus else []
    return Place(" and ".join(words + cpus), next(iter(told.values())).reason)


def _machines() -> dict[str, Device]:
    gpus = {name: Device("cuda", name, None, capability=capability) for name, capability in _GPUS.items()}
    cpus = {name: Device("cpu", name, None, features=features) for name, features in _CPUS.items()}
    return {**gpus, **cpus}
