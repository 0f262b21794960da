"""How much faster the engine scores choices than lm-eval's stock `hf` model, side by side, and whether they agree.

    python tests/bench/bench_evaluation.py [--checkpoint DIR] [--items N] [--batches 1,8,16,32] [--json]

Two sets: `facts`, the demo's own short items, and `prose`, four-choice items of 30 to 60 prompt tokens and choices of
several, cut from evals/prose.txt. Each is asked whole and in looks of 48 items, as the program asks it. Stock and ours
take turns on one model in one process; stock counts with the best of its batch sizes. CPU seconds are the number to
compare on a machine that others use too; a count of tokens, and the floor, say what of it is arithmetic:

    floor = (2 x layers' weights x tokens + 2 x output matrix x places) / rate of a matrix product of 512 rows

The checkpoint is a store's `fetch/*/checkpoint`, by default one of `artifacts`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOK = 48


def facts():
    """(prompt, choices) of the demo's items, in a seeded random order."""
    files = sorted((ROOT / "evals/facts").glob("*.jsonl"))
    items = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    random.Random(0).shuffle(items)
    return [(item["prompt"], item["choices"]) for item in items if item.get("choices")]


def prose(tokenizer, count):
    """(prompt, choices): a passage of 30 to 60 tokens, how it goes on for six words, and three other places' words."""
    words = (ROOT / "evals/prose.txt").read_text().split()
    draw = random.Random(0)
    items = []
    while len(items) < count:
        start = draw.randrange(len(words) - 80)
        length = draw.randrange(22, 46)
        prompt = " ".join(words[start : start + length])
        if not 30 <= len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) <= 60:
            continue
        places = [start + length, *(draw.randrange(len(words) - 6) for _ in range(3))]
        items.append((prompt, [" " + " ".join(words[place : place + 6]) for place in places]))
    return items


def ask(lm, items):
    """Scores by request, wall seconds and CPU seconds; tokenization counts, on both sides."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (prompt, choice), number)
        for number, (prompt, choices) in enumerate(items)
        for choice in choices
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    answers = lm.loglikelihood(requests, disable_tqdm=True)
    return answers, time.perf_counter() - wall, time.process_time() - cpu


def asked_in(lm, items, look):
    """As `ask`, in looks of so many items."""
    answers, wall, cpu = [], 0.0, 0.0
    for start in range(0, len(items), look):
        found, seconds, cpu_seconds = ask(lm, items[start : start + look])
        answers, wall, cpu = answers + found, wall + seconds, cpu + cpu_seconds
    return answers, wall, cpu


class Counter:
    """Tokens that enter a model, and places at which its output matrix is applied, between two calls of `take`."""

    def __init__(self, model):
        self.tokens = self.places = 0
        model.get_input_embeddings().register_forward_hook(self._entered)
        model.get_output_embeddings().register_forward_hook(self._left)

    def _entered(self, _module, inputs, _output):
        self.tokens += inputs[0].numel()

    def _left(self, _module, inputs, _output):
        self.places += inputs[0].shape[:-1].numel()

    def take(self):
        found = {"tokens": self.tokens, "places": self.places}
        self.tokens = self.places = 0
        return found


def floor(model, counted):
    """CPU seconds that the matrix products alone need for the counted tokens, at the rate of 512 rows."""
    import torch

    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    wide = max(linears, key=lambda linear: linear.weight.numel())
    rows = torch.randn(512, wide.in_features, dtype=wide.weight.dtype, device=wide.weight.device)
    rates = []
    with torch.inference_mode():
        for _ in range(5):
            cpu = time.process_time()
            for _ in range(20):
                torch.nn.functional.linear(rows, wide.weight)
            rates.append(20 * 2 * 512 * wide.weight.numel() / (time.process_time() - cpu))
    weights = sum(linear.weight.numel() for linear in linears)
    work = 2 * (weights * counted["tokens"] + head.weight.numel() * counted["places"])
    return {"floor_cpu_s": work / max(rates), "gflops_per_cpu_s": max(rates) / 1e9}


def furthest(session, items, ours, stock, count=12):
    """How far ours and stock lie from a float64 pass, at the choices on which the two differ most."""
    import copy

    import torch
    from lm_eval.models.huggingface import HFLM

    asked = [(prompt, choice) for prompt, choices in items for choice in choices]
    apart = [abs(one[0] - other[0]) for one, other in zip(ours, stock, strict=True)]
    model, encode = copy.deepcopy(session.model).double(), HFLM(session.model, tokenizer=session.tokenizer)._encode_pair
    errors = []
    for place in sorted(range(len(apart)), key=lambda place: -apart[place])[:count]:
        prompt, choice = encode(*asked[place])
        with torch.inference_mode():
            scores = model(torch.tensor([prompt + choice], device=model.device)).logits[0, len(prompt) - 1 : -1]
        exact = float(scores.log_softmax(-1).gather(1, torch.tensor(choice, device=model.device)[:, None]).sum())
        errors.append((abs(ours[place][0] - exact), abs(stock[place][0] - exact)))
    return {
        "choices": len(apart),
        "above_1e-4": sum(value > 1e-4 for value in apart),
        "furthest": len(errors),
        "ours_nearer_to_float64": sum(mine < theirs for mine, theirs in errors),
        "ours_off_by": max(mine for mine, _ in errors),
        "stock_off_by": max(theirs for _, theirs in errors),
    }


def compare(session, name, items, look, batches, counter):
    """One line of the table: stock's best batch size beside ours."""
    from lm_eval.models.huggingface import HFLM

    stock, lm = {}, session.lm()
    counter.take()
    ours = asked_in(lm, items, look)
    counted = counter.take()
    tokens = {}
    for size in batches:
        stock[size] = asked_in(
            HFLM(pretrained=session.model, tokenizer=session.tokenizer, batch_size=size), items, look
        )
        tokens[size] = counter.take()
    # In turns, ours first and last, so that a machine that slows down favours nobody; the mean of the two counts.
    again = asked_in(session.lm(), items, look)
    ours = (ours[0], (ours[1] + again[1]) / 2, (ours[2] + again[2]) / 2)
    best = min(stock, key=lambda size: stock[size][2])
    difference = [max(abs(a[0] - b[0]) for a, b in zip(ours[0], run[0], strict=True)) for run in stock.values()]
    runs = list(stock.values())
    itself = [max(abs(a[0] - b[0]) for a, b in zip(runs[0][0], run[0], strict=True)) for run in runs[1:]]
    # Where two logits are equal to rounding, either may be called the greatest.
    flags = sum(a[1] != b[1] for a, b in zip(ours[0], stock[best][0], strict=True))
    return {
        "set": name,
        "items": len(items),
        "look": min(look, len(items)),
        "stock": {size: {"s": run[1], "cpu_s": run[2], **tokens[size]} for size, run in stock.items()},
        "best_batch": best,
        "ours": {"s": ours[1], "cpu_s": ours[2], **counted, **floor(session.model, counted)},
        "ratio_s": min(run[1] for run in runs) / ours[1],
        "ratio_cpu_s": stock[best][2] / ours[2],
        "greatest_difference": max(difference),
        "stock_differs_from_itself_by": max(itself, default=0.0),
        "greedy_flags_that_differ": flags,
        "exact": furthest(session, items, ours[0], stock[best][0]) if look >= len(items) else None,
    }


