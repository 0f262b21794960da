"""No code of a stranger runs in a task of lm-evaluation-harness unless the recipe allows it."""

import pytest
from lm_eval_tasks import some_questions, task, write_task

from quantize.errors import DataError
from quantize.metrics import LmEvalTask

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def questions():
    return some_questions()


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


def test_one_function_is_allowed_by_its_name_and_no_other(with_code, measured, baseline):
    folder, place = with_code
    for names in (["code.other"], ["process"], ["code"]):
        with pytest.raises(DataError, match=r"or name it alone: `allow_code: \[code\.process\]`") as caught:
            measured(task(folder, allow_code=names), baseline)
        assert caught.value.where == place
    assert not (folder / "ran").exists()
    found, _ = measured(task(folder, allow_code=["code.process"], limit=2), baseline)
    assert found.measurements[0].n == 2
    assert (folder / "ran").exists()


def test_a_named_function_opens_no_template(questions, measured, baseline, tmp_path):
    trace = tmp_path / "ran"
    write_task(tmp_path, questions, doc_to_text=f"{{{{ cycler.__init__.__globals__.os.makedirs('{trace}') }}}}")
    with pytest.raises(DataError, match="SecurityError"):
        measured(task(tmp_path, allow_code=["code.process"]), baseline)
    assert not trace.exists()


def test_the_identity_follows_the_code_that_a_task_names(with_code):
    folder, _ = with_code
    path = next(folder.glob("*.yaml"))
    metric = LmEvalTask(name="mine", task=str(path), allow_code=["code.process"])
    before = metric.identity()
    (folder / "code.py").write_text(CODE.replace("return data", "return data  # changed"))
    assert metric.identity() != before


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


def test_a_metric_that_is_loaded_from_elsewhere_is_refused(questions, job_for, tmp_path):
    path = write_task(tmp_path, questions, metric_list=[{"metric": "./mine", "hf_evaluate": True}])
    with pytest.raises(DataError, match="`hf_evaluate` runs code"):
        task(tmp_path).measure(job_for(None))
    assert path.exists()
