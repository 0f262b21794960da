"""The verbs that need no model: init, doctor, gc, schema and help, each as a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from program import TINY, command, tiny_recipe, write_recipe
from safetensors.numpy import save_file

from quantize.device import choose
from quantize.preflight import check
from quantize.recipe import load
from quantize.store import Store

ROOT = Path(__file__).parents[1]
CHECKPOINT, ITEMS = TINY / "checkpoint", TINY / "items.jsonl"


def llama_of_width(folder: Path, hidden: int, inner: int) -> Path:
    """A Llama's config, tokenizer and (one layer of) weights with these widths."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = {"self_attn.q_proj": (hidden, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    tensors = {f"model.layers.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors["model.embed_tokens.weight"] = np.zeros((512, hidden), np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_init_writes_a_recipe_that_plans(tmp_path):
    recipe = tmp_path / "starter.yaml"
    result = command("init", CHECKPOINT, "--evals", ITEMS, "--name", "mine", "-o", recipe)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert f"quantize plan {recipe}" in result.stderr
    assert recipe.read_text(encoding="utf-8").splitlines()[0].startswith("# yaml-language-server: $schema=")
    planned = command("plan", recipe, "--store", tmp_path / "store", "--json")
    assert planned.returncode == 0, planned.stderr
    document = json.loads(planned.stdout)
    assert document["recipe"] == "mine"
    assert {stage["name"] for stage in document["stages"] if stage["kind"] == "quantize"} >= {"int8", "int4-gptq"}


def test_init_prints_to_stdout_what_it_would_write(tmp_path):
    result = command("init", CHECKPOINT, "--evals", ITEMS)
    assert result.returncode == 0, result.stderr
    data = yaml.safe_load(result.stdout)
    assert data["model"] == {"kind": "directory", "path": str(CHECKPOINT)}
    assert data["evals"][0]["path"] == str(ITEMS)


@pytest.mark.parametrize(
    ("hidden", "inner", "size"), [(128, 256, None), (576, 1536, 64), (96, 224, 32), (80, 160, ...)]
)
def test_init_takes_the_largest_group_size_that_the_shapes_allow(tmp_path, hidden, inner, size):
    model = llama_of_width(tmp_path / "model", hidden, inner)
    result = command("init", model, "--evals", ITEMS, "-o", tmp_path / "recipe.yaml")
    assert result.returncode == 0, result.stderr
    variants = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))["variants"]
    int4 = [variant for variant in variants if variant["scheme"] == "W4A16"]
    assert [variant.get("group_size") for variant in int4] == ([] if size is ... else [size])
    recipe = load(tmp_path / "recipe.yaml").recipe
    facts = recipe.model.facts()
    assert not check(recipe, facts, choose("cpu"), tmp_path, tuple(recipe.variants)).problems


def test_init_quotes_a_path_that_yaml_would_read_otherwise(tmp_path):
    model = tmp_path / "a: b #c {1}"
    shutil.copytree(CHECKPOINT, model)
    items = tmp_path / "x: 'y'.jsonl"
    shutil.copy(ITEMS, items)
    result = command("init", model, "--evals", items, "-o", tmp_path / "recipe.yaml")
    assert result.returncode == 0, result.stderr
    data = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert (data["model"]["path"], data["evals"][0]["path"]) == (str(model), str(items))
    assert data["name"] == "a-b-c-1"


