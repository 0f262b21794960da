"""Tasks of lm-evaluation-harness: per-document rows, scores, clusters and slices, and what is refused."""

import json

import pytest
import yaml
from lm_eval_tasks import COUNT, TASK, some_questions, task, write_generation, write_task

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS
from quantize.metrics import Items, lm_eval_task
from quantize.metrics._rows import read_rows

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def questions():
    return some_questions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, questions):
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, questions)
    return folder


@pytest.fixture(scope="module")
def answered(folder, measured, baseline):
    return measured(task(folder), baseline)


def test_every_document_has_one_row_with_the_columns_of_items(answered, questions):
    rows = read_rows(answered[1])
    assert {tuple(row) for row in rows} == {tuple(ITEM_ROWS)}
    assert len({row["item_id"] for row in rows}) == len(rows) == COUNT
    assert {row["prompt"] for row in rows} == {item["prompt"] for item in questions}
    assert {row["score"] for row in rows} <= {0.0, 1.0}
    assert answered[0].hard_stops == []


def test_it_scores_as_the_same_questions_given_as_items(answered, measured, baseline, questions, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, questions)), "utf-8")
    _, out = measured(Items(name="items", path=str(path)), baseline)
    by_task, by_items = ({r["prompt"]: r["score"] for r in read_rows(folder)} for folder in (answered[1], out))
    assert by_task == by_items
    accuracy = next(m for m in answered[0].measurements if m.name == "mine.accuracy")
    assert accuracy.value == sum(by_items.values()) / COUNT


def test_two_arms_are_paired_by_document_whatever_their_order(answered, measured, int8, baseline, questions, tmp_path):
    write_task(tmp_path, questions[::-1])
    _, reversed_rows = measured(task(tmp_path), baseline)
    comparison = task(tmp_path).compare(answered[1], reversed_rows, 0.0)[0]
    assert (comparison.n, comparison.extra["ties"]) == (COUNT, COUNT)
    found, out = measured(task(tmp_path), int8)
    assert found.dataset_digest == answered[0].dataset_digest
    assert task(tmp_path).compare(answered[1], out, 0.0)[0].n == COUNT


def test_equal_documents_are_told_apart(measured, baseline, questions, tmp_path):
    write_task(tmp_path, [*questions[:3], questions[0]])
    rows = read_rows(measured(task(tmp_path), baseline)[1])
    assert len({row["item_id"] for row in rows}) == len(rows) == 4
    assert len({row["prompt"] for row in rows}) == 3


def test_equal_documents_are_one_cluster_and_others_stand_alone(measured, baseline, questions, tmp_path):
    """Red when they count as independent: whoever repeats a document would have evidence that is not there."""
    twice = [*questions[:9], questions[0], questions[4], questions[0]]
    write_task(tmp_path, twice)
    metric = task(tmp_path)
    rows = read_rows(measured(metric, baseline, look=8)[1])
    for prompt, count in ((questions[0]["prompt"], 3), (questions[4]["prompt"], 2), (questions[1]["prompt"], 1)):
        equal = [row for row in rows if row["prompt"] == prompt]
        assert len(equal) == count
        assert len({(row["cluster"], row["look"]) for row in equal}) == 1
        assert (equal[0]["cluster"] is None) == (count == 1)
    pairs = metric.pairs(rows, rows)["mine.accuracy"]
    assert sorted(pairs.sums()[1].tolist()) == [1.0] * 7 + [2.0, 3.0]


def test_the_dataset_is_the_task_and_its_files_whatever_is_scored_on_it(folder, questions, tmp_path):
    """Attempts are counted on it: another name, metric or number of documents is no new eval set."""
    one = task(folder).dataset()
    for changes in ({"name": "other"}, {"metric": "brier_score"}, {"limit": 5}):
        assert task(folder, **changes).dataset() == one
    write_task(tmp_path, questions[1:])
    assert task(tmp_path).dataset() != one


