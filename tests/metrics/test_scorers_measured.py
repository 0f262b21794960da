"""Scorers in an eval: answers that are right, unreadable or cut off, and which choice is the likeliest."""

import json
import urllib.request
from dataclasses import replace

import pytest
from chat_models import CHECKPOINT, sums, write_items
from program import problems_of, tiny_recipe, write_recipe

from quantize.errors import DataError, EngineLost
from quantize.metrics import Items, items
from quantize.metrics._rows import read_rows, write_rows
from quantize.scorers import Choice, Command, Exact, Judge, Numeric, Pattern

TINY = CHECKPOINT.parent / "items.jsonl"


@pytest.fixture
def say(monkeypatch):
    """Put texts in the model's mouth: `say({item id: [text of each generation]})`."""
    run = items.run_tasks

    def instead(texts):
        def spoken(lm, tasks, **how):
            samples = run(lm, tasks, **how)
            left = {name: list(several) for name, several in texts.items()}
            for sample in (sample for found in samples.values() for sample in found):
                sample["filtered_resps"] = [left[sample["doc"]["id"]].pop(0)]
            return samples

        monkeypatch.setattr(items, "run_tasks", spoken)

    return instead


def measurement(found, name):
    return next(m for m in found.measurements if m.name == name)


SAID = {
    "chat-0": ["It is 1."],
    "chat-1": ["It is 4."],
    "chat-2": ["I do not know."],
    "chat-3": ["It is 7 and " + "one and two and three and four and five and six"],
}


def test_rows_tell_right_wrong_unreadable_and_cut_off_apart(measured, baseline, tmp_path, say):
    say(SAID)
    path = write_items(tmp_path / "items.jsonl", sums(4))
    metric = Items(name="sums", path=path, max_new_tokens=12, scorer=Numeric())
    found, out = measured(metric, baseline)
    rows = {row["item_id"]: (row["score"], row["parsed"], row["truncated"]) for row in read_rows(out)}
    assert rows == {
        "chat-0": (1.0, 1.0, 0.0),
        "chat-1": (0.0, 1.0, 0.0),
        "chat-2": (0.0, 0.0, 0.0),
        "chat-3": (1.0, 0.0, 1.0),
    }
    assert measurement(found, "sums.accuracy").value == 0.5
    assert measurement(found, "sums.parsed").value == 0.5
    cut = measurement(found, "sums.truncated")
    assert (cut.value, cut.direction, cut.n) == (0.25, "lower", 4)
    assert 0 < cut.low < 0.25 < cut.high
    assert found.hard_stops == []


def test_what_was_cut_off_more_often_is_compared_with_its_limits(measured, baseline, tmp_path, say):
    path = write_items(tmp_path / "items.jsonl", sums(40))
    metric = Items(name="sums", path=path, max_new_tokens=8, scorer=Numeric())
    long = "one and two and three and four"
    say({f"chat-{i}": ["3" if i % 10 else long] for i in range(40)})
    _, before = measured(metric, baseline)
    say({f"chat-{i}": ["3" if i % 4 else long] for i in range(40)})
    _, after = measured(metric, baseline)
    found = {c.metric: c for c in metric.compare(before, after, 0.0)}["sums.truncated"]
    assert (found.baseline, found.variant) == (pytest.approx(0.1), pytest.approx(0.25))
    assert found.difference == pytest.approx(0.15)
    assert found.low < 0.15 < found.high
    parsed = {c.metric: c for c in metric.compare(before, after, 0.0)}["sums.parsed"]
    assert (found.low, found.high) == (pytest.approx(-parsed.high), pytest.approx(-parsed.low))


def test_rows_of_an_older_program_are_compared_without_what_they_lack(measured, baseline, tmp_path, say):
    say(SAID)
    path = write_items(tmp_path / "items.jsonl", sums(4))
    metric = Items(name="sums", path=path, max_new_tokens=8, scorer=Numeric())
    _, out = measured(metric, baseline)
    old = tmp_path / "old"
    old.mkdir()
    from quantize.evidence import ITEM_ROWS

    columns = {name: kind for name, kind in ITEM_ROWS.items() if name not in ("truncated", "scored_by", "problem")}
    write_rows([{name: row[name] for name in columns} for row in read_rows(out)], columns, old)
    found = {c.metric for c in metric.compare(old, out, 0.0)}
    assert "sums.parsed" in found
    assert "sums.truncated" not in found


