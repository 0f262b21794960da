"""The whole program on evals of a user's own: conversations, a command, a judge; one run, and what it says."""

import json

import pytest
from program import command, tiny_recipe, write_recipe

from quantize.metrics import read_rows

EVALS = ("checked", "judged")
CHECK = "import json, sys\nprint(json.dumps({'score': float('1' in json.load(sys.stdin)['output'])}))\n"


def write(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path.name


@pytest.fixture(scope="module")
def ran(tmp_path_factory, judge_server):
    """(record, store, recipe) of a run with two evals."""
    folder = tmp_path_factory.mktemp("evals")
    (folder / "check.py").write_text(CHECK, "utf-8")
    plain = [{"id": f"{a}", "prompt": f"{a} plus {a + 3} is", "answer": f"{2 * a + 3}"} for a in range(40)]
    chats = [
        {"id": one["id"], "messages": [{"role": "user", "content": one["prompt"]}], "answer": one["answer"]}
        for one in plain
    ]
    judge = {"kind": "judge", "url": f"{judge_server}/v1", "model": "rules-run", "prompt_template": "{answer}|{output}"}
    usual = {"kind": "items", "max_new_tokens": 6}
    recipe = tiny_recipe(
        evals=[
            {
                **usual,
                "name": "checked",
                "path": write(folder / "chat.jsonl", chats),
                "scorer": {"kind": "command", "run": ["python", "check.py"], "timeout": 120},
            },
            {**usual, "name": "judged", "path": write(folder / "plain.jsonl", plain), "scorer": judge},
        ],
        gates=[
            *({"kind": "noninferiority", "metric": f"{name}.accuracy", "margin": 0.4} for name in EVALS),
            {"kind": "limit", "metric": "checked.truncated", "at_most": 0.5, "advisory": False},
        ],
    )
    path = write_recipe(folder, recipe)
    result = command("run", path, "--store", folder / "store", "--no-release", "--json", seconds=900)
    assert result.returncode in (0, 3, 4), result.stderr
    return json.loads(result.stdout), folder / "store", path


def rows_of(store, name):
    """The rows of the baseline and of the variant on one eval."""
    found = {}
    for path in (store / "evaluate").glob("*/measurements.json"):
        said = json.loads(path.read_text("utf-8"))
        if said["eval"] == name:
            found[said["arm"]] = read_rows(path.parent)
    return found["baseline"], found["int8"]


def test_every_eval_is_asked_scored_and_judged(ran):
    record, store, _ = ran
    (variant,) = record["variants"]
    findings = {finding["metric"]: finding for finding in variant["verdict"]["findings"]}
    for name in EVALS:
        assert findings[f"{name}.accuracy"]["outcome"] in ("pass", "fail", "inconclusive"), findings
    assert findings["checked.truncated"]["outcome"] in ("pass", "inconclusive")
    before, _ = rows_of(store, "checked")
    assert before[0]["prompt"].startswith("User: ") and before[0]["prompt"].endswith("Assistant:")
    assert {row["truncated"] for row in before} <= {0.0, 1.0}


def test_the_rows_say_who_scored_them(ran):
    _, store, _ = ran
    for name, begins in (("checked", "command; "), ("judged", "judge rules-run-")):
        for rows in rows_of(store, name):
            (by,) = {row["scored_by"] for row in rows}
            assert by.startswith(begins)
    for row in rows_of(store, "checked")[0]:
        assert row["score"] == float("1" in row["answer"])
    for row in rows_of(store, "judged")[0]:
        assert row["score"] == float(row["target"] in row["answer"])


def test_what_the_judge_said_is_kept_in_the_store_and_no_garbage(ran):
    record, store, path = ran
    (kept,) = (store / "judged").glob("*.jsonl")
    assert len(kept.read_text("utf-8").splitlines()) >= 40
    result = command("gc", "--store", store)
    assert result.returncode == 0, result.stderr
    assert kept.exists()
    again = command("run", path, "--store", store, "--no-release", "--json")
    assert again.returncode in (0, 3, 4), again.stderr
    assert json.loads(again.stdout)["variants"][0]["verdict"] == record["variants"][0]["verdict"]


def test_the_run_is_verified_from_its_rows(ran):
    record, store, _ = ran
    result = command("verify", record["run"], "--store", store)
    assert result.returncode == 0, result.stdout + result.stderr
