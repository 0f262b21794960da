"""The whole way through, as a user walks it: real processes, a real model, a real MLflow database."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from planted.plant import planted
from program import TINY, command, start, tiny_recipe, wait_for, write_recipe

from quantize.store import Store

STAGES = 14


def test_a_run_decides_every_variant_and_moves_the_aliases(finished):
    store, document, _ = finished
    decisions = {variant["name"]: variant["decision"] for variant in document["variants"]}
    assert {name: decision["action"] for name, decision in decisions.items()} == {
        "int8": "promote",
        "int4-gptq": "promote",
    }
    status = json.loads(command("status", "tiny", "--store", store, "--json").stdout)
    versions = {version["version"]: version["variant"] for version in status["versions"]}
    assert versions == {"1": "baseline", "2": "int8", "3": "int4-gptq"}
    assert status["aliases"]["production"] == "3"
    assert status["aliases"]["int8-previous"] == "1"
    assert len(document["ran"]) == STAGES


def test_a_second_run_does_no_stage_again_and_decides_nothing(finished):
    store, _, recipe = finished
    again = command("run", recipe, "--store", store, "--json")
    document = json.loads(again.stdout)
    assert again.returncode == 0
    assert document["ran"] == []
    assert len(document["reused"]) == STAGES
    assert [variant["decision"] for variant in document["variants"]] == [None, None]


def test_a_variants_model_card_is_one_of_the_files_that_were_judged(finished):
    store = Store(finished[0])
    (_, model), *_ = store.manifests("fetch")
    for path, manifest in store.manifests("quantize"):
        assert "README.md" in {file.path for file in manifest.checkpoint_files()}
        card = (path / "checkpoint" / "README.md").read_text(encoding="utf-8")
        assert model.checkpoint_digest() in card
        assert manifest.provenance.created not in card and manifest.provenance.host not in card
        assert ("16 rows of 128 tokens" in card) == (manifest.name == "int4-gptq")


def test_what_was_measured_lies_beside_what_is_pulled_and_names_its_digest(finished, tmp_path):
    result = command("pull", "tiny@int8", tmp_path / "model", "--store", finished[0])
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "model" / "serving" / "EVALUATION.md").read_text(encoding="utf-8")
    found = {manifest.name: (path, manifest) for path, manifest in Store(finished[0]).manifests("quantize")}
    path, manifest = found["int8"]
    assert manifest.checkpoint_digest() in page
    assert "within the margin of 5 points" in page and "| facts.accuracy |" in page
    assert (tmp_path / "model" / "README.md").read_bytes() == (path / "checkpoint" / "README.md").read_bytes()


def looks(store, arm):
    """Number of each kept look of an arm's item eval -> when and how it was made."""
    kept = [manifest for _, manifest in Store(store).manifests("look") if manifest.name.startswith(f"{arm} facts ")]
    return {manifest.summary["number"]: (manifest.provenance, manifest.content_digest()) for manifest in kept}


def with_margin(recipe, folder, margin):
    changed = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    changed["gates"][0]["margin"] = margin
    return write_recipe(folder, changed)


def test_a_wider_margin_judges_again_what_was_answered_and_loads_no_model(copied, finished, tmp_path):
    before = looks(copied, "int8")
    recipe = with_margin(finished[2], tmp_path, 0.06)
    environment = planted(tmp_path, {"int8": None, "int4-gptq": None})
    result = command("run", recipe, "--store", copied, "--json", "--no-release", **environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ran"] == [
        f"{stage}" for name in ("int8", "int4-gptq") for stage in (f"evaluate {name} facts", f"judge {name}")
    ]
    assert looks(copied, "int8") == before


@pytest.mark.slow
def test_a_narrower_margin_only_answers_what_was_not_answered_before(copied, finished, tmp_path):
    before = looks(copied, "int8")
    recipe = with_margin(finished[2], tmp_path, 0.03)
    arguments = ("run", recipe, "--store", copied, "--json", "--no-release", "--only", "int8")
    result = command(*arguments)
    assert result.returncode in (0, 4), result.stderr
    assert json.loads(result.stdout)["ran"] == ["evaluate int8 facts", "judge int8"]
    after = looks(copied, "int8")
    assert after.keys() > before.keys()
    assert {number: after[number] for number in before} == before


@pytest.mark.slow
def test_a_text_limit_that_fails_spares_the_items(finished, tmp_path):
    store, _, recipe = finished
    changed = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    changed["gates"].append({"kind": "limit", "metric": "prose.perplexity", "at_most": -1.0, "advisory": False})
    result = command("run", write_recipe(tmp_path, changed), "--store", store, "--json", "--no-release")
    assert result.returncode == 3, result.stderr
    document = json.loads(result.stdout)
    assert document["ran"] == ["judge int8", "judge int4-gptq"]
    for variant in document["variants"]:
        assert "evaluate.prose" in variant["stages"]
        assert "evaluate.facts" not in variant["stages"]
        sentences = [finding["sentence"] for finding in variant["verdict"]["findings"]]
        assert "facts.accuracy was not measured: the variant had been stopped before." in sentences