def direct(session, prompt, choice):
    """Log-likelihood and number of tokens of a choice, by one forward pass of its own."""
    import torch

    start, ids = len(session.encode(prompt)), session.encode(prompt + choice)
    scores = session.logits(torch.tensor([ids]))[0, :-1].log_softmax(-1)
    return float(scores.gather(1, torch.tensor(ids[1:])[:, None])[start - 1 :].sum()), len(ids) - start


@pytest.mark.parametrize("normalise", ["raw", "per_token", "per_byte"])
def test_the_likeliest_choice_is_found_by_sum_by_token_and_by_byte(measured, baseline, tmp_path, normalise):
    lines = [json.loads(line) for line in TINY.read_text("utf-8").splitlines()][:30]
    # Choices of very different lengths: here the three rules differ.
    for line in lines:
        line["choices"] = [choice * (1 + number) for number, choice in enumerate(line["choices"])]
    path = write_items(tmp_path / "items.jsonl", lines)
    scorer = Choice(normalise=normalise)
    _, out = measured(Items(name="c", path=path, scorer=scorer), baseline)
    rows = {row["item_id"]: row for row in read_rows(out)}
    others = 0
    for line in lines:
        found = [direct(baseline, line["prompt"], choice) for choice in line["choices"]]
        sizes = {
            "raw": [1.0] * 4,
            "per_token": [count for _, count in found],
            "per_byte": [len(choice.strip().encode()) for choice in line["choices"]],
        }[normalise]
        means = [total / size for (total, _), size in zip(found, sizes, strict=True)]
        best = means.index(max(means))
        assert rows[line["id"]]["answer"] == line["choices"][best]
        assert rows[line["id"]]["score"] == float(best == line["answer"])
        sums_ = [total for total, _ in found]
        others += best != sums_.index(max(sums_))
    assert (others > 0) == (normalise != "raw"), "the rules differ on these items"


def test_a_default_that_is_spelled_out_changes_no_key_and_a_scorer_does(tmp_path):
    chosen = Items(name="m", path=str(TINY))
    assert Items(name="m", path=str(TINY), scorer=Choice()).identity() == chosen.identity()
    assert Items(name="m", path=str(TINY), scorer=Choice(normalise="per_byte")).identity() != chosen.identity()
    path = write_items(tmp_path / "items.jsonl", sums(3))
    free = Items(name="m", path=path)
    assert Items(name="m", path=path, scorer=Exact()).identity() == free.identity()
    assert Items(name="m", path=path, scorer=Numeric()).identity() != free.identity()
    assert Items(name="m", path=path, scorer=Numeric()).dataset() == free.dataset(), "attempts count whatever is scored"


def test_an_item_that_cannot_be_scored_is_named_with_its_line(tmp_path):
    lines = [*sums(2), {"id": "odd", "prompt": "2 + 2 =", "answer": "four"}]
    path = write_items(tmp_path / "items.jsonl", lines)
    with pytest.raises(DataError, match=r"item 'odd' cannot be scored by `numeric`: .*not one number") as caught:
        Items(name="m", path=path, scorer=Numeric()).identity()
    assert caught.value.where == f"{path}:3"
    with pytest.raises(DataError, match="all items have choices, and `numeric` scores texts"):
        Items(name="m", path=str(TINY), scorer=Numeric()).identity()
    with pytest.raises(DataError, match="`choice` scores items that have 'choices'"):
        Items(name="m", path=path, scorer=Choice()).identity()


def test_an_answer_may_be_a_number_or_an_object_where_a_scorer_reads_it(tmp_path):
    path = write_items(tmp_path / "items.jsonl", [{"id": "a", "prompt": "2 + 2 =", "answer": 4}])
    Items(name="m", path=path, scorer=Numeric()).identity()
    with pytest.raises(DataError, match="'answer' is the text that must be generated"):
        Items(name="m", path=path).identity()


