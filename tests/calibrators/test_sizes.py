"""A variant's own size of calibration is a stage of its own; the receipt tells of each what was drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hub_server import serving
from program import TINY, command, tiny_recipe, write_recipe
from release_world import PROVENANCE

from quantize.artifact import Manifest
from quantize.device import choose
from quantize.metrics import Items
from quantize.planner import make_plan
from quantize.preflight import check, estimates
from quantize.recipe import load
from quantize.report.page.calibrated import calibrations
from quantize.report.page.reading import Reached
from quantize.store import Store

SELF = {"kind": "self", "samples": 64, "tokens": 32}


def variant(name, **more):
    return {"name": name, "scheme": "W4A16", "method": {"kind": "gptq"}, **more}


def planned(folder: Path, *variants, calibration=SELF):
    changes = {"calibration": calibration, "variants": list(variants), "registry": {"kind": "mlflow", "name": "tiny"}}
    return make_plan(load(write_recipe(folder, tiny_recipe(**changes))), choose("cpu"))


def test_variants_share_the_recipes_tokens_and_ask_for_their_own_once(tmp_path):
    size = {"samples": 8}
    plan = planned(tmp_path, variant("a"), variant("b", calibration=size), variant("c", calibration=size), variant("d"))
    a, b, c, d = plan.variants
    assert [stage.label for stage in plan.calibrations()] == ["calibrate self", "calibrate self 8x32"]
    assert (a.calibrate, b.calibrate) == (d.calibrate, c.calibrate)
    assert [way.quantize.inputs["tokens"] for way in plan.variants] == [way.calibrate for way in plan.variants]
    assert b.calibrate.config["calibration"] == {**a.calibrate.config["calibration"], "samples": 8}
    assert plan.calibrated() == {"calibrate": a.calibrate.key, "calibrate.8x32": b.calibrate.key}


def test_a_size_that_says_the_recipes_own_changes_no_key(tmp_path):
    plain = planned(tmp_path, variant("a"))
    said = planned(tmp_path, variant("a", calibration={"samples": 64, "tokens": 32}))
    assert [stage.key for stage in said.stages()] == [stage.key for stage in plain.stages()]


def test_an_estimate_follows_the_variants_own_size(tmp_path):
    plan = planned(tmp_path, variant("a"), variant("b", calibration={"samples": 64_000, "tokens": 1024}))
    found = {e.stage.label: e.seconds for e in estimates(plan, plan.recipe.model.facts(), Store(tmp_path / "store"))}
    assert found["quantize b"] > 2 * found["quantize a"]


def test_chats_for_a_model_without_a_template_are_refused_by_the_plan(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}), "utf-8")
    recipe = planned(tmp_path, variant("a"), calibration={"kind": "text", "path": str(path)}).recipe
    facts = recipe.model.facts()
    told = [
        check(recipe, facts.model_copy(update={"chat": chat}), choose("cpu"), tmp_path, tuple(recipe.variants)).problems
        for chat in (False, True)
    ]
    assert "calibration: its documents are conversations (`messages`), and the model has no chat template" in told[0][0]
    assert told[1] == ()


def told(summary):
    manifest = Manifest(
        kind="calibrate", name="text", key="k" * 64, inputs={}, files=[], summary=summary, provenance=PROVENANCE
    )
    ((name, lines),) = calibrations([Reached("calibrate text", manifest.key, again=False, manifest=manifest)])
    assert name == "text"
    return dict(lines)


def test_the_receipt_tells_rows_tokens_packing_parts_and_a_digest():
    part = {
        "kind": "text",
        "weight": 3.0,
        "samples": 2,
        "total_tokens": 20,
        "packing": "pack",
        "documents": 7,
        "empty": 1,
    }
    rows = ["a" * 64, "b" * 64]
    summary = {"samples": 2, "tokens": 12, "shortest": 8, "total_tokens": 20, "distinct": 2, "rows": rows}
    cut = {"packing": "truncate", "documents": 9, "empty": 0, "cut": 1}
    place = {"repo": "org/said", "commit": "c" * 40, "split": "train"}
    found = told({**summary, **place, **cut})
    assert found["rows"] == "2 of 8 to 12 tokens, 2 of them different"
    assert found["tokens"] == "20"
    assert found["dataset"] == f"org/said at {'c' * 40}, split train"
    assert found["packing"] == "a document a row, cut at the length"
    assert found["documents"] == "9 read, 0 empty, 1 cut"
    mixed = told({**summary, "parts": [part]})
    assert mixed["part 1, text"].startswith("2 rows, 20 tokens for a weight of 3; packing: documents end to end")
    digests = [told({**summary, "rows": order})["sha256 over the rows' own"] for order in (rows, rows[::-1])]
    assert digests[0] != digests[1], "the order of rows is part of what was drawn"


def test_the_receipt_of_an_artifact_of_an_earlier_release_tells_what_it_knows():
    found = told({"samples": 2, "tokens": 8, "distinct": 1, "rows": ["a" * 64] * 2})
    assert (found["rows"], found["tokens"]) == ("2 of 8 tokens, 1 of them different", "16")


@pytest.mark.slow
def test_a_dataset_that_holds_eval_items_ends_the_run_before_a_variant_is_made(tmp_path):
    """What is fetched is not known to the plan: it is checked as soon as it is there."""
    items = Items(name="facts", path=str(TINY / "items.jsonl")).texts()
    repository = tmp_path / "repository"
    repository.mkdir()
    lines = [json.dumps({"text": text}) for text in items[:3] + ["The dog sees a cat, and the cat sees it too."] * 40]
    (repository / "data.jsonl").write_text("\n".join(lines), "utf-8")
    calibration = {"kind": "dataset", "repo": "org/said", "samples": 2, "tokens": 16, "buffer": 0}
    store = tmp_path / "store"
    recipe = tiny_recipe(
        calibration=calibration, variants=[variant("int4")], registry={"kind": "mlflow", "name": "tiny"}
    )
    path = write_recipe(tmp_path, recipe)
    with serving("org/said", repository, {"main": "1" * 40}, datasets=True) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        result = command("run", path, "--store", store, "--no-release", **environment)
    assert result.returncode == 1, result.stderr
    assert re.search(r"its data holds [123] of the 200 texts of the eval 'facts', number 1 first", result.stderr)
    assert "set calibration.allow_overlap: true" in result.stderr
    assert "Traceback" not in result.stderr
    made = {manifest.kind for _, manifest in Store(store).manifests()}
    assert made == {"fetch", "calibrate"}
