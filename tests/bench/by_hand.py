"""A run of the pipeline beside the same work by hand: llm-compressor and lm-eval, one command after the other.

    python tests/bench/by_hand.py [--checkpoint DIR] [--items 1000] [--device cpu] [--keep DIR] [--json]

Both sides start from one checkpoint, one file of four-choice items and one file of calibration text, and end with four
quantized checkpoints and accuracies of all five models. By hand that is `oneshot` for each variant and `lm-eval run`
for each model, every one a process of its own, with the libraries' defaults; the commands are printed. Calibration
rows, their number and length and quantization schemes are the same; lm-eval takes 16 requests at a time, the pipeline
as many as its budget of tokens holds. The pipeline is `quantize run` on a fresh store, from its start to its exit code:
besides, it proves that every checkpoint loads and answers as it was made, measures the baseline twice, judges, and
writes to its registry; variants whose gates are certain stop early. What each side found is printed beside the ratio of
the seconds.

Items are cut from evals/prose.txt: a passage, how it goes on for six words, and three other places' words. By default
it is the demo's model. Seconds are wall seconds: use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from demo_model import checkpoint_or_demo

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "fp8": {"scheme": "FP8_DYNAMIC", "method": {"kind": "rtn"}},
    "int8": {"scheme": "W8A8", "method": {"kind": "rtn"}},
    "int4-rtn": {"scheme": "W4A16", "group_size": 64, "method": {"kind": "rtn"}},
    "int4-gptq": {"scheme": "W4A16", "group_size": 64, "method": {"kind": "gptq"}},
}
CALIBRATION = {"samples": 16, "tokens": 256}
BATCH = 16
#: One lm-eval task that asks what the pipeline asks.
TASK = {
    "task": "mine",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


def items(tokenizer, count):
    """Four-choice items in the pipeline's words; the right choice's place is drawn."""
    import random

    from bench_evaluation import prose

    draw = random.Random(1)
    for number, (prompt, choices) in enumerate(prose(tokenizer, count)):
        right, order = choices[0], sorted(choices, key=lambda _: draw.random())
        yield {"id": f"p{number}", "prompt": prompt, "choices": order, "answer": order.index(right)}


def prepared(options, folder):
    """What both sides start from: the checkpoint, the items and the calibration text."""
    from transformers import AutoTokenizer

    checkpoint = checkpoint_or_demo(options.checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lines = [json.dumps(item) for item in items(tokenizer, options.items)]
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "calibration.txt").write_text((ROOT / "evals/prose.txt").read_text(encoding="utf-8"), encoding="utf-8")
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "mine.jsonl")}}}
    (folder / "tasks").mkdir()
    (folder / "tasks/mine.yaml").write_text(yaml.safe_dump(TASK | data), encoding="utf-8")
    return checkpoint


def by_hand_quantize(options):
    """In a process of its own: one variant, with llm-compressor's own words."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from torch.utils.data import DataLoader

    from quantize.calibrators import Text

    asked = VARIANTS[options.variant]
    modifier = {"rtn": QuantizationModifier, "gptq": GPTQModifier}[asked["method"]["kind"]]
    numbers = {"targets": "Linear", "scheme": asked["scheme"]}
    if "group_size" in asked:
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
        groups = {"targets": ["Linear"], "weights": weights | {"group_size": asked["group_size"]}}
        numbers = {"config_groups": {"group_0": groups}}
    rows = None
    if asked["method"]["kind"] == "gptq":
        text = Text(path=str(options.text), **CALIBRATION)
        drawn = text.draw(options.checkpoint, "cpu", lambda *_: None)
        rows = DataLoader([{"input_ids": row.to(torch.int64)} for row in drawn.rows], batch_size=1)
    recipe = modifier(ignore=["lm_head"], **numbers)
    oneshot(model=str(options.checkpoint), recipe=recipe, dataset=rows, output_dir=str(options.out))


