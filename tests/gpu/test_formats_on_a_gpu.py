"""Every format on an NVIDIA GPU, each in the engine that serves it there. Needs the environments of those engines."""

from __future__ import annotations

import json

import pytest
from program import TINY, command, tiny_recipe, write_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

#: Variants, and the environments without which they cannot be made or measured.
VARIANTS = {
    "nf4": ({"scheme": "NF4", "method": {"kind": "bitsandbytes"}}, ()),
    "int8-vllm": ({"scheme": "W8A8", "method": {"kind": "rtn"}, "engine": {"kind": "vllm"}}, ("vllm",)),
    "w4a16-vllm": (
        {"scheme": "W4A16", "group_size": 64, "method": {"kind": "rtn"}, "engine": {"kind": "vllm"}},
        ("vllm",),
    ),
    "gptq": ({"scheme": "W4A16", "group_size": 64, "method": {"kind": "gptqmodel"}}, ("gptqmodel",)),
    "awq": ({"scheme": "W4A16_ASYM", "group_size": 64, "method": {"kind": "autoawq"}}, ("autoawq", "gptqmodel")),
    "autogptq": ({"scheme": "W4A16", "group_size": 64, "method": {"kind": "autogptq"}}, ("autogptq", "gptqmodel")),
    "q8": ({"scheme": "Q8_0", "method": {"kind": "gguf"}}, ("llamacpp",)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_made_proven_and_measured_in_its_engine_on_the_gpu(environment, tmp_path, name):
    variant, needed = VARIANTS[name]
    for one in needed:
        environment(one)
    recipe = tiny_recipe(
        calibration={"kind": "self", "samples": 32, "tokens": 256},
        variants=[{"name": name, **variant}],
        evals=[
            {"kind": "items", "name": "facts", "path": str(TINY / "items.jsonl")},
            {"kind": "text", "name": "prose", "path": str(TINY / "heldout.txt")},
        ],
        registry={"kind": "mlflow", "name": "tiny", "targets": {}},
        resources={"device": "cuda"},
    )
    result = command("run", write_recipe(tmp_path, recipe), "--store", tmp_path / "store", "--json", seconds=900)
    assert result.stdout, result.stderr
    (found,) = json.loads(result.stdout)["variants"]
    proof = found["verdict"]["findings"][0]
    assert (proof["kind"], proof["outcome"]) == ("proof", "pass"), proof["sentence"]
    assert {"evaluate.facts", "evaluate.prose"} <= set(found["stages"])
