"""A task of lm-evaluation-harness as a user writes one: YAML beside its data."""

import json
from pathlib import Path

import yaml

from quantize.metrics import LmEvalTask

TINY = Path(__file__).parents[1] / "tiny_llama" / "items.jsonl"
COUNT = 24
TASK = {
    "task": "tiny_facts",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
    ],
}


def some_questions():
    """COUNT questions with four choices, of every kind that the tiny Llama knows."""
    lines = TINY.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // COUNT]][:COUNT]


def write_task(folder, questions, text="", **changes):
    """A task's YAML and its data in `folder`; `text` is YAML that goes in as it is."""
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, questions)), "utf-8")
    config = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}, **changes}
    path = folder / f"{config['task']}.yaml"
    path.write_text(yaml.safe_dump(config) + text, "utf-8")
    return path


def write_generation(folder, questions):
    """The same questions, answered freely, scored through two filters."""
    write_task(
        folder,
        [{"prompt": item["prompt"], "right": item["choices"][item["answer"]].strip()} for item in questions],
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="right",
        generation_kwargs={"until": [".", "\n"], "do_sample": False, "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=[
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
            {"name": "raw", "filter": [{"function": "take_first"}]},
        ],
    )


def task(folder, **changes):
    """The metric of a task that `write_task` wrote."""
    return LmEvalTask(**{"name": "mine", "task": "tiny_facts", "include_path": str(folder), **changes})