def told(command, folder, name):
    """Run a command, print it and how long it took; its output goes to a file. Returns seconds."""
    print(f"  {shlex.join(map(str, command))}", file=sys.stderr)
    begin = time.perf_counter()
    with (folder / f"{name}.log").open("wb") as log:
        code = subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.perf_counter() - begin
    print(f"    {seconds:.1f} s, exit code {code}", file=sys.stderr)
    if code not in (0, 3, 4):
        raise SystemExit(f"{name} failed: {folder / name}.log")
    return seconds


def by_hand(options, checkpoint, folder):
    """Seconds by step, and accuracies of all models."""
    seconds, accuracies = {}, {}
    models = {"baseline": checkpoint}
    for name in VARIANTS:
        models[name] = folder / f"by-hand-{name}"
        command = [sys.executable, __file__, "--variant", name, "--checkpoint", checkpoint, "--out", models[name]]
        seconds[f"oneshot {name}"] = told([*command, "--text", folder / "calibration.txt"], folder, f"oneshot-{name}")
    for name, model in models.items():
        command = [Path(sys.executable).with_name("lm-eval"), "run", "--model", "hf", "--device", options.device]
        command += ["--model_args", f"pretrained={model}", "--tasks", "mine", "--include_path", folder / "tasks"]
        command += ["--batch_size", BATCH, "--output_path", folder / "scores" / name]
        seconds[f"lm-eval {name}"] = told(command, folder, f"lm-eval-{name}")
        found = next((folder / "scores" / name).rglob("results_*.json"))
        accuracies[name] = json.loads(found.read_text())["results"]["mine"]["acc,none"]
    return seconds, accuracies


def pipeline(checkpoint, folder):
    """Seconds of the run, and its JSON document."""
    recipe = {
        "version": 1,
        "name": "by-hand",
        "model": {"kind": "directory", "path": str(checkpoint.absolute())},
        # The items are cut from that text; what is measured here is time.
        "calibration": {
            "kind": "text",
            "path": str(folder / "calibration.txt"),
            "allow_overlap": True,
            **CALIBRATION,
        },
        "variants": [{"name": name, **asked} for name, asked in VARIANTS.items()],
        "evals": [{"kind": "items", "name": "mine", "path": str(folder / "mine.jsonl")}],
        "early_stopping": {"enabled": True},
        "gates": [{"kind": "noninferiority", "metric": "mine.accuracy", "margin": 0.05}],
        "registry": {"kind": "mlflow", "name": "by-hand"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    command = [Path(sys.executable).with_name("quantize"), "run", folder / "recipe.yaml", "--store", folder / "store"]
    seconds = told(command, folder, "pipeline")
    report = [*command[:1], "report", "--store", folder / "store", "--json"]
    return seconds, json.loads(subprocess.run(list(map(str, report)), stdout=subprocess.PIPE, check=True).stdout)


def measured(options, folder):
    """Both sides, one after the other."""
    checkpoint = prepared(options, folder)
    print("by hand:", file=sys.stderr)
    steps, accuracies = by_hand(options, checkpoint, folder)
    print("the pipeline:", file=sys.stderr)
    seconds, report = pipeline(checkpoint, folder)
    return {
        "items": options.items,
        "by_hand_s": sum(steps.values()),
        "pipeline_s": seconds,
        "ratio": seconds / sum(steps.values()),
        "steps_s": steps,
        "accuracy_by_hand": accuracies,
        "report": report,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="by default the demo's model")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="a new folder for all files, instead of a temporary one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        by_hand_quantize(options)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        found = measured(options, folder.absolute())
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, seconds in found["steps_s"].items():
        print(f"{name:<24} {seconds:7.1f} s")
    print(f"{'all by hand':<24} {found['by_hand_s']:7.1f} s\n{'quantize run':<24} {found['pipeline_s']:7.1f} s")
    print(f"ratio {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
