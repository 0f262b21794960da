"""One script for each engine. Defaults are written in, and every one of them may be set from outside.

Flags are those of vLLM 0.32, SGLang's and TensorRT-LLM's documentation, and llama.cpp's server of 2026-10.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

import yaml

from quantize.registry import MANIFEST_FILE
from quantize.serving.model import Limits, Served
from quantize.serving.sizing import SHARE

__all__ = ["Serving", "llamacpp", "sglang", "tensorrt_llm", "vllm"]

#: Tokens that a draft model proposes at once.
_DRAFTED = 4

#: Requests at once in llama.cpp's server, where each has a whole context of its own.
_SLOTS = 8

#: What vLLM 0.32 has to be told on CPUs with AMX; GPUs do not read it. The engine vllm, which measures, does the same:
#: `quantize.engines._vllm_worker` has the symptom, and what it does where nothing is compiled.
_ON_CPUS = (
    "# CPUs with AMX: without this the activations of 4-bit weights are rounded to 8 bits, which was not measured. And",
    "# do not add --enforce-eager there: only a server that compiles asks Linux for AMX; another dies of SIGILL.",
    "export VLLM_CPU_INT4_W4A8=${VLLM_CPU_INT4_W4A8:-0}",
)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a script is written from. `gpus` and `requests` are the defaults of tensor parallelism and concurrency.

    `draft` is a smaller artifact of the same model that the engine can load too; `dtype` and `kv_cache` (`auto` is the
    dtype of computation) are those that the artifact was measured with.
    """

    served: Served
    limits: Limits
    gpus: int
    requests: int
    draft: Served | None = None
    dtype: str = "auto"
    kv_cache: str = "auto"

    @property
    def fp8_cache(self) -> bool:
        """Whether the KV cache holds 8 bits a number."""
        return self.kv_cache.startswith("fp8")


def vllm(what: Serving) -> dict[str, str]:
    """`vllm.sh`, and `vllm.yaml` with what does not depend on the machine."""
    settings = {
        "gpu-memory-utilization": SHARE,
        "dtype": what.dtype,
        "enable-prefix-caching": True,
        "enable-chunked-prefill": True,
    }
    lines = [
        *_head(what, "vLLM", "vllm.sh", 8000),
        _setting("CONTEXT", what.limits.context, "tokens of prompt and answer together"),
        _setting("OUTPUT", what.limits.output, "tokens of one answer"),
        _setting("TENSOR_PARALLEL", what.gpus, "GPUs"),
        _setting("REQUESTS", what.requests, "at once"),
        _setting("IN_FLIGHT", 2 * what.requests, "running and waiting; more are refused with status 503"),
        _setting("KV_CACHE_DTYPE", what.kv_cache, "fp8 halves the cache: see README.md first"),
        *_drafting_and_fetching(what),
        'args=(serve "$MODEL" --config "$here/vllm.yaml" --served-model-name "$NAME" --host "$HOST" --port "$PORT"',
        '  --tensor-parallel-size "$TENSOR_PARALLEL" --kv-cache-dtype "$KV_CACHE_DTYPE"',
        '  --max-num-seqs "$REQUESTS" --max-num-queued-reqs "$IN_FLIGHT" --max-model-len "$CONTEXT"',
        r"""  --override-generation-config "{\"max_new_tokens\": $OUTPUT}")""",
    ]
    if what.draft is not None:
        drafting = json.dumps({"method": "draft_model", "model": "$DRAFT", "num_speculative_tokens": _DRAFTED})
        quoted = drafting.replace('"', r"\"")
        lines.append(f'if [ -n "$DRAFT" ]; then args+=(--speculative-config "{quoted}"); fi')
    lines += [*_ON_CPUS, 'exec vllm "${args[@]}" "$@"']
    return {"vllm.sh": _text(lines), "vllm.yaml": yaml.safe_dump(settings, sort_keys=False)}


def sglang(what: Serving) -> dict[str, str]:
    """`sglang.sh`. Prefix caching (the radix cache) and chunked prefill are on without being asked for."""
    model, loading = '"$MODEL"', []
    if what.served.format == "gguf":
        model = '"$MODEL/model.gguf"'
        loading = ['  --tokenizer-path "$MODEL" --load-format gguf --quantization gguf']
    elif what.served.format == "bitsandbytes":
        loading = ["  --load-format bitsandbytes --quantization bitsandbytes"]
    lines = [
        *_head(what, "SGLang", "sglang.sh", 30000),
        _setting("CONTEXT", what.limits.context, "tokens of prompt and answer together"),
        _setting("TENSOR_PARALLEL", what.gpus, "GPUs"),
        _setting("REQUESTS", what.requests, "at once"),
        _setting("QUEUED", what.requests, "waiting; more are refused with status 503"),
        _setting(
            "KV_CACHE_DTYPE", "fp8_e4m3" if what.fp8_cache else "auto", "fp8_e4m3 halves the cache: see README.md first"
        ),
        *_drafting_and_fetching(what),
        f'args=(--model-path {model} --served-model-name "$NAME" --host "$HOST" --port "$PORT"',
        *loading,
        '  --tensor-parallel-size "$TENSOR_PARALLEL" --context-length "$CONTEXT" --kv-cache-dtype "$KV_CACHE_DTYPE"',
        f"  --mem-fraction-static {SHARE - 0.02:g} --chunked-prefill-size 8192 --dtype {what.dtype}",
        '  --max-running-requests "$REQUESTS" --max-queued-requests "$QUEUED")',
    ]
    if what.draft is not None:
        lines += [
            'if [ -n "$DRAFT" ]; then',
            '  args+=(--speculative-algorithm STANDALONE --speculative-draft-model-path "$DRAFT"',
            f"    --speculative-num-steps {_DRAFTED - 1} --speculative-eagle-topk 1",
            f"    --speculative-num-draft-tokens {_DRAFTED})",
            "fi",
        ]
    lines.append('exec python3 -m sglang.launch_server "${args[@]}" "$@"')
    return {"sglang.sh": _text(lines)}