def test_init_never_overwrites(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine", encoding="utf-8")
    result = command("init", CHECKPOINT, "--evals", ITEMS, "-o", tmp_path / "recipe.yaml")
    assert result.returncode == 1
    assert "the file exists" in result.stderr
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("model", "evals", "more", "code", "says"),
    [
        (CHECKPOINT, "nope.jsonl", (), 2, "there is no such eval set"),
        (CHECKPOINT, ROOT / "pyproject.toml", (), 1, "pyproject.toml:1: this line is not JSON"),
        (CHECKPOINT, ITEMS, ("--name", "My Model"), 2, "--name My Model: "),
        (CHECKPOINT, ITEMS, ("-o", "no/such/folder.yaml"), 1, "cannot be written (No such file or directory)"),
        ("nowhere", ITEMS, (), 2, "neither a model directory, nor a .gguf file, nor a hub id"),
        ("./no/where", ITEMS, (), 2, "neither a model directory, nor a .gguf file, nor a hub id"),
        ("./nowhere", ITEMS, (), 2, "neither a model directory, nor a .gguf file, nor a hub id"),
        ("nowhere.gguf", ITEMS, (), 1, "nowhere.gguf"),
        (TINY, ITEMS, (), 1, "there is no config.json"),
    ],
)
def test_init_refuses_what_it_cannot_read(tmp_path, monkeypatch, model, evals, more, code, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = command("init", model, "--evals", evals, *more)
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_init_needs_an_eval_set():
    result = command("init", CHECKPOINT)
    assert result.returncode == 2
    assert "--evals" in result.stderr


def test_doctor_says_what_is_there(tmp_path):
    result = command("doctor", "--store", tmp_path / "store", "--json")
    lines = {line["what"]: line for line in json.loads(result.stdout)}
    assert lines.keys() >= {"python", "torch", "llmcompressor", "mlflow", "device", "disk", "store"}
    assert result.returncode == (1 if any(line["state"] == "fail" for line in lines.values()) else 0)
    assert lines["store"]["state"] == "ok"
    assert "0 artifacts" in lines["store"]["found"]
    assert not (tmp_path / "store").exists(), "looking changes nothing"


def test_doctor_says_which_hub_is_asked_and_never_the_token(tmp_path):
    mirror = {"HF_ENDPOINT": "https://me:hf_secret@mirror.example", "HF_TOKEN": "hf_secret"}
    told = command("doctor", "--store", tmp_path, **mirror).stdout
    assert "https://mirror.example; token: HF_TOKEN" in told and "hf_secret" not in told
    alone = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_HOME": str(tmp_path / "home")}
    told = command("doctor", "--store", tmp_path, **alone).stdout
    assert f"offline, from {tmp_path}/home/hub alone; token: none" in told


def test_doctor_says_that_a_store_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = command("doctor", "--store", tmp_path / "file" / "store")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "cannot be written" in line]
    assert line.startswith("✗ store")
    assert "--store" in line


def test_doctor_sees_no_gpu_where_none_is_visible(tmp_path):
    result = command("doctor", "--store", tmp_path, "--json", CUDA_VISIBLE_DEVICES="")
    (line,) = [line for line in json.loads(result.stdout) if line["what"] == "device"]
    assert line["state"] == "warn"
    assert "no NVIDIA GPU" in line["found"]


def test_gc_of_a_store_that_is_not_there_finds_nothing(tmp_path):
    result = command("gc", "--store", tmp_path / "store", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"garbage": [], "bytes": 0, "deleted": False, "held": {}}
    assert not (tmp_path / "store").exists()


def test_gc_lists_drafts_and_deletes_only_when_told(tmp_path):
    draft = tmp_path / "store" / "drafts" / "quantize-0123456789abcdef01234567.x"
    draft.mkdir(parents=True)
    (draft / "weights").write_bytes(bytes(1000))
    listed = command("gc", "--store", tmp_path / "store", "--json")
    assert [item["path"] for item in json.loads(listed.stdout)["garbage"]] == [str(draft)]
    assert json.loads(listed.stdout)["bytes"] == 1000
    assert json.loads(listed.stdout)["held"] == {"drafts": 1000}
    assert draft.exists()
    deleted = command("gc", "--store", tmp_path / "store", "--delete", "--json")
    assert deleted.returncode == 0, deleted.stderr
    assert json.loads(deleted.stdout)["held"] == {"drafts": 0}
    assert not draft.exists()


