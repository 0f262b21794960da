"""How fast a model answers in this process, beside stock `generate` and beside what the device can do at most.

    python tests/bench/in_process.py [--checkpoint DIR] [--device cpu] [--shapes 1x128x32,...] [--repeats 5] [--json]

A shape is batch x prompt tokens x new tokens. Both sides answer the same prompts greedily with as many tokens, in turn,
in one process on one loaded model; the best of the repeats counts. The ceilings are measured before and after, on the
same device and in the model's dtype, and the best counts too (`quantize/roofline.py` has the formulas). Without a
checkpoint it is the demo's model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from demo_model import checkpoint_or_demo

SHAPES = "1x128x32,1x512x32,4x128x32,8x128x32"


def stock(model, ids, new_tokens):
    """Seconds that transformers' own loop takes, and its tokens."""
    import torch

    device = model.device.type
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, out[:, ids.shape[1] :]


def measured(session, shape, repeats):
    """One row: tokens a second, and the ratio to stock."""
    import torch

    from quantize.engines._timing import answer, kv_bytes

    rows, tokens, new = shape
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(100, session.vocabulary, (rows, tokens), generator=draw).to(session.model.device)
    ours, theirs, same = [], [], True
    for repeat in range(repeats + 1):
        timed, found = answer(session.greedy(), ids, new)
        seconds, expected = stock(session.model, ids, new)
        same = same and torch.equal(found, expected)
        if repeat:  # the first is the warm-up of both
            ours.append(timed)
            theirs.append(seconds)
    prefill = min(one.prefill for one in ours)
    step = min(statistics.mean(one.steps) for one in ours)
    read = kv_bytes(session.model) * rows * (tokens + new / 2)
    whole = min(one.prefill + sum(one.steps) for one in ours)
    return {
        "shape": f"{rows} x {tokens} + {new}",
        "prefill": {"tokens": rows * tokens, "seconds": prefill},
        "decode": {"kv_bytes": read, "seconds": step},
        "prefill_tokens_per_second": rows * tokens / prefill,
        "decode_tokens_per_second": rows / step,
        "seconds": whole,
        "stock_seconds": min(theirs),
        "ratio": min(theirs) / whole,
        "same_tokens": same,
        "graphs": session.greedy().graphs,
    }


def shown(row):
    """A row of the table."""
    return (
        f"| {row['shape']} | {row['prefill_tokens_per_second']:,.0f} | {row['compute_share']:.0%} "
        f"| {row['decode_tokens_per_second']:,.1f} | {row['bandwidth_share']:.0%} | {row['seconds']:.2f} s "
        f"| {row['stock_seconds']:.2f} s | {row['ratio']:.2f} | {'yes' if row['same_tokens'] else 'NO'} |"
    )


def told(session, roofline, work):
    """What was measured on, and the ceilings."""
    facts = ", ".join(f"{name} {value}" for name, value in session.facts().items())
    return (
        f"{session.device}; {facts}\n"
        f"{work.parameters / 1e6:,.0f} million parameters that multiply, {work.weight_bytes / 1e6:,.0f} MB of weights "
        f"read for every token\n"
        f"ceilings: {roofline.flops / 1e9:,.0f} GFLOP/s, {roofline.bandwidth / 1e9:,.1f} GB/s\n\n"
        "| batch x prompt + answer | prefill, tokens/s | of compute | decode, tokens/s | of bandwidth | ours | stock "
        "`generate` | ratio | same tokens |\n|---|---|---|---|---|---|---|---|---|"
    )


def run(checkpoint, device, shapes, repeats, **ceilings):
    """Rows of all shapes, with what was measured on."""
    from quantize.engines.transformers import Transformers
    from quantize.roofline import Roofline, decode_share, measure, prefill_share, work_of

    session = Transformers().open(checkpoint, device)
    try:
        before = measure(device, session.arithmetic, **ceilings)
        work = work_of(session.model)
        # Both sides answer with as many tokens as are asked for, and neither warns of it.
        session.model.generation_config.eos_token_id = None
        session.model.generation_config.pad_token_id = 0
        rows = [measured(session, shape, repeats) for shape in shapes]
        after = measure(device, session.arithmetic, **ceilings)
        roofline = Roofline(max(before.flops, after.flops), max(before.bandwidth, after.bandwidth))
        for row in rows:
            row["compute_share"] = prefill_share(work, roofline, **row["prefill"])
            row["bandwidth_share"] = decode_share(work, roofline, **row["decode"])
        return told(session, roofline, work), rows
    finally:
        session.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="by default the demo's model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shapes = [tuple(int(part) for part in shape.split("x")) for shape in options.shapes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_or_demo(options.checkpoint, Path(folder))
        head, rows = run(checkpoint, options.device, shapes, options.repeats)
    print(json.dumps(rows, indent=1) if options.json else "\n".join([head, *map(shown, rows)]))


if __name__ == "__main__":
    main()
