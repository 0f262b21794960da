"""The page beside the scripts: which engine serves the artifact where, on how many GPUs, within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantize.serving.model import Limits, Served
from quantize.serving.sizing import CARDS, kv_bytes_per_token, size_for

__all__ = ["Place", "page"]

_TITLES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM", "llamacpp": "llama.cpp"}

_CACHE = """\
## KV cache

The scripts keep it as it was when the answers were measured: {kept}. Where the hardware has FP8 (compute capability
8.9: Ada, Hopper, Blackwell) `KV_CACHE_DTYPE=fp8` (SGLang: `fp8_e4m3`; TensorRT-LLM: `dtype: fp8` in its settings)
holds twice the tokens that 16 bits do, and `q8_0` does in llama.cpp. It changes answers a little, which a verdict
covers only if the variant was measured so: `kv_cache: fp8`, or `engine: {{kind: vllm, kv_cache_dtype: fp8}}`.
Prefix caching and chunked prefill are on in all scripts.
"""

_EXPLAINED = """
The scripts' defaults are for cards of {memory:.0f} GB. Weights are split over the GPUs, 90 % of each card is used, 2 GB
of it for the runtime; two requests of full length must fit, and a request is taken to fill a quarter of its context.
llama.cpp splits layers over all GPUs that it sees instead, and gives each request a whole context."""

_QUEUE = {
    "vllm": "more than `IN_FLIGHT` requests, running and waiting, are refused with status 503",
    "sglang": "more than `QUEUED` waiting requests are refused with status 503",
    "tensorrt-llm": "no cap: let the proxy before it hold connections to a number (nginx: `limit_conn`)",
    "llamacpp": "no cap: let the proxy before it hold connections to a number (nginx: `limit_conn`)",
}
_OUTPUT = {
    "vllm": "capped by `--override-generation-config`",
    "sglang": "no cap of its own: the context bounds it; a gateway may cap `max_tokens`",
    "tensorrt-llm": "no cap of its own: the context bounds it; a gateway may cap `max_tokens`",
    "llamacpp": "capped by `--n-predict`",
}


_SPECULATION = """\
## Speculative decoding

`DRAFT=DIR` lets {engines} propose tokens with {name}, a variant of the same
model with the same tokenizer, and check several of them in one pass. Greedy answers stay those of the model that
checks. It pays at few requests at once, where reading weights is what takes the time, and costs at many: measure both
under your load. The draft has as many layers as the model, so its cache is as large, too.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine serves the artifact (`devices`, in words), or why nowhere."""

    devices: str
    reason: str


def page(
    served: Served,
    places: Mapping[str, Place],
    limits: Limits,
    drafts: Mapping[str, Served],
    memory: float,
    kv_cache: str = "auto",
) -> str:
    """`README.md`: Markdown. `places` by engine; `drafts` are the draft models that engines may use, by engine.

    `memory` is that of the card, in bytes, that the scripts' defaults are for; `kv_cache` as in `Serving`.
    """
    parts = [
        _title(served),
        _engines(places),
        _sizes(served, limits, next(iter(drafts.values()), None), memory, 8 if kv_cache.startswith("fp8") else 16),
        _CACHE.format(kept="in the precision of computation" if kv_cache == "auto" else f"`{kv_cache}`"),
        _limits(limits, [name for name in _TITLES if places[name].devices]),
    ]
    if drafts:
        parts.append(_speculation(drafts))
    return "\n".join(parts)


def _title(served: Served) -> str:
    reference = f"{served.name}@{served.alias}"
    numbers = f" {served.scheme.name}" if served.scheme is not None else ""
    what = "not quantized" if served.format == "none" else f"{served.format}{numbers}"
    return (
        f"# Serving {reference}\n\n{what}, {served.weights / 1e9:.2f} GB of weights. Each script fetches exactly the "
        f"bytes that were judged\n(`quantize pull {reference} DIR`, which verifies them) and starts one server that "
        "speaks OpenAI's API.\nSet `MODEL` to a directory that holds them already.\n"
    )


def _engines(places: Mapping[str, Place]) -> str:
    rows = ["## Engines\n\n| engine | script | where |\n|---|---|---|"]
    for name, title in _TITLES.items():
        place = places[name]
        script = f"`{'llama.cpp' if name == 'llamacpp' else name}.sh`" if place.devices else "none"
        rows.append(f"| {title} | {script} | {place.devices or place.reason} |")
    return "\n".join(rows) + "\n"


def _sizes(served: Served, limits: Limits, draft: Served | None, memory: float, bits: int) -> str:
    """The table of cards, with a cache of `bits` per number, and of 8 beside it where those are more."""
    if served.shape is None:
        return (
            "## GPUs\n\nThe cache of this architecture does not follow from its heads: start with one GPU, and read\n"
            "in the server's log how many tokens its cache holds.\n"
        )
    kv, asked = kv_bytes_per_token(served.shape, bits), limits.context
    more = [" | with an FP8 cache"] if bits > 8 else []
    more += [" | with the draft"] if draft is not None else []
    rows = [
        f"## GPUs\n\nA token takes {kv:,} bytes of KV cache at {bits} bits. For requests of {asked:,} tokens:\n",
        f"| card | GPUs (`TENSOR_PARALLEL`) | requests at once{''.join(more)} |",
        "|---|---|---|" + "---|" * len(more),
    ]
    for gigabytes, cards in CARDS.items():
        whole, half = (size_for(served, gigabytes * 1e9, limits, bits=each) for each in (bits, 8))
        cells = [f"{gigabytes} GB ({cards})"]
        cells += [str(whole.gpus), str(whole.requests)] if whole is not None else ["more than 8", ""]
        if bits > 8:
            cells.append(f"{half.requests} on {half.gpus}" if half is not None else "")
        if draft is not None:
            both = size_for(served, gigabytes * 1e9, limits, bits=bits, draft=draft)
            cells.append(f"{both.requests} on {both.gpus}" if both is not None else "more than 8 GPUs")
        rows.append(f"| {' | '.join(cells)} |")
    rows.append(_EXPLAINED.format(memory=memory / 1e9))
    return "\n".join(rows) + "\n"


def _limits(limits: Limits, engines: list[str]) -> str:
    bounds = f"{limits.context:,} tokens; the answer {limits.output:,}, so that prompts of up to {limits.input:,} have"
    rows = [
        f"## Limits of a request\n\nPrompt and answer together: {bounds} room for it.\n",
        "| engine | answer | queue |\n|---|---|---|",
    ]
    rows += [f"| {_TITLES[name]} | {_OUTPUT[name]} | {_QUEUE[name]} |" for name in engines]
    rows.append(
        "\nThe servers listen on 127.0.0.1 and ask for no key: put them behind a proxy that does what they do not."
    )
    return "\n".join(rows) + "\n"


def _speculation(drafts: Mapping[str, Served]) -> str:
    draft = next(iter(drafts.values()))
    engines = " and ".join(_TITLES[name] for name in drafts)
    name = f"{draft.name}@{draft.alias} ({draft.weights / 1e9:.2f} GB)"
    return _SPECULATION.format(engines=engines, name=name)
