"""Where GPTQ's time goes, beside the count of its operations, and beside llm-compressor's `oneshot` as it comes.

    python tests/bench/gptq.py [--checkpoint DIR] [--dtype float32] [--device cpu] [--samples 16] [--tokens 256]
                               [--group-size 64] [--repeats 2] [--json]

Both sides quantize the same checkpoint to W4A16 with the same token rows, each in a process of its own, in turns; the
better of the repeats counts. Both count only from the loaded libraries to the written checkpoint. A checkpoint of
another `--dtype` is written first: what stock computes in is what a checkpoint holds. Divergence is the mean KL of
either result from the checkpoint, in nats a token, on text that is no calibration. By default it is the demo's model.

For a Linear of r outputs and c inputs, n tokens and blocks of b columns, the operations are

    inputs' second moments  2 n c^2                 factor of the Hessian  4/3 c^3 (two Choleskys and an inverse)
    columns in their block  r c b                   later blocks           r c^2
    layers, run twice       4 n r c

and what the parts took is shown as GFLOP/s beside the device's rate for a matrix product.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from demo_model import checkpoint_or_demo

ROOT = Path(__file__).parents[2]
PARTS = {"moments": "inputs' second moments", "factor": "factor", "columns": "columns", "later": "later blocks"}
BLOCK = 128


@contextmanager
def timed_parts(device):
    """Seconds of llm-compressor's own functions, by part, while it lasts; a GPU is waited for after each."""
    import torch
    from llmcompressor.modifiers.gptq import base, gptq_quantize

    found = dict.fromkeys(PARTS, 0.0)

    def timed(part, function):
        def call(*arguments, **named):
            begin = time.perf_counter()
            result = function(*arguments, **named)
            if device != "cpu":
                torch.cuda.synchronize()
            found[part] += time.perf_counter() - begin
            return result

        return call

    wrapped = [
        (base, "accumulate_hessian", "moments"),
        (gptq_quantize, "factorize_hessian", "factor"),
        (gptq_quantize, "gptq_block_update", "columns"),
        (base, "quantize_weight", "later"),
    ]
    originals = [getattr(module, name) for module, name, _ in wrapped]
    for module, name, part in wrapped:
        setattr(module, name, timed(part, getattr(module, name)))
    try:
        yield found
    finally:
        for (module, name, _), original in zip(wrapped, originals, strict=True):
            setattr(module, name, original)
        found["later"] -= found["factor"] + found["columns"]


def stock(checkpoint, out, rows, options):
    """llm-compressor's own words, with nothing set that has a default."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from torch.utils.data import DataLoader

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": options.group_size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    data = DataLoader([{"input_ids": row} for row in rows.to(torch.int64)], batch_size=1)
    modifier = GPTQModifier(config_groups=groups, ignore=["lm_head"])
    oneshot(model=str(checkpoint), recipe=modifier, dataset=data, output_dir=str(out))


def ours(checkpoint, out, rows, options):
    """The program's method, as its stage calls it, without the witness's answers."""
    from quantize.handed import Host, QuantizeJob
    from quantize.methods.gptq import Gptq
    from quantize.scheme import preset

    scheme = replace(preset("W4A16"), group_size=options.group_size)
    Gptq().quantize(
        QuantizeJob(
            checkpoint=checkpoint,
            out=out,
            scheme=scheme,
            ignore=("lm_head",),
            tokens=tuple(rows),
            device=options.device,
            seed=0,
            witness=lambda _: None,
            progress=lambda *_: None,
            host=Host({}, out),
        )
    )


def arm(options):
    """In a process of its own: quantize once, and print what it took."""
    import llmcompressor  # noqa: F401 (imported by both, before the clock starts)
    import transformers  # noqa: F401
    from safetensors.torch import load_file

    rows = load_file(options.rows)["rows"]  # (samples, tokens)
    options.out.mkdir()
    with timed_parts(options.device) as parts:
        wall, cpu = time.perf_counter(), time.process_time()
        {"stock": stock, "ours": ours}[options.arm](options.checkpoint, options.out, rows, options)
        found = {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps(found | {"parts": parts}))


def operations(checkpoint, tokens):
    """FLOP by part for all Linears but the head, and of the layers' two passes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    head = model.get_output_embeddings()
    shapes = [m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return {
        "moments": sum(2 * tokens * c * c for _, c in shapes),
        "factor": sum(4 / 3 * c**3 for _, c in shapes),
        "columns": sum(r * c * BLOCK for r, c in shapes),
        "later": sum(r * c * c for r, c in shapes),
        "layers": sum(4 * tokens * r * c for r, c in shapes),
    }


def divergence(checkpoint, results, device, windows=8, length=256):
    """Mean KL from the checkpoint in nats a token, for each result, over the last windows of the prose."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = (ROOT / "evals/prose.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(checkpoint)(text, verbose=False, return_tensors="pt").input_ids[0]
    ids = ids[-windows * length :].reshape(windows, length).to(device)

    def log_probabilities(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        with torch.inference_mode():
            return [model(window[None]).logits[0].log_softmax(-1) for window in ids]

    reference = log_probabilities(checkpoint)
    found = {}
    for name, folder in results.items():
        pairs = zip(reference, log_probabilities(folder), strict=True)
        found[name] = float(torch.stack([(p.exp() * (p - q)).sum(-1).mean() for p, q in pairs]).mean())
    return found


def prepared(options, folder):
    """The checkpoint in the dtype that is asked for, and the file of token rows."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quantize.calibrators import Text

    source = checkpoint_or_demo(options.checkpoint, folder)
    checkpoint = folder / "checkpoint"
    AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, options.dtype)).save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(source).save_pretrained(checkpoint)
    text = Text(path=str(ROOT / "evals/prose.txt"), samples=options.samples, tokens=options.tokens)
    save_file({"rows": torch.stack(text.draw(checkpoint, "cpu", lambda *_: None).rows)}, folder / "rows.safetensors")
    return checkpoint, folder / "rows.safetensors"