def test_an_eval_set_that_is_edited_after_planning_is_refused(tmp_path):
    items = tmp_path / "items.jsonl"
    shutil.copy(TINY / "items.jsonl", items)
    recipe = write_recipe(tmp_path, tiny_recipe(evals=[{"kind": "items", "name": "facts", "path": str(items)}]))
    process = start("run", recipe, "--store", tmp_path / "store", "--no-release")
    wait_for(process, "fetch ...")
    items.write_text("\n".join(items.read_text(encoding="utf-8").splitlines()[1:]), encoding="utf-8")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the eval set was changed after the run was planned" in error
    assert not (tmp_path / "store" / "look").exists()


@pytest.mark.slow
def test_an_eval_set_that_is_edited_between_runs_is_answered_anew_by_both_arms(copied, finished, tmp_path):
    before = looks(copied, "int8")
    lines = (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "items.jsonl").write_text("\n".join(lines[1:]), encoding="utf-8")
    changed = yaml.safe_load(finished[2].read_text(encoding="utf-8"))
    changed["evals"][0]["path"] = str(tmp_path / "items.jsonl")
    recipe = write_recipe(tmp_path, changed)
    result = command("run", recipe, "--store", copied, "--json", "--no-release", "--only", "int8")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["ran"] == ["evaluate baseline facts", "evaluate int8 facts", "judge int8"]
    (finding,) = [f for f in document["variants"][0]["verdict"]["findings"] if f["kind"] == "noninferiority"]
    assert finding["numbers"]["items"] == len(lines) - 1
    kept = [m.key for _, m in Store(copied).manifests("look") if m.name.startswith("int8 facts ")]
    assert len(kept) > len(before), "no look of the other set was taken for one of this"