def tensorrt_llm(what: Serving) -> dict[str, str]:
    """`tensorrt-llm.sh` and the YAML that it hands on. It refuses nothing by itself: a proxy has to."""
    dtype = "fp8" if what.fp8_cache else "auto"
    settings = {
        "enable_chunked_prefill": True,
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": SHARE, "dtype": dtype},
    }
    lines = [
        *_head(what, "TensorRT-LLM", "tensorrt-llm.sh", 8000),
        _setting("CONTEXT", what.limits.context, "tokens of prompt and answer together"),
        _setting("TENSOR_PARALLEL", what.gpus, "GPUs"),
        _setting("REQUESTS", what.requests, "at once"),
        *_drafting_and_fetching(what),
        'args=("$MODEL" --served_model_name "$NAME" --host "$HOST" --port "$PORT"',
        '  --tensor_parallel_size "$TENSOR_PARALLEL" --max_seq_len "$CONTEXT" --max_batch_size "$REQUESTS"',
        '  --max_num_tokens 8192 --config "$here/tensorrt-llm.yaml")',
        'exec trtllm-serve "${args[@]}" "$@"',
    ]
    return {"tensorrt-llm.sh": _text(lines), "tensorrt-llm.yaml": yaml.safe_dump(settings, sort_keys=False)}


def llamacpp(what: Serving) -> dict[str, str]:
    """`llama.cpp.sh`, for GPUs and CPUs. Prompt caching and continuous batching are on without being asked for."""
    lines = [
        *_head(what, "llama.cpp's server", "llama.cpp.sh", 8080),
        _setting("CONTEXT", what.limits.context, "tokens of one request, prompt and answer together"),
        _setting("OUTPUT", what.limits.output, "tokens of one answer"),
        _setting("REQUESTS", min(what.requests, _SLOTS), "at once; each has a cache of CONTEXT tokens"),
        _setting("KV_CACHE_DTYPE", "f16", "q8_0 halves the cache: see README.md first"),
        *_drafting_and_fetching(what),
        'args=(--model "$MODEL/model.gguf" --alias "$NAME" --host "$HOST" --port "$PORT"',
        '  --ctx-size "$((CONTEXT * REQUESTS))" --parallel "$REQUESTS" --n-predict "$OUTPUT"',
        '  --cache-type-k "$KV_CACHE_DTYPE" --cache-type-v "$KV_CACHE_DTYPE" --cache-reuse 256 --metrics)',
    ]
    if what.draft is not None:
        drafting = f'--spec-type draft-simple --spec-draft-model "$DRAFT/model.gguf" --spec-draft-n-max {_DRAFTED}'
        lines.append(f'if [ -n "$DRAFT" ]; then args+=({drafting}); fi')
    lines.append('exec llama-server "${args[@]}" "$@"')
    return {"llama.cpp.sh": _text(lines)}


def _head(what: Serving, engine: str, file: str, port: int) -> list[str]:
    reference = f"{what.served.name}@{what.served.alias}"
    return [
        "#!/usr/bin/env bash",
        f"# Serves {reference} with {engine}. README.md beside this file explains the numbers.",
        f"# Every value below can be set from outside (`PORT=9000 bash {file}`); further arguments go to the server.",
        "set -euo pipefail",
        'here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)',
        "",
        "# Where the artifact lies: beside this folder, if `quantize pull` laid both; else it is fetched and verified.",
        f'if [ -e "$here/../{MANIFEST_FILE}" ]; then beside="$here/.."; else beside="$here/model"; fi',
        _setting("MODEL", "$beside"),
        _setting("NAME", shlex.quote(what.served.name), "as requests call it"),
        _setting("HOST", "127.0.0.1"),
        _setting("PORT", port),
    ]


def _drafting_and_fetching(what: Serving) -> list[str]:
    fetch = f'[ -e "$MODEL" ] || quantize pull {_reference(what.served)} "$MODEL"'
    if what.draft is None:
        return ["", fetch]
    draft = f'if [ -n "$DRAFT" ] && [ ! -e "$DRAFT" ]; then quantize pull {_reference(what.draft)} "$DRAFT"; fi'
    return [_setting("DRAFT", "", "a directory turns speculative decoding on"), "", fetch, draft]


def _setting(variable: str, default: object, about: str = "") -> str:
    return f"{variable}=${{{variable}:-{default}}}" + (f"  # {about}" if about else "")


def _reference(served: Served) -> str:
    return shlex.quote(f"{served.name}@{served.alias}")


def _text(lines: list[str]) -> str:
    return "\n".join([*lines, ""])