def test_more_items_than_allowed_that_cannot_be_scored_are_a_hard_stop(measured, baseline, tmp_path, say):
    path = write_items(tmp_path / "items.jsonl", sums(10))
    endless = {f"chat-{i}": ["a" * 60 + "b"] if i < 3 else [f"{2 * i + 1}"] for i in range(10)}

    def measure(at_most):
        say(endless)
        scorer = Pattern(pattern=r"^((?:a|aa)+|\d+)$", seconds=0.05, errors_at_most=at_most)
        return measured(Items(name="m", path=path, scorer=scorer, max_new_tokens=500), baseline)

    found, out = measure(0.3)
    assert found.hard_stops == []
    assert measurement(found, "m.not_scored").value == pytest.approx(0.3)
    assert measurement(found, "m.accuracy").value == pytest.approx(0.7), "what cannot be scored is wrong"
    assert sum(row["problem"] is not None for row in read_rows(out)) == 3
    found, _ = measure(0.2)
    (stop,) = found.hard_stops
    assert stop.startswith("3 of 10 items could not be scored, more than 20 % of 10: item 'chat-")


def test_a_scorer_that_there_is_not_is_named_at_its_line(tmp_path):
    evals = [{"kind": "items", "name": "facts", "path": str(TINY), "scorer": {"kind": "numerical"}}]
    recipe = write_recipe(tmp_path, tiny_recipe(evals=evals))
    (problem,) = problems_of(recipe)
    assert "evals.0.scorer" in problem
    assert "'numeric'" in problem
    evals[0]["scorer"] = {"kind": "choice", "normalize": "raw"}
    (problem,) = problems_of(write_recipe(tmp_path, tiny_recipe(evals=evals)))
    assert "normalize" in problem and "normalise" in problem


def write_check(folder, text):
    (folder / "check.py").write_text(f"import json, sys, time\ngiven = json.load(sys.stdin)\n{text}\n", "utf-8")
    return ("python", str(folder / "check.py"))


def test_rows_say_what_a_command_was_held_in_and_arms_held_otherwise_are_not_compared(
    measured, baseline, tmp_path, monkeypatch
):
    from quantize.scorers import _sandbox

    run = write_check(
        tmp_path, "print(json.dumps({'score': int(given['id'][-1]) % 2, 'parsed': given['id'] != 'chat-3'}))"
    )
    path = write_items(tmp_path / "items.jsonl", sums(6))
    metric = Items(name="m", path=path, max_new_tokens=50, scorer=Command(run=run, timeout=60))
    found, out = measured(metric, baseline)
    rows = {row["item_id"]: row for row in read_rows(out)}
    assert {name: row["score"] for name, row in rows.items()} == {f"chat-{i}": float(i % 2) for i in range(6)}
    assert rows["chat-3"]["parsed"] == 0.0
    assert {row["scored_by"] for row in rows.values()} == {f"command; {_sandbox.sandbox(2 << 30, 60).enforced()}"}
    assert found.hard_stops == []
    assert metric.compare(out, out, 0.0)
    monkeypatch.setattr(_sandbox, "_allowed", lambda: ())
    _, other = measured(metric, baseline)
    with pytest.raises(DataError, match="by commands that were held otherwise under item 'chat-0'") as caught:
        metric.compare(out, other, 0.0)
    assert "on one machine, with the same kernel settings" in caught.value.fix
    assert "version" not in caught.value.fix, "a command has none"


def test_a_command_that_never_ends_costs_one_item_its_score_and_too_many_are_a_hard_stop(measured, baseline, tmp_path):
    run = write_check(tmp_path, "time.sleep(60 * (given['id'] == 'chat-2'))\nprint('{\"score\": 1}')")
    path = write_items(tmp_path / "items.jsonl", sums(8))

    def measure(at_most):
        scorer = Command(run=run, timeout=3, errors_at_most=at_most)
        return measured(Items(name="m", path=path, max_new_tokens=2, scorer=scorer), baseline)

    found, out = measure(0.2)
    assert {row["item_id"]: row["score"] for row in read_rows(out)} == {f"chat-{i}": float(i != 2) for i in range(8)}
    assert found.hard_stops == []
    found, _ = measure(0.1)
    (stop,) = found.hard_stops
    assert stop.endswith("more than 10 % of 8: item 'chat-2', the command did not end in time")


