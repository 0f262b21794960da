"""The whole way through, as a user walks it: real processes, a real model, a real MLflow database."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from program import TINY, command, tiny_recipe, write_recipe

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


def test_a_changed_margin_judges_again_and_measures_nothing(finished, tmp_path):
    store, _, recipe = finished
    changed = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    changed["gates"][0]["margin"] = 0.06
    result = command("run", write_recipe(tmp_path, changed), "--store", store, "--json", "--no-release")
    assert json.loads(result.stdout)["ran"] == ["judge int8", "judge int4-gptq"]


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
            assert finding["sentence"] in terminal.replace("\n", " ") or finding["sentence"] in terminal
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
    """The pattern is no regular expression: the method finds out in its own process."""
    store, _, recipe = finished
    changed = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    broken = tmp_path / "model"
    shutil.copytree(TINY / "checkpoint", broken)
    changed["variants"].append(
        {"name": "odd", "scheme": "W4A16", "method": {"kind": "rtn"}, "ignore": ["re:("]},
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


def test_no_release_leaves_the_registry_alone(tmp_path):
    recipe = write_recipe(tmp_path, tiny_recipe())
    result = command("run", recipe, "--store", tmp_path / "store", "--no-release")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "store" / "mlflow.db").exists()


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
