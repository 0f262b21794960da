"""A randomly initialised Llama of any shape, written layer by layer, and what quantizing and timing it took.

Random weights cost what trained ones cost: no kernel's time depends on them. What the methods lose is not looked at.
"""

from __future__ import annotations

import gc
import json
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.handed import Host, QuantizeJob
from quantize.scheme import Scheme

TINY = Path(__file__).parent / "tiny_llama" / "checkpoint"
#: Llama-3-8B, as its config has it.
LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


@dataclass
class Cost:
    """Wall seconds, and bytes: the most that torch held on the GPU (resident, on a CPU), and what was written."""

    seconds: float
    peak: int
    written: int

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, peak {self.peak / 2**30:.1f} GiB, {self.written / 2**30:.2f} GiB written"


def build(folder: Path, shape: dict[str, Any], device: str) -> Path:
    """Write a checkpoint in bfloat16. Only one layer is in memory at a time."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    config = {**json.loads((TINY / "config.json").read_text()), **shape, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    torch.manual_seed(0)
    hidden, inner, words = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    queries, pairs = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    matrices = {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (pairs, hidden)}
    matrices |= {"self_attn.v_proj": (pairs, hidden), "self_attn.o_proj": (hidden, queries)}
    matrices |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    layers = config["num_hidden_layers"]
    places: dict[str, str] = {}

    def write(number: int, shapes: dict[str, tuple[int, ...]]) -> None:
        file = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        tensors = {
            f"{name}.weight": (
                torch.ones(size, dtype=torch.bfloat16)
                if len(size) == 1
                else torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()
            )
            for name, size in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, file))

    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,))
    for layer in range(layers):
        write(layer, {f"model.layers.{layer}.{name}": size for name, size in {**matrices, **norms}.items()})
    write(layers, {"model.embed_tokens": (words, hidden), "lm_head": (words, hidden), "model.norm": (hidden,)})
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tokens_of(shape: dict[str, Any], samples: int, length: int) -> Any:
    """Random token ids (samples, length)."""
    import torch

    return torch.randint(0, shape["vocab_size"], (samples, length), generator=torch.Generator().manual_seed(1))


def quantized(method: Any, scheme: Scheme, checkpoint: Path, out: Path, device: str, tokens: Any = None) -> Cost:
    """Quantize by the program's own method, from disk to disk, and say what it took."""
    import torch

    out.mkdir(parents=True)
    on_gpu = device != "cpu"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    method.quantize(
        QuantizeJob(
            checkpoint=checkpoint,
            out=out,
            scheme=scheme,
            ignore=("lm_head",),
            tokens=tokens,
            device=device,
            seed=0,
            witness=lambda _: None,
            progress=lambda *_: None,
            host=Host({}, out),
        )
    )
    seconds = time.perf_counter() - begin
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return Cost(seconds, torch.cuda.max_memory_allocated() if on_gpu else resident, written)


def speeds(checkpoint: Path, device: str, shapes: list[tuple[int, int, int]], **ceilings: int) -> list[str]:
    """Lines of prefill and decode with their shares of the roofline, for (batch, prompt, new tokens)."""
    import statistics

    import torch

    from quantize.engines.transformers import Transformers
    from quantize.roofline import decode_share, measure, prefill_share, work_of

    session = Transformers().open(checkpoint, device)
    try:
        from quantize.engines._timing import kv_bytes

        roofline, work = measure(device, session.arithmetic, **ceilings), work_of(session.model)
        kv = kv_bytes(session.model)
        lines = [f"ceilings {roofline.flops / 1e12:.3g} TFLOP/s, {roofline.bandwidth / 1e9:.4g} GB/s"]
        for rows, tokens, new in shapes:
            ids = torch.randint(0, 500, (rows, tokens))
            session.timed(ids, new)  # captures and warms
            timed = session.timed(ids, new)
            step = statistics.median(timed.steps)
            compute = prefill_share(work, roofline, tokens=rows * tokens, seconds=timed.prefill)
            reading = decode_share(work, roofline, kv_bytes=kv * rows * (tokens + new / 2), seconds=step)
            lines.append(
                f"{rows} x {tokens} + {new}: prefill {rows * tokens / timed.prefill:,.0f} tokens/s "
                f"({compute:.0%} of compute), decode {rows / step:,.0f} tokens/s ({reading:.0%} of bandwidth), "
                f"{session.facts()['graphs']}"
            )
        return lines
    finally:
        session.close()