def test_arms_that_were_judged_by_different_versions_are_not_compared(measured, baseline, tmp_path, judge_server):
    path = write_items(tmp_path / "items.jsonl", sums(4))
    scorer = Judge(url=f"{judge_server}/v1", model="rules", prompt_template="{answer}|{output}", retries=0)
    metric = Items(name="m", path=path, max_new_tokens=2, scorer=scorer)
    report(judge_server, "rules-1,fp-1")
    _, before = measured(metric, baseline)
    (by,) = {row["scored_by"] for row in read_rows(before)}
    assert by.startswith("judge rules-rules-1 fp-1, template ")
    _, after = measured(metric, baseline)
    assert metric.compare(before, after, 0.0)
    report(judge_server, "rules-2,fp-1")
    _, after = measured(metric, baseline)
    with pytest.raises(DataError, match=r"different judges under item 'chat-0': .*rules-1 .*rules-2 .*`version`"):
        metric.compare(before, after, 0.0)


def test_an_answer_that_the_judge_refuses_counts_as_not_scored_and_arms_are_compared(
    measured, baseline, tmp_path, judge_server, say
):
    path = write_items(tmp_path / "items.jsonl", sums(10))
    texts = {f"chat-{i}": [f"{2 * i + 1}"] for i in range(10)}

    def metric(at_most):
        scorer = Judge(url=f"{judge_server}/v1", model="picky-400", prompt_template="{answer}|{output}",
                       errors_at_most=at_most)  # fmt: skip
        return Items(name="m", path=path, max_new_tokens=50, scorer=scorer)

    say(texts)
    _, before = measured(metric(0.1), baseline)
    say({**texts, "chat-4": ["forbidden"]})
    found, after = measured(metric(0.1), baseline)
    assert found.hard_stops == []
    assert measurement(found, "m.not_scored").value == pytest.approx(0.1)
    assert metric(0.1).compare(before, after, 0.0)
    say({**texts, "chat-4": ["forbidden"]})
    found, _ = measured(metric(0.0), baseline)
    (stop,) = found.hard_stops
    assert "item 'chat-4', the judge refuses: 400 " in stop


def test_a_stage_that_lost_its_judge_goes_on_without_paying_twice(job_for, baseline, tmp_path, judge_server, parts_in):
    path = write_items(tmp_path / "items.jsonl", sums(6))
    scorer = Judge(url=f"{judge_server}/v1", model="rules-stage", prompt_template="{answer}|{output}", retries=0)
    metric = Items(name="m", path=path, max_new_tokens=2, scorer=scorer)
    report(judge_server, "rules-1,fp-1")
    gone = metric.model_copy(update={"scorer": scorer.model_copy(update={"url": "http://127.0.0.1:9"})})
    kept = tmp_path / "kept"
    first = job_for(baseline, look=3, parts=parts_in(tmp_path / "store"), kept=kept)
    answered = []

    def stop(rows):
        answered.extend(rows)
        raise EngineLost("the machine is taken away after the first look")

    with pytest.raises(EngineLost):
        metric.measure(replace(first, stop=stop))
    paid = report(judge_server)
    with pytest.raises(EngineLost, match="the judge did not answer"):
        gone.measure(job_for(baseline, look=3, parts=parts_in(tmp_path / "store"), kept=kept))
    found = metric.measure(job_for(baseline, look=3, parts=parts_in(tmp_path / "store"), kept=kept))
    assert measurement(found, "m.accuracy").n == 6
    contents = [one["messages"][0]["content"] for one in report(judge_server) if one["model"] == "rules-stage"]
    assert len(contents) == len(set(contents)) <= 6
    assert 1 <= sum(one["model"] == "rules-stage" for one in paid) <= 3
    # Another arm that says the same is judged by what was kept.
    metric.measure(job_for(baseline, arm="other", kept=kept))
    assert sum(one["model"] == "rules-stage" for one in report(judge_server)) == len(contents)


def report(server, version=None):
    """What the judge was asked so far; before it, what it shall say of itself."""
    with urllib.request.urlopen(f"{server}/{f'version?{version}' if version else 'seen'}", timeout=10) as reply:
        return json.loads(reply.read())
