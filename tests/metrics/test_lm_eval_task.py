"""Tasks of lm-evaluation-harness: per-document rows, and no code of a stranger unless the recipe allows it."""

import json
from pathlib import Path

import pytest
import yaml

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS
from quantize.metrics import Items, LmEvalTask
from quantize.metrics._rows import read_rows

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


@pytest.fixture(scope="module")
def questions():
    lines = TINY.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // COUNT]][:COUNT]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """The datasets library keeps what it has read: here, and not in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


def write_task(folder, questions, text="", **changes):
    """A task's YAML and its data in `folder`; `text` is YAML that goes in as it is."""
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, questions)), "utf-8")
    config = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}, **changes}
    path = folder / f"{config['task']}.yaml"
    path.write_text(yaml.safe_dump(config) + text, "utf-8")
    return path


def task(folder, **changes):
    return LmEvalTask(**{"name": "mine", "task": "tiny_facts", "include_path": str(folder), **changes})


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
    comparison = task(tmp_path).compare(answered[1], reversed_rows)[0]
    assert (comparison.n, comparison.extra["ties"]) == (COUNT, COUNT)
    found, out = measured(task(tmp_path), int8)
    assert found.dataset_digest == answered[0].dataset_digest
    assert task(tmp_path).compare(answered[1], out)[0].n == COUNT


def test_equal_documents_are_told_apart(measured, baseline, questions, tmp_path):
    write_task(tmp_path, [*questions[:3], questions[0]])
    rows = read_rows(measured(task(tmp_path), baseline)[1])
    assert len({row["item_id"] for row in rows}) == len(rows) == 4
    assert len({row["prompt"] for row in rows}) == 3


def test_a_limit_takes_the_first_documents(folder, measured, baseline, questions):
    rows = read_rows(measured(task(folder, limit=5), baseline)[1])
    assert [row["prompt"] for row in rows] == [item["prompt"] for item in questions[:5]]


def test_a_yaml_file_is_a_task_too(folder, answered, measured, baseline, monkeypatch):
    monkeypatch.chdir(folder)
    for metric in (task(folder, task="tiny_facts.yaml"), task(folder, task="tiny_facts.yaml", include_path=None)):
        assert read_rows(measured(metric, baseline)[1]) == read_rows(answered[1])


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


def test_an_unknown_metric_is_named_beside_those_there_are(folder, measured, baseline):
    with pytest.raises(DataError, match=r"no metric 'acc_norm' \(it has acc\b"):
        measured(task(folder, metric="acc_norm", limit=2), baseline)


def test_a_metric_without_one_number_for_a_document_is_refused(folder, measured, baseline):
    with pytest.raises(DataError, match="no metric 'brier_score'"):
        measured(task(folder, metric="brier_score", limit=2), baseline)


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


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\n\ndef process(data):\n    return data\n"


@pytest.fixture
def with_code(questions, tmp_path):
    """A task whose documents go through a function that leaves a trace when its file is imported."""
    (tmp_path / "code.py").write_text(CODE)
    path = write_task(tmp_path, questions[:3], "process_docs: !function code.process\n")
    lines = path.read_text().splitlines()
    return tmp_path, f"{path}:{1 + next(i for i, line in enumerate(lines) if '!function' in line)}"


def test_a_function_is_refused_at_its_place_before_it_runs(with_code, measured, baseline):
    folder, place = with_code
    for metric in (task(folder), task(folder, task="tiny_facts.yaml")):
        with pytest.raises(DataError, match=r"`!function` runs code\. .*allow_code: true") as caught:
            measured(metric, baseline)
        assert caught.value.where == place
    assert not (folder / "ran").exists()


def test_a_function_runs_when_the_recipe_allows_it(with_code, measured, baseline):
    found, _ = measured(task(with_code[0], allow_code=True), baseline)
    assert found.measurements[0].n == 3
    assert (with_code[0] / "ran").exists()


def test_a_function_in_an_included_file_is_refused_there(questions, measured, baseline, tmp_path):
    elsewhere, tasks = tmp_path / "elsewhere", tmp_path / "tasks"
    elsewhere.mkdir()
    tasks.mkdir()
    (elsewhere / "code.py").write_text(CODE)
    (elsewhere / "common.yml").write_text("# shared\nprocess_docs: !function code.process\n")
    (elsewhere / "middle.yml").write_text("include: common.yml\n")
    for include in ("include: ../elsewhere/middle.yml\n", f"include: ['{elsewhere / 'middle.yml'}']\n"):
        write_task(tasks, questions, include)
        with pytest.raises(DataError, match="`!function` runs code") as caught:
            measured(task(tasks), baseline)
        assert caught.value.where == f"{elsewhere / 'common.yml'}:2"
    assert not (elsewhere / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "process_docs: !!python/name:os.system\n",
        "%TAG !f! !func\n---\nprocess_docs: !f!tion code.process\n",
        "process_docs: !%66unction code.process\n",
        "process_docs:\n  nested: [{deep: !function code.process}]\n",
        "metadata: {? !function code.process : 1}\n",
    ],
)
def test_a_tag_that_runs_code_does_not_hide(text, tmp_path):
    from quantize.metrics._task_yaml import forbid_code

    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="runs code"):
        forbid_code([path])


def test_a_template_does_not_reach_into_the_interpreter(questions, measured, baseline, tmp_path):
    trace = tmp_path / "ran"
    attack = f"{{{{ cycler.__init__.__globals__.os.makedirs('{trace}', exist_ok=true) }}}}"
    write_task(tmp_path, questions, doc_to_text=attack)
    with pytest.raises(DataError, match="tiny_facts: a template of the task fails: SecurityError"):
        measured(task(tmp_path), baseline)
    assert not trace.exists()
    measured(task(tmp_path, allow_code=True, limit=1), baseline)
    assert trace.exists()


def test_a_metric_that_is_loaded_from_elsewhere_is_refused(questions, tmp_path):
    path = write_task(tmp_path, questions, metric_list=[{"metric": "./mine", "hf_evaluate": True}])
    with pytest.raises(DataError, match="`hf_evaluate` runs code"):
        task(tmp_path).measure(None, "baseline", tmp_path, None, None, None)
    assert path.exists()


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