def shown(line):
    """A result in a few lines of text."""
    ours = line["ours"]
    yield f"{line['set']}: {line['items']} items in looks of {line['look']}"
    for size, run in line["stock"].items():
        yield f"  stock {size:>3}  {run['s']:7.2f} s {run['cpu_s']:7.2f} CPU s  {run['tokens']:>7} tokens"
    yield f"  ours       {ours['s']:7.2f} s {ours['cpu_s']:7.2f} CPU s  {ours['tokens']:>7} tokens"
    yield f"  floor      {'':9} {ours['floor_cpu_s']:7.2f} CPU s at {ours['gflops_per_cpu_s']:.0f} GFLOP a CPU second"
    yield f"  ratio      {line['ratio_s']:7.2f}   {line['ratio_cpu_s']:7.2f}"
    yield (
        f"  greatest difference {line['greatest_difference']:.1e} (stock's batch sizes among themselves: "
        f"{line['stock_differs_from_itself_by']:.1e}); greedy flags that differ: {line['greedy_flags_that_differ']}"
    )
    if exact := line["exact"]:
        yield f"  {exact['above_1e-4']} of {exact['choices']} choices differ by more than 1e-4"
        yield (
            f"  of the {exact['furthest']} furthest ours is nearer to float64 in {exact['ours_nearer_to_float64']} "
            f"(off by {exact['ours_off_by']:.1e} at most, stock by {exact['stock_off_by']:.1e})"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=next(ROOT.glob("artifacts/fetch/*/checkpoint"), None))
    parser.add_argument("--items", type=int, default=10**6, help="at most so many of each set")
    parser.add_argument("--batches", default="16,32", help="stock's batch sizes; the best counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.checkpoint is None:
        parser.error("no artifacts/fetch/*/checkpoint here: run `make demo` first, or give --checkpoint DIR")
    from quantize.engines.transformers import Transformers

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    session = Transformers(dtype="float32").open(options.checkpoint, options.device)
    counter = Counter(session.model)
    batches = [int(size) for size in options.batches.split(",")]
    sets = {"facts": facts()[: options.items], "prose": prose(session.tokenizer, min(options.items, 300))}
    # What is done once in a process (pages, threads, kernels) belongs to neither side.
    ask(session.lm(), sets["facts"][:LOOK])
    lines = []
    for name, items in sets.items():
        for look in (len(items), LOOK):
            lines.append(compare(session, name, items, look, batches, counter))
            if not options.json:
                print("\n".join(shown(lines[-1])), flush=True)
    if options.json:
        print(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
