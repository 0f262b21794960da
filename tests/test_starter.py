"""`quantize init`: the machine's arithmetic and the model's shapes decide which variants a first recipe has."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import yaml
from planted_nvml import PlantedGpu
from program import TINY, command
from safetensors.numpy import save_file

from quantize import device
from quantize.preflight import check
from quantize.recipe import Recipe
from quantize.starter import Starter, starter_recipe

ITEMS = TINY / "items.jsonl"
ROUTERS = r"re:.*\.(gate|router|shared_expert_gate)$"


@pytest.fixture
def planted(monkeypatch):
    """Makes this machine one with a GPU of a compute capability; with None, one without."""

    def plant(capability: tuple[int, int] | None) -> None:
        PlantedGpu().plant(monkeypatch)
        count = 1 if capability is not None else 0
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: count)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=80 << 30))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda handle: capability)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        device.gpus.cache_clear()

    yield plant
    device.gpus.cache_clear()


def checkpoint(folder: Path, hidden: int = 256, **config: Any) -> Path:
    """One layer of a Llama of this width, or of the mixture of experts that `config` makes of it."""
    shutil.copytree(TINY / "checkpoint", folder)
    place = folder / "config.json"
    plain = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 1}
    place.write_text(json.dumps(json.loads(place.read_text(encoding="utf-8")) | plain | config), encoding="utf-8")
    mlp = "mlp.experts.0" if "num_experts" in config else "mlp"
    shapes = {"self_attn.q_proj": (hidden, hidden), f"{mlp}.up_proj": (2 * hidden, hidden), "mlp.gate": (8, hidden)}
    tensors = {f"model.layers.0.{name}.weight": np.zeros(shape, np.float16) for name, shape in shapes.items()}
    tensors["model.embed_tokens.weight"] = np.zeros((512, hidden), np.float16)
    if mlp == "mlp":
        del tensors["model.layers.0.mlp.gate.weight"]
    save_file(tensors, folder / "model.safetensors")
    return folder


def started(model: Path, tmp_path: Path) -> tuple[Starter, dict[str, Any]]:
    """A starter recipe as it is written and as data; it has no problem on this machine."""
    starter = starter_recipe(str(model), ITEMS, "mine")
    data = yaml.safe_load(starter.text)
    recipe = Recipe.model_validate(data)
    facts = recipe.model.facts()
    assert not check(recipe, facts, device.choose("auto"), tmp_path, tuple(recipe.variants)).problems
    return starter, data


@pytest.mark.parametrize(
    ("capability", "schemes"),
    [
        ((12, 0), ["FP8_DYNAMIC", "NVFP4"]),
        ((10, 0), ["FP8_DYNAMIC", "NVFP4"]),
        ((9, 0), ["FP8_DYNAMIC", "W4A16"]),
        ((8, 9), ["FP8_DYNAMIC", "W4A16"]),
        ((8, 6), ["W8A8", "W4A16"]),
        ((8, 0), ["W8A8", "W4A16"]),
        (None, ["W8A8", "W4A16"]),
    ],
)
def test_the_arithmetic_of_the_gpu_decides(planted, tmp_path, capability, schemes):
    planted(capability)
    starter, data = started(checkpoint(tmp_path / "model"), tmp_path)
    assert [variant["scheme"] for variant in data["variants"]] == schemes
    assert data["registry"]["targets"]["production"]["from"] == [one.name for one in starter.variants]
    lines = starter.text.splitlines()
    for one in starter.variants:
        place = next(number for number, line in enumerate(lines) if f"name: {one.name}," in line)
        assert lines[place - 1] == f"  # {one.why}"
    assert ("kv_cache: fp8" in starter.text) == ("FP8_DYNAMIC" in schemes)
    assert ("NVIDIA Planted" in lines[2]) == (capability is not None)


def test_fp4_is_left_out_where_its_groups_do_not_fit(planted, tmp_path):
    planted((10, 0))
    _, data = started(checkpoint(tmp_path / "model", hidden=40), tmp_path)
    assert [variant["scheme"] for variant in data["variants"]] == ["FP8_DYNAMIC"]


def test_what_chooses_experts_is_left_alone(planted, tmp_path):
    planted((9, 0))
    moe = {"model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 512, "num_experts_per_tok": 2}
    starter, data = started(checkpoint(tmp_path / "model", **moe), tmp_path)
    assert all(variant["ignore"] == ["lm_head", ROUTERS] for variant in data["variants"])
    pattern = re.compile(ROUTERS.removeprefix("re:"))
    assert pattern.match("model.layers.3.mlp.gate") and pattern.match("model.layers.3.mlp.shared_expert_gate")
    assert not pattern.match("model.layers.3.mlp.experts.0.gate_proj")
    assert all("Routers stay." in one.why for one in starter.variants)


@pytest.mark.parametrize(("hidden", "small"), [(256, "Q4_K_M"), (160, "Q4_0")])
def test_without_a_gpu_the_comments_are_variants_for_llama_cpp_that_load(planted, tmp_path, hidden, small):
    planted(None)
    starter, data = started(checkpoint(tmp_path / "model", hidden=hidden), tmp_path)
    offered = [line.removeprefix("  # - ") for line in starter.text.splitlines() if line.startswith("  # - {name")]
    variants = [yaml.safe_load(line) for line in offered]
    assert [variant["scheme"] for variant in variants] == ["Q8_0", small]
    targets = {"production": {"from": ["int8"]}, "edge": {"from": ["q8-0", "q4"], "prefer": "bytes"}}
    registry = {**data["registry"], "targets": targets}
    Recipe.model_validate({**data, "variants": [*data["variants"], *variants], "registry": registry})


def test_the_commented_kv_cache_variant_loads_too(planted, tmp_path):
    planted((9, 0))
    starter, data = started(checkpoint(tmp_path / "model"), tmp_path)
    (line,) = [line for line in starter.text.splitlines() if line.startswith("  # - {name: fp8-kv")]
    Recipe.model_validate({**data, "variants": [*data["variants"], yaml.safe_load(line.removeprefix("  # - "))]})


def test_json_has_the_recipe_its_variants_and_why(tmp_path):
    path = tmp_path / "recipe.yaml"
    result = command("init", TINY / "checkpoint", "--evals", ITEMS, "-o", path, "--json", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["path"] == str(path) and document["text"] == path.read_text(encoding="utf-8")
    assert [variant["name"] for variant in document["variants"]] == ["int8", "int4-gptq"]
    assert all(variant["why"] for variant in document["variants"])