def measured(options, folder):
    """Both sides in turns, the better of the repeats, and whether their files are the same."""
    from quantize.record import file_sha256
    from quantize.roofline import measure

    checkpoint, rows = prepared(options, folder)
    runs = {"stock": [], "ours": []}
    for repeat in range(options.repeats):
        for name, tries in runs.items():
            command = [sys.executable, __file__, "--arm", name, "--checkpoint", checkpoint, "--rows", rows]
            command += ["--out", folder / f"{name}-{repeat}", "--device", options.device]
            command += ["--group-size", options.group_size]
            result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
            tries.append(json.loads(result.stdout.splitlines()[-1]))
    best = {name: min(tries, key=lambda one: one["s"]) for name, tries in runs.items()}
    results = {name: folder / f"{name}-0" for name in runs}
    weights = {file_sha256(result / "model.safetensors") for result in results.values()}
    return {
        **best,
        "ratio": best["stock"]["s"] / best["ours"]["s"],
        "ratio_cpu": best["stock"]["cpu_s"] / best["ours"]["cpu_s"],
        "same_bytes": len(weights) == 1,
        "kl": divergence(checkpoint, results, options.device),
        "operations": operations(checkpoint, options.samples * options.tokens),
        "flops": measure(options.device, "float32").flops,
    }


def shown(found):
    """The result in lines of text."""
    yield f"| {'part':<24} | stock, s | ours, s | GFLOP | stock, GFLOP/s | ours, GFLOP/s |"
    yield "|---|---|---|---|---|---|"
    for part, name in PARTS.items():
        work = found["operations"][part] / 1e9
        took = [found[side]["parts"][part] for side in ("stock", "ours")]
        rates = " | ".join(f"{work / seconds:,.0f}" for seconds in took)
        yield f"| {name:<24} | {took[0]:.1f} | {took[1]:.1f} | {work:,.0f} | {rates} |"
    rest = [found[side]["s"] - sum(found[side]["parts"][part] for part in PARTS) for side in ("stock", "ours")]
    layers = found["operations"]["layers"] / 1e9
    yield f"| layers, reading, writing | {rest[0]:.1f} | {rest[1]:.1f} | {layers:,.0f} | | |"
    yield f"| all                      | {found['stock']['s']:.1f} | {found['ours']['s']:.1f} | | | |"
    yield ""
    yield f"a matrix product reaches {found['flops'] / 1e9:,.0f} GFLOP/s here (float32)"
    yield f"ratio {found['ratio']:.2f} ({found['ratio_cpu']:.2f} in CPU seconds)"
    same = "the same bytes" if found["same_bytes"] else "other bytes"
    yield f"{same}; KL from the checkpoint: stock {found['kl']['stock']:.5f}, ours {found['kl']['ours']:.5f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="by default the demo's model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arm", choices=["stock", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        arm(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    print(json.dumps(found, indent=1) if options.json else "\n".join(shown(found)))


if __name__ == "__main__":
    main()
