"""The recipe for a GPU node, run here on a local checkpoint: what differs is what `--set` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import TINY, command

RECIPE = Path(__file__).parents[1] / "recipes" / "llama-awq.yaml"


@pytest.mark.slow
def test_the_recipe_of_a_gpu_node_runs_on_a_local_checkpoint(tmp_path):
    changes = [
        f"model={{kind: directory, path: {TINY / 'checkpoint'}}}",
        "calibration.samples=16",
        "calibration.tokens=128",
        f"evals.facts.path={TINY / 'items.jsonl'}",
        f"evals.prose.path={TINY / 'heldout.txt'}",
        "registry.name=tiny-awq",
    ]
    sets = [part for change in changes for part in ("--set", change)]
    result = command("run", RECIPE, *sets, "--store", tmp_path / "store", "--json")
    assert result.returncode in (0, 3, 4), result.stderr
    (variant,) = json.loads(result.stdout)["variants"]
    findings = {finding["kind"]: finding["outcome"] for finding in variant["verdict"]["findings"]}
    assert variant["name"] == "awq"
    assert findings["proof"] == "pass"
    assert findings["noninferiority"] in ("pass", "fail", "inconclusive")
