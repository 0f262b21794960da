"""Answers that are generated: several of them sampled, read, and measured by their length."""

import json

import pytest
from program import tiny_recipe, write_recipe

from quantize.errors import RecipeError
from quantize.metrics import Items, items
from quantize.metrics._rows import read_rows
from quantize.recipe import load

SUMS = [(7, 4), (18, 5), (3, 9), (12, 6), (5, 5), (9, 8), (2, 2), (14, 3)]


def write_questions(path, answer=lambda a, b: f"{a + b}"):
    lines = [{"id": f"{a}+{b}", "prompt": f"{a} plus {b} is", "answer": answer(a, b)} for a, b in SUMS]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "sums.jsonl")


def sampled(path, **changes):
    usual = {"generations": 3, "temperature": 1.5, "max_new_tokens": 2}
    return Items(name="sums", path=str(path), **{**usual, **changes})


@pytest.fixture
def said(monkeypatch):
    """All that the model said, by item, as the harness gave it."""
    run, heard = items.run_tasks, {}

    def watch(lm, tasks, **how):
        samples = run(lm, tasks, **how)
        for sample in (sample for found in samples.values() for sample in found):
            heard.setdefault(sample["doc"]["id"], []).append(sample["filtered_resps"][0])
        return samples

    monkeypatch.setattr(items, "run_tasks", watch)
    return heard


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


def test_the_score_of_an_item_is_the_mean_over_its_generations(measured, baseline, tmp_path, said):
    """The first digit of a sum: the model wavers between two of them."""
    metric = sampled(write_questions(tmp_path / "digits.jsonl", lambda a, b: "1"), max_new_tokens=1)
    rows = {row["item_id"]: row for row in read_rows(measured(metric, baseline)[1])}
    assert {name: len(texts) for name, texts in said.items()} == {f"{a}+{b}": 3 for a, b in SUMS}
    for name, row in rows.items():
        texts = [text.strip() for text in said[name]]
        assert row["score"] == pytest.approx(sum(text == "1" for text in texts) / 3)
        assert row["answer"].split("\n") == list(dict.fromkeys(texts))
    assert any(0 < row["score"] < 1 for row in rows.values()), "no item shows that a mean was taken"


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(measured, baseline, questions):
    metric = sampled(questions)
    answers = [
        {row["item_id"]: row["answer"] for row in read_rows(measured(metric, baseline, seed=seed)[1])}
        for seed in (5, 5, 6)
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_a_resumed_measurement_samples_what_the_whole_one_sampled(
    job_for, parts_in, baseline, questions, tmp_path, monkeypatch
):
    """Chance belongs to the look: what was drawn before a kill does not shift what is drawn after it."""
    metric, run = sampled(questions), items.run_tasks
    whole = job_for(baseline, look=3)
    metric.measure(whole)
    calls = []

    def dies(lm, tasks, **how):
        calls.append(how)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(lm, tasks, **how)

    monkeypatch.setattr(items, "run_tasks", dies)
    with pytest.raises(KeyboardInterrupt):
        metric.measure(job_for(baseline, look=3, parts=parts_in(tmp_path / "store")))
    resumed = job_for(baseline, look=3, parts=parts_in(tmp_path / "store"))
    metric.measure(resumed)
    assert read_rows(resumed.out) == read_rows(whole.out)
    assert len({how["seed"] for how in calls}) == 3, "each look draws from a seed of its own"


def test_one_generation_is_greedy_and_the_same_whatever_the_seed(measured, baseline, questions):
    metric = sampled(questions, generations=1, temperature=0)
    by_seed = [
        {row["item_id"]: row["answer"] for row in read_rows(measured(metric, baseline, seed=seed)[1])}
        for seed in (0, 7)
    ]
    assert by_seed[0] == by_seed[1]


def test_the_temperature_is_the_one_that_answers_are_sampled_at(measured, baseline, questions):
    greedy, cold, hot = (
        {row["item_id"]: row["answer"] for row in read_rows(measured(metric, baseline)[1])}
        for metric in (
            sampled(questions, generations=1, temperature=0),
            sampled(questions, temperature=0.01),
            sampled(questions, temperature=2),
        )
    )
    assert cold == greedy, "three answers that are all the likeliest one"
    assert hot != greedy


def test_a_generation_holds_an_answer_unless_it_is_empty_or_was_cut_off(measured, baseline, questions, say):
    texts = {f"{a}+{b}": [f"{a + b}"] * 3 for a, b in SUMS}
    texts["7+4"] = ["", "  ", "11"]
    texts["18+5"] = ["23", "one and two and three and four and five", "24"]
    say(texts)
    found, out = measured(sampled(questions, max_new_tokens=8), baseline)
    rows = {row["item_id"]: row for row in read_rows(out)}
    assert (rows["7+4"]["parsed"], rows["7+4"]["score"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (rows["18+5"]["parsed"], rows["18+5"]["score"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    others = [row for name, row in rows.items() if name not in ("7+4", "18+5")]
    assert {(row["parsed"], row["score"]) for row in others} == {(1.0, 1.0)}
    parsed = next(m for m in found.measurements if m.name == "sums.parsed")
    assert (parsed.value, parsed.n) == (pytest.approx(7 / 8), 8)


def test_the_length_of_an_answer_is_counted_in_the_models_own_tokens(measured, baseline, questions, say):
    texts = {f"{a}+{b}": ["11", "eleven", ""] for a, b in SUMS}
    say(texts)
    found, out = measured(sampled(questions), baseline)
    expected = sum(len(baseline.encode(text)) for text in ("11", "eleven", "")) / 3
    assert [row["tokens"] for row in read_rows(out)] == pytest.approx([expected] * len(SUMS))
    mean = next(m for m in found.measurements if m.name == "sums.output_tokens")
    assert (mean.value, mean.unit, mean.direction) == (pytest.approx(expected), "tokens", "lower")


def test_a_generation_that_is_lost_leaves_the_item_without_a_row(measured, baseline, questions, monkeypatch):
    run = items.run_tasks

    def loses(lm, tasks, **how):
        samples = run(lm, tasks, **how)
        found = samples["sums-free"]
        found.remove(next(sample for sample in found if sample["doc"]["id"] == "7+4"))
        return samples

    monkeypatch.setattr(items, "run_tasks", loses)
    found, _ = measured(sampled(questions), baseline)
    assert found.hard_stops == ["item '7+4' has no answer (1 have none)"]


def recipe_problem(folder, questions, **changes):
    """The one line that loading a recipe says about an eval, without the recipe's own path, and that line's text."""
    eval_ = {"kind": "items", "name": "facts", "path": str(questions), **changes}
    path = write_recipe(folder, tiny_recipe(evals=[eval_]))
    with pytest.raises(RecipeError) as caught:
        load(path)
    (problem,) = caught.value.problems
    line, _, said = problem.removeprefix(f"{path}:").partition(" ")
    return path.read_text("utf-8").splitlines()[int(line) - 1].strip(), said


def test_no_generation_at_all_is_refused_at_its_line(questions, tmp_path):
    line, said = recipe_problem(tmp_path, questions, generations=0, temperature=0.7)
    assert line == "generations: 0"
    assert said.startswith("evals.0.generations: ")
    assert "1" in said


@pytest.mark.parametrize("temperature", [{}, {"temperature": 0}])
def test_several_generations_without_chance_are_refused(questions, tmp_path, temperature):
    line, said = recipe_problem(tmp_path, questions, generations=3, **temperature)
    assert line.startswith("- kind: items")
    assert said.startswith("evals.0")
    assert "several generations at temperature 0 are all the same: set a temperature" in said
