"""What lm-evaluation-harness does that would spoil a comparison, shown on the library itself, and that we do not.

That `!function` in a task's YAML runs code, and is refused, is shown in `test_lm_eval_task.py`.
"""

import math
import socket

import pytest
from lm_eval_tasks import COUNT, some_questions, write_generation, write_task

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS
from quantize.metrics import LmEvalTask
from quantize.metrics._harness import fix_fewshot, run_tasks
from quantize.metrics._rows import read_rows

pytestmark = pytest.mark.usefixtures("datasets_cache")

NAME = "tiny_facts"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", some_questions())
    return tmp_path / "tasks"


@pytest.fixture
def request_cache(tmp_path, monkeypatch):
    """Where the harness keeps the requests that it has built."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    return tmp_path / "requests"


def metric(folder, **changes):
    return LmEvalTask(**{"name": "mine", "task": NAME, "include_path": str(folder), **changes})


def stock_task(folder):
    """The task as the harness itself loads it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False).load([NAME])["tasks"][NAME]


def stock(lm, task, **how):
    """All that the harness itself makes of a task: `samples` and `results`."""
    from lm_eval.evaluator import evaluate

    return evaluate(lm=lm, task_dict={"tasks": {NAME: task}, "groups": {}, "group_map": {}}, **how)


def prompts(samples):
    return [sample["arguments"][0][0] for sample in samples]


def test_of_an_unsorted_list_the_harness_logs_wrong_numbers_and_we_get_the_right_ones(folder, baseline):
    task, numbers = stock_task(folder), [17, 3, 11]
    documents = list(task.eval_docs)

    def right(samples):
        return [sample["doc"] == documents[sample["doc_id"]] for sample in samples]

    logged = stock(baseline.lm(), task, samples={NAME: numbers}, bootstrap_iters=0)["samples"][NAME]
    assert not all(right(logged)), "the harness has been mended: our own sorting is no longer needed"
    ours = run_tasks(baseline.lm(), {NAME: task}, seed=0, documents={NAME: numbers})[NAME]
    assert right(ours) == [True] * 3
    assert {sample["doc_id"] for sample in ours} == set(numbers)


def test_rows_carry_the_id_of_their_own_document_in_any_order_of_looks(folder, measured, baseline):
    by_prompt = [
        {
            row["prompt"]: (row["item_id"], row["score"])
            for row in read_rows(measured(metric(folder), baseline, **how)[1])
        }
        for how in ({"seed": 0, "look": 48}, {"seed": 9, "look": 5})
    ]
    assert by_prompt[0] == by_prompt[1]
    assert len(by_prompt[0]) == COUNT


def test_the_harnesss_answer_cache_hands_the_baselines_answers_to_the_variant(folder, baseline, int8, tmp_path):
    from lm_eval.api.model import CacheHook, CachingLM

    task = stock_task(folder)

    def said(lm):
        return [sample["filtered_resps"] for sample in stock(lm, task, bootstrap_iters=0)["samples"][NAME]]

    answers = []
    for session in (baseline, int8):
        caching = CachingLM(session.lm(), str(tmp_path / "answers.db"))
        answers.append(said(caching))
        caching.dbdict.close()
        session.lm().set_cache_hook(CacheHook(None))  # the session's harness is one for all tests
    assert answers[0] == answers[1] == said(baseline.lm())
    assert said(int8.lm()) != answers[1], "the variant was never asked"


def test_our_variant_answers_for_itself_and_no_cache_is_made_or_read(
    folder, measured, baseline, int8, tmp_path, monkeypatch, request_cache
):
    def never(*_):
        pytest.fail("a cache of answers was opened")

    monkeypatch.setattr("lm_eval.api.model.CachingLM.__init__", never)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before, after = (read_rows(measured(metric(folder), session)[1]) for session in (baseline, int8))
    assert [row["item_id"] for row in before] == [row["item_id"] for row in after]
    assert all(one["answer"] != other["answer"] for one, other in zip(before, after, strict=True))
    direct = run_tasks(int8.lm(), {NAME: stock_task(folder)}, seed=0)[NAME]
    likelihoods = {
        prompt: str(sample["filtered_resps"]) for prompt, sample in zip(prompts(direct), direct, strict=True)
    }
    close = [_close(row["answer"], likelihoods[row["prompt"]]) for row in after]
    assert close == [True] * COUNT
    assert not request_cache.exists()
    assert not list((tmp_path / "here").rglob("*"))


def _close(one, other):
    """Whether two logged answers are the same but for the rounding of another batch."""
    import ast

    pairs = zip(ast.literal_eval(one), ast.literal_eval(other), strict=True)
    return all(math.isclose(a[0], b[0], rel_tol=0.05, abs_tol=0.05) for a, b in pairs)


def test_the_harnesss_request_cache_asks_the_questions_of_another_config(folder, baseline, request_cache):
    first = stock(baseline.lm(), stock_task(folder), cache_requests=True, bootstrap_iters=0)["samples"][NAME]
    write_task(folder, some_questions(), doc_to_text="Well, {{prompt}}")
    second = stock(baseline.lm(), stock_task(folder), cache_requests=True, bootstrap_iters=0)["samples"][NAME]
    assert list(request_cache.iterdir())
    assert prompts(second) == prompts(first)
    assert not any(prompt.startswith("Well") for prompt in prompts(second))