@pytest.mark.slow
def test_the_noise_floor_measures_the_baseline_again_in_another_order(tmp_path):
    import pyarrow.parquet as pq

    store = tmp_path / "store"
    result = command(
        "run", write_recipe(tmp_path, tiny_recipe(noise_floor=True)), "--store", store, "--no-release", "--json"
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert "evaluate noise-floor facts" in document["ran"]
    orders = {}
    for path, manifest in Store(store).manifests("evaluate"):
        orders[manifest.name] = pq.read_table(path / "rows.parquet")["item_id"].to_pylist()
    assert orders["noise-floor facts"] != orders["baseline facts"]
    assert sorted(orders["noise-floor facts"]) == sorted(orders["baseline facts"])
    noise = {comparison["metric"]: comparison for comparison in document["variants"][0]["evidence"]["noise"]}
    assert noise["facts.accuracy"]["n"] == len(orders["baseline facts"])
    assert noise["facts.accuracy"]["extra"]["losses"] <= 2
    assert command("verify", document["run"], "--store", store).returncode == 0


def test_only_runs_the_variant_that_was_named(finished):
    store, _, recipe = finished
    result = command("run", recipe, "--store", store, "--json", "--only", "int8")
    assert [variant["name"] for variant in json.loads(result.stdout)["variants"]] == ["int8"]
    unknown = command("run", recipe, "--store", store, "--only", "int9")
    assert unknown.returncode == 2
    assert "int8, int4-gptq" in unknown.stderr


def test_the_report_shows_the_same_numbers_everywhere(finished):
    store, document, _ = finished
    terminal = command("report", document["run"], "--store", store).stdout
    page = command("report", document["run"], "--store", store, "--format", "markdown").stdout
    logged = (store / "runs" / document["run"] / "report.md").read_text(encoding="utf-8")
    assert page.strip() == logged.strip()
    for variant in document["variants"]:
        for finding in variant["verdict"]["findings"]:
            assert finding["sentence"] in " ".join(terminal.split())
            assert finding["sentence"] in page


def test_verify_recomputes_a_run_from_bytes_and_rows(finished):
    store, document, _ = finished
    result = command("verify", document["run"], "--store", store)
    assert result.returncode == 0, result.stdout
    assert "verdict of int8: pass" in result.stdout


@pytest.mark.parametrize("kind", ["quantize", "evaluate", "judge"])
def test_verify_finds_a_flipped_byte(copied, finished, kind):
    stages = finished[1]["variants"][0]["stages"]
    folders = [copied / kind / key[:24] for label, key in stages.items() if label.split(".")[0] == kind]
    files = [path for path in folders[0].rglob("*") if path.is_file() and path.name != "manifest.json"]
    file = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    result = command("verify", finished[1]["run"], "--store", copied)
    assert result.returncode == 1
    assert file.name in result.stdout


def test_a_forged_row_changes_no_verdict_unnoticed(copied, finished):
    """The rows' digest is in the verdict: a row that is edited, manifest and all, is still found out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from quantize.record import file_sha256

    run = next(v for v in finished[1]["variants"] if v["name"] == "int8")
    artifact = copied / "evaluate" / run["stages"]["evaluate.facts"][:24]
    table = pq.read_table(artifact / "rows.parquet").to_pylist()
    table[0]["score"] = 1.0 - table[0]["score"]
    schema = pq.read_schema(artifact / "rows.parquet")
    pq.write_table(pa.Table.from_pylist(table, schema=schema), artifact / "rows.parquet")
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    for entry in manifest["files"]:
        if entry["path"] == "rows.parquet":
            entry["sha256"] = file_sha256(artifact / "rows.parquet")
            entry["size"] = (artifact / "rows.parquet").stat().st_size
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = command("verify", finished[1]["run"], "--store", copied)
    assert result.returncode == 1
    assert "✗ verdict of int8" in result.stdout


def test_pull_brings_the_judged_bytes_to_a_consumer_that_loads_them(finished, tmp_path):
    store, document, _ = finished
    result = command("pull", "tiny@production", tmp_path / "model", "--store", store)
    assert result.returncode == 0, result.stderr
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.quantization_config.quantization_config.format == "pack-quantized"
    digest = next(v for v in document["variants"] if v["name"] == "int4-gptq")["verdict"]["artifact_digest"]
    assert digest[:12] in result.stderr


@pytest.mark.slow
def test_a_rollback_moves_the_target_and_the_next_run_leaves_it_there(finished, tmp_path):
    _, _, recipe = finished
    # A database of its own: the finished store is read only.
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    assert command("run", recipe, "--store", store).returncode == 0
    moved = command("rollback", "tiny", "--reason", "customers complain", "--store", store)
    assert "production: version 3 → 1" in moved.stdout, moved.stderr
    assert command("run", recipe, "--store", store).returncode == 0
    status = json.loads(command("status", "tiny", "--store", store, "--json").stdout)
    assert status["aliases"]["production"] == "1"
    assert "customers complain" in command("history", "tiny", "--store", store).stdout


def test_a_stage_that_fails_shows_its_log_and_the_other_variants_are_decided(finished, tmp_path):
    """The model has no router, which only the loaded model says: the method finds out in its own process."""
    store, _, recipe = finished
    changed = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    broken = tmp_path / "model"
    shutil.copytree(TINY / "checkpoint", broken)
    changed["variants"].append(
        {"name": "odd", "scheme": "W4A16", "method": {"kind": "rtn"}, "ignore": ["re:.*router"]},
    )
    own = tmp_path / "store"
    shutil.copytree(store, own, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    result = command("run", write_recipe(tmp_path, changed), "--store", own, "--json")
    document = json.loads(result.stdout)
    outcomes = {variant["name"]: variant["verdict"]["outcome"] for variant in document["variants"]}
    assert outcomes == {"int8": "pass", "int4-gptq": "pass", "odd": "error"}
    assert result.returncode == 1
    assert "quantize odd FAILED" in result.stderr
    assert "  | " in result.stderr


def test_no_release_leaves_the_registry_alone(finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    result = command("run", finished[2], "--store", store, "--no-release", "--json")
    assert result.returncode == 0, result.stderr
    assert [variant["decision"] for variant in json.loads(result.stdout)["variants"]] == [None, None]
    assert not (store / "mlflow.db").exists()


def test_lines_without_a_terminal_carry_a_time_and_stdout_is_left_to_the_report(finished):
    store, _, recipe = finished
    result = command("run", recipe, "--store", store)
    assert all(line[2] == ":" and line[5] == ":" for line in result.stderr.splitlines())
    assert "[1/14]" not in result.stdout


def test_gc_keeps_what_a_run_reached_and_frees_the_rest(copied):
    orphan = copied / "judge" / ("f" * 24)
    shutil.copytree(next((copied / "judge").iterdir()), orphan)
    manifest = json.loads((orphan / "manifest.json").read_text(encoding="utf-8"))
    (orphan / "manifest.json").write_text(json.dumps({**manifest, "key": "f" * 64}), encoding="utf-8")
    listed = json.loads(command("gc", "--store", copied, "--json").stdout)
    assert [Path(item["path"]).name for item in listed["garbage"]] == [orphan.name]
    assert orphan.exists()
    command("gc", "--store", copied, "--delete")
    assert not orphan.exists()
    assert command("verify", "--store", copied).returncode == 0