def test_gc_keeps_what_a_run_reached_and_drops_it_with_the_run(copied):
    kept = command("gc", "--store", copied, "--json")
    assert json.loads(kept.stdout)["garbage"] == []
    dropped = json.loads(command("gc", "--store", copied, "--keep-runs", "0", "--json").stdout)["garbage"]
    kinds = {Path(item["path"]).relative_to(copied).parts[0] for item in dropped}
    assert kinds >= {"fetch", "quantize", "evaluate", "judge", "runs"}
    assert command("gc", "--store", copied, "--keep-runs", "0", "--delete").returncode == 0
    assert not list(copied.glob("*/*/manifest.json"))
    assert not list((copied / "runs").iterdir())


def test_gc_drops_the_folder_of_a_killed_run_once_a_later_one_has_a_record(copied):
    (finished,) = (copied / "runs").iterdir()
    earlier, later, another = ("tiny-20000101T000000.000000p1", "tiny-29990101T000000.000000p1", "else-20000101T0p1")
    for name in (earlier, later, another):
        (copied / "runs" / name / "logs").mkdir(parents=True)
    with Store(copied).lease("run", "0" * 64, lambda _owner: None):
        assert json.loads(command("gc", "--store", copied, "--json").stdout)["garbage"] == [], "it may be this one"
    listed = json.loads(command("gc", "--store", copied, "--delete", "--json").stdout)["garbage"]
    assert [item["path"] for item in listed] == [str(copied / "runs" / earlier)]
    assert {path.name for path in (copied / "runs").iterdir()} == {finished.name, later, another}


def test_gc_keeps_the_last_run_that_promoted_a_variant_for_what_asks_for_it_yet(copied):
    (run,) = (copied / "runs").iterdir()
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert {variant["decision"]["action"] for variant in record["variants"]} >= {"promote"}
    for variant in record["variants"]:
        variant["decision"] = None  # what an hourly run of the same recipe comes to
    later = copied / "runs" / "tiny-29990101T000000.000000p1"
    later.mkdir()
    (later / "run.json").write_text(json.dumps({**record, "run": later.name}), encoding="utf-8")
    garbage = json.loads(command("gc", "--store", copied, "--keep-runs", "1", "--json").stdout)["garbage"]
    assert [item for item in garbage if "/runs/" in item["path"]] == []
    garbage = json.loads(command("gc", "--store", copied, "--keep-runs", "0", "--json").stdout)["garbage"]
    assert len([item for item in garbage if "/runs/" in item["path"]]) == 2


def test_schema_prints_one_json_document_that_names_every_part():
    result = command("schema")
    assert result.returncode == 0
    schema = json.loads(result.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["if"] == {"required": ["include"]}, "what a file does not say, one that it includes may"
    assert set(schema["else"]["required"]) == {"version", "name", "model", "variants", "evals", "gates", "registry"}
    assert schema["additionalProperties"] is False
    assert schema == json.loads((ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))


def test_help_starts_at_once_and_names_every_verb():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        result = command("--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0
    verbs = "init plan run report verify compare status history promote rollback reconcile unlock pull gc doctor schema"
    for verb in verbs.split():
        assert f"\n  {verb} " in result.stdout
    assert min(seconds) < 0.4


@pytest.mark.parametrize(
    "arguments", [("nope",), ("plan",), ("plan", "x", "--nope"), ("plan", "."), ("gc", "--keep-runs", "-1")]
)
def test_a_wrong_command_line_ends_with_2(arguments):
    result = command(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_reader_that_is_gone_is_no_traceback_and_no_success():
    process = subprocess.Popen(
        [sys.executable, "-m", "quantize", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        said = errors.read()
    assert process.wait(timeout=60) == 1
    assert said == b""


def test_only_of_a_variant_that_is_not_there_is_refused_with_a_config_too(tmp_path):
    recipe = write_recipe(tmp_path, tiny_recipe())
    for more in ((), ("--config", str(CHECKPOINT / "config.json"))):
        result = command("plan", recipe, "--only", "int9", *more)
        assert result.returncode == 2
        assert "the recipe has no such variant (it has int8)" in result.stderr