def test_a_poisoned_request_cache_changes_no_prompt_of_ours(folder, measured, baseline, request_cache):
    stock(baseline.lm(), stock_task(folder), cache_requests=True, bootstrap_iters=0)
    kept = {path.name: path.read_bytes() for path in request_cache.iterdir()}
    write_task(folder, some_questions(), doc_to_text="Well, {{prompt}}")
    rows = read_rows(measured(metric(folder), baseline)[1])
    assert all(row["prompt"].startswith("Well, ") for row in rows)
    assert {path.name: path.read_bytes() for path in request_cache.iterdir()} == kept


def test_two_configs_of_one_task_are_asked_as_they_are_and_never_joined(folder, measured, baseline):
    _, one = measured(metric(folder), baseline)
    write_task(folder, some_questions(), doc_to_text="Well, {{prompt}}")
    _, other = measured(metric(folder), baseline)
    with pytest.raises(DataError, match="the arms were asked different things under item"):
        metric(folder).compare(one, other, 0.0)


def test_the_harnesss_standard_error_is_of_one_arm_and_reaches_no_row_and_no_gate(folder, measured, baseline):
    """Unpaired, it would be wider than the paired interval: two arms that agree in every answer would not be told."""
    results = stock(baseline.lm(), stock_task(folder), bootstrap_iters=100)["results"][NAME]
    unpaired = 1.645 * math.sqrt(2) * results["acc_stderr,none"]
    assert unpaired > 0
    found, out = measured(metric(folder), baseline)
    shown = metric(folder).compare(out, out, 0.0)
    assert shown[0].high - shown[0].low < 2 * unpaired
    rows = read_rows(out)
    assert {tuple(row) for row in rows} == {tuple(ITEM_ROWS)}
    names = [*(m.name for m in found.measurements), *(c.metric for c in shown), *metric(folder).pairs(rows, rows)]
    names += metric(folder).quantities
    assert not [name for name in names if "stderr" in name]
    with pytest.raises(DataError, match="no metric 'acc_stderr'"):
        measured(metric(folder, metric="acc_stderr"), baseline)


def test_the_harness_logs_a_sample_for_each_filter_and_we_keep_the_one_that_was_chosen(folder, measured, baseline):
    write_generation(folder, some_questions()[:6])
    logged = stock(baseline.lm(), stock_task(folder), bootstrap_iters=0)["samples"][NAME]
    assert len(logged) == 2 * 6
    rows = {}
    for name in ("stripped", "raw"):
        _, out = measured(metric(folder, metric="exact_match", filter=name), baseline)
        rows[name] = read_rows(out)
        assert len(rows[name]) == 6
        assert {row["filter"] for row in rows[name]} == {name}
    assert [row["item_id"] for row in rows["raw"]] == [row["item_id"] for row in rows["stripped"]]
    with pytest.raises(DataError, match="has no row for item"):
        metric(folder).pairs(rows["raw"], rows["stripped"])


def test_what_the_harness_shows_as_examples_depends_on_what_was_asked_before_and_ours_do_not(folder, baseline):
    write_task(folder, some_questions(), num_fewshot=2)

    def asked(task, numbers):
        samples = run_tasks(baseline.lm(), {NAME: task}, seed=0, documents={NAME: numbers})[NAME]
        return {sample["doc_id"]: sample["arguments"][0][0] for sample in samples}

    def fresh():
        task = stock_task(folder)
        task.set_fewshot_seed(seed=1234)
        return task

    assert asked(fresh(), [5])[5] != asked(fresh(), [1, 2, 5])[5]
    tasks = [fresh(), fresh()]
    for task in tasks:
        fix_fewshot(task, list(task.eval_docs))
    assert asked(tasks[0], [5])[5] == asked(tasks[1], [1, 2, 5])[5]


def test_without_a_split_of_examples_the_harness_shows_a_document_its_own_answer_and_we_do_not(folder, baseline):
    write_task(folder, some_questions(), num_fewshot=8)

    def shows_itself(task):
        samples = run_tasks(baseline.lm(), {NAME: task}, seed=0)[NAME]
        shown = [sample["arguments"][0][0].split("\n\n") for sample in samples]
        return sum(any(example.startswith(own) for example in examples) for *examples, own in shown)

    task = stock_task(folder)
    task.set_fewshot_seed(seed=1234)
    assert shows_itself(task) > 0
    task = stock_task(folder)
    fix_fewshot(task, list(task.eval_docs))
    assert shows_itself(task) == 0


def test_a_users_own_set_is_read_and_answered_without_a_network(folder, measured, baseline, monkeypatch):
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("there is no network here")

    for call in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, call, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rows = read_rows(measured(metric(folder), baseline)[1])
    assert len(rows) == COUNT
    # The datasets library counts its readers there; whether it can matters to nobody.
    assert {host for host, *_ in tried} <= {"s3.amazonaws.com"}


def test_a_users_own_folder_is_the_only_place_where_tasks_are_looked_for(folder, measured, baseline):
    with pytest.raises(DataError, match="lm-eval knows no such task"):
        measured(metric(folder, task="arc_easy"), baseline)
