"""What serves is measured again on today's eval set: it stays unless it is shown worse, and then it goes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from planted.plant import draw, planted
from program import TINY, command, tiny_recipe, write_recipe

from quantize.attempts import FILE
from quantize.record import digest

pytestmark = pytest.mark.slow

ITEMS = [json.loads(line) for line in (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A release of the tiny Llama: version 2 (INT8) serves in place of the baseline. The database names its place."""
    folder = tmp_path_factory.mktemp("rechecked")
    live = folder / "live"
    live.mkdir()
    shutil.copy(TINY / "items.jsonl", live / "items.jsonl")
    evals = [{"kind": "items", "name": "facts", "path": str(live / "items.jsonl")}]
    telling = {"kind": "command", "run": ["/bin/sh", "-c", f"cat >> {live}/told.jsonl"], "on": ["rolled_back"]}
    recipe = write_recipe(live, tiny_recipe(evals=evals, release={"notify": [telling]}))
    done = command("run", recipe, "--store", live / "store", seconds=900)
    assert done.returncode == 0, done.stderr
    shutil.copytree(live, folder / "snapshot", symlinks=True)
    return folder


@pytest.fixture
def live(snapshot):
    """The folder as it was released, for a test to change."""
    shutil.rmtree(snapshot / "live")
    return Path(shutil.copytree(snapshot / "snapshot", snapshot / "live", symlinks=True))


def ask(items):
    """The eval set of today."""
    return "".join(json.dumps(item) + "\n" for item in items)


def recheck(live, *arguments, **environment):
    """Exit code, what is said of the one champion, and what went to standard error."""
    done = command("recheck", "tiny", "--store", live / "store", "--json", *arguments, seconds=900, **environment)
    assert done.stdout, done.stderr
    (found,) = json.loads(done.stdout)["rechecked"]
    return done.returncode, found, done.stderr


def told(live, verb):
    """What a verb says of the registry, in a process of its own: a client keeps its hold on a database file."""
    return json.loads(command(verb, "tiny", "--store", live / "store", "--json").stdout)


def aliases(live):
    return told(live, "status")["aliases"]


def runs(live):
    return {path.name for path in (live / "store" / "runs").iterdir()}


def test_where_nothing_changed_nothing_is_measured(live):
    before = runs(live), (live / "store" / FILE).read_text(encoding="utf-8")
    code, found, _ = recheck(live)
    assert (code, found["outcome"], found["version"]) == (0, "unchanged", "2")
    assert "nothing changed since it was judged" in found["sentence"]
    assert (runs(live), (live / "store" / FILE).read_text(encoding="utf-8")) == before
    assert aliases(live)["production"] == "2"


def test_a_dry_run_says_what_has_changed(live):
    assert recheck(live, "--dry-run")[1]["outcome"] == "unchanged"
    (live / "items.jsonl").write_text(ask(ITEMS[1:]), encoding="utf-8")
    before = runs(live)
    code, found, _ = recheck(live, "--dry-run")
    assert (code, found["outcome"]) == (0, "would measure")
    assert runs(live) == before


def test_a_champion_that_is_shown_worse_on_todays_eval_set_goes_back_with_its_targets(live):
    today = ITEMS[:-7]
    (live / "items.jsonl").write_text(ask(today), encoding="utf-8")
    right = {item["prompt"]: item["choices"][item["answer"]] for item in today}
    lost = {p: choice for p, choice in draw(today, right, 0.3, 0.0, seed=1).items() if choice != right[p]}
    code, found, error = recheck(live, **planted(live, {"int8": lost}))
    assert (code, found["outcome"]) == (3, "rolled back"), error
    assert found["moved"] == ["int8", "production"]
    now = aliases(live)
    assert (now["int8"], now["production"], now["production-previous"]) == ("1", "1", "2")
    left = told(live, "status")["versions"][1]
    assert left["state"] == "rolled_back"
    last = told(live, "history")[-1]
    assert last["what"] == "rolled back"
    assert last["reason"].startswith("Rechecked: facts.accuracy changed by")
    assert last["proved"]["outcome"] == "proved"
    (notice,) = map(json.loads, (live / "told.jsonl").read_text(encoding="utf-8").splitlines())
    (sent,) = notice["decisions"]
    assert (sent["what"], sent["version"], sent["verdict"]) == ("rolled_back", "2", last["verdict"])
    assert (sent["aliases"]["production"], sent["mlflow_run"]) == ("1", last["run"])
    record = json.loads((live / "store" / "runs" / found["run"] / "run.json").read_text(encoding="utf-8"))
    assert record["variants"][0]["verdict"]["artifact_digest"] == left["artifact_digest"]
    (logged,) = (live / "store" / "mlartifacts").glob(f"**/{last['run']}/artifacts/verdict.json")
    assert digest(json.loads(logged.read_text(encoding="utf-8"))) == last["verdict"]
    assert command("verify", found["run"], "--store", live / "store").returncode == 0
    # The next run of the same recipe does not bring it back.
    again = command("run", live / "recipe.yaml", "--store", live / "store", seconds=900)
    assert again.returncode == 0, again.stderr
    assert aliases(live)["production"] == "1"


def test_too_few_items_decide_nothing_and_count_no_attempt(live):
    (live / "items.jsonl").write_text(ask(ITEMS[:12]), encoding="utf-8")
    before = (live / "store" / FILE).read_text(encoding="utf-8")
    code, found, error = recheck(live)
    assert (code, found["outcome"]) == (4, "inconclusive"), error
    assert aliases(live)["production"] == "2"
    assert (live / "store" / FILE).read_text(encoding="utf-8") == before
    last = told(live, "history")[-1]
    assert (last["what"], last["version"]) == ("rechecked", "2")
    assert last["reason"].startswith("Inconclusive: ")
    done = runs(live)
    code, found, _ = recheck(live)
    assert (code, found["outcome"]) == (4, "inconclusive")
    assert "nothing changed since it was rechecked" in found["sentence"]
    assert runs(live) == done, "what was measured is not measured again"


def test_bytes_that_were_changed_in_the_registry_are_refused_before_anything_is_measured(live):
    (weights,) = [
        path
        for path in (live / "store" / "mlartifacts").rglob("model.safetensors")
        if (path.parent / "recipe.yaml").is_file()
    ]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    (live / "items.jsonl").write_text(ask(ITEMS[1:]), encoding="utf-8")
    before = runs(live)
    code, found, _ = recheck(live)
    assert (code, found["outcome"]) == (1, "error")
    assert "tiny version 2: model.safetensors is not the file that was judged" in found["sentence"]
    assert (runs(live), aliases(live)["production"]) == (before, "2")


def test_what_cannot_be_rechecked_is_said(live):
    done = command("recheck", "tiny", "--alias", "edge", "--store", live / "store")
    assert done.returncode == 1
    assert "it has no alias 'edge' (there are int8, production)" in done.stderr
    other = write_recipe(
        live,
        tiny_recipe(
            variants=[{"name": "fp8", "scheme": "FP8_DYNAMIC", "method": {"kind": "rtn"}}],
            registry={"kind": "mlflow", "name": "tiny", "targets": {}},
        ),
    )
    code, found, _ = recheck(live, "--recipe", other)
    assert (code, found["outcome"]) == (1, "error")
    assert "the recipe has no variant 'int8' (it has fp8)" in found["sentence"]
    for run in (live / "store" / "runs").iterdir():
        (run / "recipe.resolved.json").unlink()
    code, found, _ = recheck(live)
    assert "Name one with --recipe" in found["sentence"]