def test_a_limit_takes_the_first_documents(folder, measured, baseline, questions):
    rows = read_rows(measured(task(folder, limit=5), baseline)[1])
    assert {row["prompt"] for row in rows} == {item["prompt"] for item in questions[:5]}
    assert len(rows) == 5


def test_a_yaml_file_is_a_task_too(folder, answered, measured, baseline, monkeypatch):
    monkeypatch.chdir(folder)
    for metric in (task(folder, task="tiny_facts.yaml"), task(folder, task="tiny_facts.yaml", include_path=None)):
        assert read_rows(measured(metric, baseline)[1]) == read_rows(answered[1])


def test_generated_answers_and_their_filters_are_scored_per_document(measured, baseline, questions, tmp_path):
    write_generation(tmp_path, questions[:6])
    choose = {"metric": "exact_match"}
    stripped = read_rows(measured(task(tmp_path, filter="stripped", **choose), baseline)[1])
    raw = read_rows(measured(task(tmp_path, filter="raw", **choose), baseline)[1])
    assert {row["filter"] for row in stripped} == {"stripped"}
    assert sum(row["score"] for row in stripped) >= 4
    assert sum(row["score"] for row in raw) == 0, "every generation begins with a blank"
    with pytest.raises(DataError, match=r"no filter 'none' \(it has raw, stripped\)"):
        measured(task(tmp_path, **choose), baseline)


def test_generated_answers_are_read_and_measured_by_their_length(measured, baseline, questions, tmp_path):
    write_generation(tmp_path, questions[:6])
    found, out = measured(task(tmp_path, metric="exact_match", filter="stripped"), baseline)
    rows = read_rows(out)
    assert {row["parsed"] for row in rows} == {1.0}
    assert all(0 < row["tokens"] <= 8 for row in rows)
    lengths = next(m for m in found.measurements if m.name == "mine.output_tokens")
    assert lengths.value == pytest.approx(sum(row["tokens"] for row in rows) / 6)


def test_an_answer_that_a_filter_does_not_find_is_not_read(measured, baseline, questions, tmp_path):
    """The harness writes `[invalid]` where a pattern is not found, and scores that like an answer."""
    pattern = {"function": "regex", "regex_pattern": "(no such words)"}
    write_generation(tmp_path, questions[:3])
    path = tmp_path / "tiny_facts.yaml"
    config = yaml.safe_load(path.read_text())
    config["filter_list"] = [{"name": "found", "filter": [pattern, {"function": "take_first"}]}]
    path.write_text(yaml.safe_dump(config))
    _, out = measured(task(tmp_path, metric="exact_match", filter="found"), baseline)
    assert [(row["parsed"], row["score"]) for row in read_rows(out)] == [(0.0, 0.0)] * 3


