"""Whole runs of a gated model: with a token that is let in, then without any network. Against a server of the hub's
protocol.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from hub_server import serving
from program import TINY, command, tiny_recipe, write_recipe

COMMIT, TOKEN = "a" * 40, "hf_ThisMustNeverBeWritten"


@pytest.fixture
def repository(tmp_path):
    """The tiny Llama as somebody publishes it."""
    folder = shutil.copytree(TINY / "checkpoint", tmp_path / "repository")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n", encoding="utf-8")
    (folder / "NOTICE").write_text("who made it", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_gated_model_runs_with_a_token_that_nobody_writes_down_and_then_without_a_network(repository, tmp_path):
    few = tmp_path / "few.jsonl"
    lines = (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[:24]), encoding="utf-8")
    model = {"kind": "hub", "repo": "org/tiny", "revision": COMMIT}
    evals = [{"kind": "items", "name": "facts", "path": str(few)}]
    gates = [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.5}]
    recipe = write_recipe(tmp_path, tiny_recipe(model=model, evals=evals, gates=gates))
    cache = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    arguments = (recipe, "--no-release", "--store")
    with serving("org/tiny", repository, {"main": COMMIT}, tokens={TOKEN: True}) as hub:
        online = {**cache, "HF_ENDPOINT": hub.url}
        refused = command("plan", *arguments[:1], "--store", tmp_path / "none", **online, HF_TOKEN="")
        assert refused.returncode == 1
        assert f"org/tiny@{COMMIT}: the repository is gated. Accept its licence" in refused.stderr
        assert "HF_TOKEN" in refused.stderr and "Traceback" not in refused.stderr
        ran = command("run", *arguments, tmp_path / "store", **online, HF_TOKEN=TOKEN)
        assert ran.returncode == 0, ran.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert written == [] and TOKEN not in ran.stdout + ran.stderr

    offline = {**cache, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}
    shutil.rmtree(tmp_path / "store" / "fetch")
    planned = command("plan", recipe, "--store", tmp_path / "store", "--json", **offline)
    assert planned.returncode == 0, planned.stderr
    again = command("run", *arguments, tmp_path / "store", "--json", **offline)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["ran"] == ["fetch"], "all else is what it was"
    card = next((tmp_path / "store" / "quantize").glob("*/checkpoint/README.md"))
    front = yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])
    assert (front["license"], front["language"], front["base_model"]) == ("apache-2.0", "en", "org/tiny")
    assert card.with_name("NOTICE").read_text(encoding="utf-8") == "who made it"
