"""The user's own items, measured: each row holds what the model said to that very item."""

import json
import random
from pathlib import Path

import pytest

from quantize.metrics import Items, items
from quantize.metrics._harness import make_task
from quantize.metrics._rows import read_rows

TINY = Path(__file__).parents[1] / "tiny_llama" / "items.jsonl"
FREE = [
    {"id": "free-1", "prompt": "7 plus 4 is", "answer": "11. 18 plus"},
    {"id": "free-2", "prompt": "18 plus 5 is", "answer": " 99 ", "slice": "sums"},
]


def write(path, lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def load(path, **changes):
    return Items(name="facts", path=str(path), **changes)


@pytest.fixture(scope="module")
def questions():
    return [json.loads(line) for line in TINY.read_text("utf-8").splitlines()][::5]


@pytest.fixture(scope="module")
def answered(tmp_path_factory, measured, baseline, questions):
    """(metric, measurements, folder) of the baseline on questions with choices and without, in a mixed order."""
    mixed = [*questions, *FREE]
    random.Random(0).shuffle(mixed)
    metric = load(write(tmp_path_factory.mktemp("mixed") / "items.jsonl", mixed), max_new_tokens=5)
    return metric, *measured(metric, baseline)


def likeliest(session, prompt, choices):
    """The choice with the greatest summed log-probability: one forward pass for each, nothing shared."""
    import torch

    sums = []
    for choice in choices:
        start, ids = len(session.encode(prompt)), session.encode(prompt + choice)
        scores = session.logits(torch.tensor([ids]))[0, :-1].log_softmax(-1)
        sums.append(float(scores.gather(1, torch.tensor(ids[1:])[:, None])[start - 1 :].sum()))
    return choices[sums.index(max(sums))]


def test_each_row_holds_what_the_model_said_to_its_own_item(answered, baseline, questions):
    """Red when rows are shifted by one against the items."""
    rows = {row["item_id"]: row for row in read_rows(answered[2])}
    assert len(rows) == len(questions) + len(FREE)
    for item in questions:
        row = rows[item["id"]]
        expected = likeliest(baseline, item["prompt"], item["choices"])
        right = item["choices"][item["answer"]]
        assert (row["answer"], row["target"], row["prompt"]) == (expected, right, item["prompt"])
        assert row["score"] == float(expected == right)
        assert row["slice"] == item["slice"]
    assert len({row["prompt_sha256"] for row in rows.values()}) == len(rows)


def test_a_free_answer_is_generated_text_up_to_a_newline_compared_after_stripping(answered):
    rows = {row["item_id"]: row for row in read_rows(answered[2])}
    assert rows["free-1"]["answer"].startswith("11.")
    assert rows["free-1"]["answer"] == rows["free-1"]["answer"].strip()
    for item in FREE:
        row = rows[item["id"]]
        assert row["score"] == float(row["answer"] == item["answer"].strip())
    assert rows["free-2"]["score"] == 0.0


def test_accuracy_is_the_share_of_right_rows_overall_and_per_slice(answered):
    metric, found, folder = answered
    rows = read_rows(folder)
    names = {m.name: m for m in found.measurements}
    slices = {row["slice"] for row in rows} - {None}
    generated = {"facts.parsed", "facts.truncated", "facts.output_tokens"}
    expected = {"facts.accuracy", *generated, *(f"facts.accuracy/{s}" for s in slices)}
    assert set(names) == expected
    for suffix, group in [("", rows)] + [(f"/{s}", [r for r in rows if r["slice"] == s]) for s in slices]:
        measurement = names[f"facts.accuracy{suffix}"]
        assert (measurement.value, measurement.n) == (sum(r["score"] for r in group) / len(group), len(group))
        assert measurement.low <= measurement.value <= measurement.high
    assert not found.hard_stops
    assert metric.cluster_sizes() == [1] * len(rows)
    assert metric.cluster_sizes("sums") == [1] * sum(row["slice"] == "sums" for row in rows)
    assert set(metric.slices()) == slices


def test_the_order_of_items_changes_no_row(answered, measured, baseline, tmp_path):
    lines = sorted(Path(answered[0].path).read_text("utf-8").splitlines())
    _, folder = measured(load(write(tmp_path / "sorted.jsonl", lines), max_new_tokens=5), baseline)
    place = {"place": None, "look": None}
    by_id = [{row["item_id"]: {**row, **place} for row in read_rows(out)} for out in (answered[2], folder)]
    assert by_id[0] == by_id[1]


def test_the_harness_is_given_the_prompt_as_it_is_written(measured, baseline, tmp_path, monkeypatch):
    """No template, no delimiter, no stripping: braces and blanks are the user's."""
    seen = []
    run = items.run_tasks

    def watch(lm, tasks, **how):
        samples = run(lm, tasks, **how)
        seen.extend(sample for found in samples.values() for sample in found)
        return samples

    monkeypatch.setattr(items, "run_tasks", watch)
    prompts = ["{{ 1 + 1 }} plus\n2 is ", "  7", "5"]
    lines = [{"id": str(i), "prompt": p, "choices": [" 4", "{{x}}"], "answer": " 4"} for i, p in enumerate(prompts)]
    measured(load(write(tmp_path / "items.jsonl", lines)), baseline)
    assert {sample["arguments"][0][0]: sample["arguments"] for sample in seen} == {
        p: [(p, " 4"), (p, "{{x}}")] for p in prompts
    }


def test_a_model_that_gives_nan_is_stopped_and_never_scored(measured, broken, questions, tmp_path):
    found, folder = measured(load(write(tmp_path / "items.jsonl", questions[:6])), broken)
    assert found.hard_stops
    assert all("log-likelihood that is not finite" in sentence for sentence in found.hard_stops)
    assert {row["score"] for row in read_rows(folder)} == {0.0}


def test_nan_while_generating_is_a_hard_stop_too(measured, broken, tmp_path):
    """A text does not show that its logits were NaN: the greedy token of NaN is some token."""
    found, _ = measured(load(write(tmp_path / "items.jsonl", FREE), max_new_tokens=3), broken)
    assert found.hard_stops == ["the logits were not finite while answers were generated"]


def test_accuracy_is_the_harnesss_own_acc_by_its_own_model(answered, baseline, questions):
    """The same items as a task of the stock harness, with its stock model and its own average."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    chosen = [{key: item[key] for key in ("prompt", "choices", "answer")} for item in questions]
    task = make_task(
        "stock",
        chosen,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    )
    lm = HFLM(pretrained=baseline.model, tokenizer=baseline.tokenizer, batch_size=8)
    tasks = {"tasks": {"stock": task}, "groups": {}, "group_map": {}}
    result = evaluate(lm=lm, task_dict=tasks, bootstrap_iters=0)
    scores = [row["score"] for row in read_rows(answered[2]) if not row["item_id"].startswith("free")]
    assert len(scores) == len(questions)
    assert result["results"]["stock"]["acc,none"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda found: found.pop(2), "has no answer (1 have none)"),
        (lambda found: found.append(found[0]), "was answered twice"),
    ],
)
def test_an_item_without_exactly_one_row_is_a_hard_stop(
    measured, baseline, questions, tmp_path, monkeypatch, change, sentence
):
    run = items.run_tasks

    def damaged(lm, tasks, **how):
        samples = run(lm, tasks, **how)
        change(samples["facts-choices"])
        return samples

    monkeypatch.setattr(items, "run_tasks", damaged)
    found, _ = measured(load(write(tmp_path / "items.jsonl", questions[:4])), baseline)
    assert [sentence in stop for stop in found.hard_stops] == [True]