def test_fields_of_a_document_name_what_belongs_together_and_what_is_reported_apart(
    measured, baseline, questions, tmp_path
):
    documents = [{**item, "passage": i // 3, "area": "ab"[i // 3 % 2]} for i, item in enumerate(questions)]
    write_task(tmp_path, documents)
    metric = task(tmp_path, cluster="passage", slice="area")
    found, out = measured(metric, baseline, look=8)
    rows = read_rows(out)
    by_prompt = {item["prompt"]: item for item in documents}
    for row in rows:
        item = by_prompt[row["prompt"]]
        assert (row["cluster"], row["slice"]) == (str(item["passage"]), item["area"])
    assert {m.name for m in found.measurements} == {"mine.accuracy", "mine.accuracy/a", "mine.accuracy/b"}
    pairs = metric.pairs(rows, rows)
    assert pairs["mine.accuracy"].sums()[1].tolist() == [3.0] * (COUNT // 3)
    assert pairs["mine.accuracy/a"].sums()[1].tolist() == [3.0] * (COUNT // 6)
    looks = [{row["look"] for row in rows if row["cluster"] == str(number)} for number in range(COUNT // 3)]
    assert all(len(look) == 1 for look in looks), "a look cut a cluster"


@pytest.mark.parametrize("field", ["cluster", "slice"])
def test_a_document_without_the_field_is_named_before_the_model_is_loaded(field, job_for, questions, tmp_path):
    documents = [{**item, "passage": f"p{i}"} for i, item in enumerate(questions)]
    del documents[7]["passage"]
    write_task(tmp_path, documents)

    def never():
        pytest.fail("the model was loaded")

    for name, number in (("passage", 7), ("pasage", 0)):
        with pytest.raises(DataError, match=rf"document {number} has no '{name}'\. Choose a field .*passage") as caught:
            task(tmp_path, **{field: name}).measure(job_for(never))
        assert caught.value.where == "tiny_facts"


@pytest.mark.parametrize("examples", [{}, {"fewshot_split": "shots"}], ids=["of the test split", "of a split"])
def test_a_document_is_shown_the_same_examples_whatever_the_order_of_the_looks(
    measured, baseline, questions, tmp_path, examples
):
    path = write_task(tmp_path, questions[:10], num_fewshot=2, **examples)
    if examples:
        config = yaml.safe_load(path.read_text())
        (tmp_path / "shots.jsonl").write_text("\n".join(map(json.dumps, questions[10:])), "utf-8")
        config["dataset_kwargs"]["data_files"]["shots"] = str(tmp_path / "shots.jsonl")
        path.write_text(yaml.safe_dump(config))
    order, prompts = [], []
    for seed, look in ((0, 4), (1, 4), (1, 48)):
        rows = read_rows(measured(task(tmp_path), baseline, seed=seed, look=look)[1])
        order.append([row["item_id"] for row in rows])
        prompts.append({row["item_id"]: (row["prompt"], row["prompt_sha256"]) for row in rows})
    assert order[0] != order[1]
    assert prompts[0] == prompts[1] == prompts[2]
    shown = [prompt.split("\n\n") for prompt, _ in prompts[0].values()]
    assert {len(parts) for parts in shown} == {3}
    assert len({tuple(parts[:2]) for parts in shown}) > 1, "examples are drawn for each document"
    own = {item["prompt"] for item in questions[:10]}
    for *first, last in shown:
        assert last in own
        assert not any(example.startswith(last) for example in first), "a document is no example of itself"


def test_a_killed_task_goes_on_with_the_examples_that_it_would_have_shown(
    measured, baseline, questions, tmp_path, parts_in, monkeypatch
):
    write_task(tmp_path, questions[:10], num_fewshot=2)
    _, whole = measured(task(tmp_path), baseline, look=4)
    run, calls = lm_eval_task.run_tasks, []

    def dies(*arguments, **how):
        calls.append(how)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **how)

    monkeypatch.setattr(lm_eval_task, "run_tasks", dies)
    with pytest.raises(KeyboardInterrupt):
        measured(task(tmp_path), baseline, look=4, parts=parts_in(tmp_path / "store"))
    _, resumed = measured(task(tmp_path), baseline, look=4, parts=parts_in(tmp_path / "store"))
    assert read_rows(resumed) == read_rows(whole)
    assert len(calls) == 4


def test_an_unknown_metric_is_named_beside_those_there_are(folder, measured, baseline):
    with pytest.raises(DataError, match=r"no metric 'acc_norm' \(it has acc\b"):
        measured(task(folder, metric="acc_norm", limit=2), baseline)


def test_a_metric_without_one_number_for_a_document_is_refused(folder, measured, baseline):
    with pytest.raises(DataError, match="no metric 'brier_score'"):
        measured(task(folder, metric="brier_score", limit=2), baseline)


def write_likelihood(folder, questions):
    """Tasks whose score of a document is a log-likelihood."""
    write_task(
        folder,
        [{"prompt": item["prompt"], "right": item["choices"][item["answer"]]} for item in questions],
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target="right",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    )


def test_scores_that_are_no_shares_are_refused_at_the_first_look(measured, baseline, questions, tmp_path):
    """Margins are shares: a metric on another scale is not answered to the end and then refused."""
    write_likelihood(tmp_path, questions)
    seen = []
    with pytest.raises(
        DataError, match=r"has the score -\d+\.\d+, which is not between 0 and 1\. Choose a metric"
    ) as caught:
        measured(task(tmp_path, metric="perplexity"), baseline, look=8, progress=lambda *step: seen.append(step))
    assert caught.value.where == "tiny_facts"
    assert [done for _, done, _ in seen] == [0], "no look was finished"


def test_a_score_that_is_nan_is_a_hard_stop_and_no_number(measured, broken, questions, tmp_path):
    write_likelihood(tmp_path, questions[:4])
    found, out = measured(task(tmp_path, metric="perplexity"), broken)
    assert any("has the score nan" in stop for stop in found.hard_stops)
    assert {row["score"] for row in read_rows(out)} == {0.0}


def test_nan_is_a_hard_stop(folder, measured, broken):
    found, _ = measured(task(folder, limit=3), broken)
    assert len(found.hard_stops) == 3
    assert all("not finite" in stop for stop in found.hard_stops)


def test_nan_while_generating_is_a_hard_stop_too(measured, broken, questions, tmp_path):
    write_generation(tmp_path, questions[:3])
    found, _ = measured(task(tmp_path, metric="exact_match", filter="raw"), broken)
    assert found.hard_stops == ["the logits were not finite while answers were generated"]


def test_a_group_of_tasks_is_refused(questions, measured, baseline, tmp_path):
    for name in ("one", "two"):
        write_task(tmp_path, questions, task=name)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    with pytest.raises(DataError, match=r"group of tasks\. Name one of .*one.*two"):
        measured(task(tmp_path, task="both"), baseline)
    (tmp_path / "alone.yaml").write_text("group: alone\ntask: [one]\n")
    with pytest.raises(DataError, match="group of tasks"):
        measured(task(tmp_path, task="alone"), baseline)


def test_what_does_not_exist_is_named(folder, measured, baseline, tmp_path):
    with pytest.raises(DataError, match=r"tiny_fact: lm-eval knows no such task"):
        measured(task(folder, task="tiny_fact"), baseline)
    with pytest.raises(DataError, match=r"none\.yaml: there is no such task file"):
        task(folder, task="none.yaml").identity()
    with pytest.raises(DataError, match=r"none: there is no such folder"):
        task(tmp_path / "none").identity()
    write_task(tmp_path, [], dataset_kwargs={"data_files": {"test": str(tmp_path / "gone.jsonl")}})
    with pytest.raises(DataError, match="lm-eval cannot load the task"):
        measured(task(tmp_path), baseline)


def test_a_broken_yaml_is_named_with_its_line(tmp_path):
    (tmp_path / "task.yaml").write_text("task: a\nlist: [1,\n")
    with pytest.raises(DataError, match="not YAML") as caught:
        task(tmp_path).identity()
    assert caught.value.where == f"{tmp_path / 'task.yaml'}:3"


def test_the_identity_follows_the_files_that_are_read_and_not_their_place(questions, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    data = tmp_path / "data.jsonl"
    for folder in folders:
        folder.mkdir()
        data.write_text("\n".join(map(json.dumps, questions)), "utf-8")
        (folder / "task.yaml").write_text(yaml.safe_dump({**TASK, "dataset_kwargs": {"data_files": str(data)}}))
    before = task(folders[0]).identity()
    assert task(folders[1]).identity() == before
    assert task(folders[0], limit=5).identity() != before
    assert task(folders[0], metric="other").identity() != before
    data.write_text("{}")
    assert task(folders[0]).identity() != before
