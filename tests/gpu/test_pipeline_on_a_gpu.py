"""The whole way on an NVIDIA GPU: what the CPU suite runs, with the devices that the program is written for."""

from __future__ import annotations

import json

import pytest
from program import TINY, command, tiny_recipe, write_recipe

pytestmark = pytest.mark.gpu

VARIANTS = [
    {"name": "fp8", "scheme": "FP8_DYNAMIC", "method": {"kind": "rtn"}},
    {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}},
    {"name": "int4-gptq", "scheme": "W4A16", "method": {"kind": "gptq"}},
    {"name": "int4-awq", "scheme": "W4A16", "method": {"kind": "awq"}},
]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    recipe = tiny_recipe(
        calibration={"kind": "self", "samples": 32, "tokens": 256},
        variants=VARIANTS,
        evals=[
            {"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")},
            {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")},
        ],
        registry={"kind": "mlflow", "name": "tiny", "targets": {"production": {"from": ["fp8", "int4-awq"]}}},
        resources={"device": "cuda"},
    )
    result = command("run", write_recipe(folder, recipe), "--store", folder / "store", "--json")
    assert result.stdout, result.stderr
    return json.loads(result.stdout)


def test_every_variant_is_made_and_proven_on_the_gpu(document):
    findings = {v["name"]: v["verdict"]["findings"][0] for v in document["variants"]}
    assert {name: (f["kind"], f["outcome"]) for name, f in findings.items()} == {
        variant["name"]: ("proof", "pass") for variant in VARIANTS
    }


def test_the_device_is_on_record(document):
    assert "cpu" not in document["device"]
