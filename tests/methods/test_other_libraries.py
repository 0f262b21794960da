"""GPTQModel, AutoAWQ and AutoGPTQ: what they refuse; stages run in their interpreters and proved in the engine's."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from quantize.artifact import ModelFacts
from quantize.calibrators import Self
from quantize.engines import Transformers
from quantize.errors import StageFailed
from quantize.executors import Local
from quantize.handed import StageSpec
from quantize.methods import Autoawq, Autogptq, Gptqmodel
from quantize.patterns import matching
from quantize.record import digest
from quantize.scheme import preset
from quantize.sources import Directory
from quantize.store import Store

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
LINEARS = 4 * 7
INT4 = replace(preset("W4A16"), group_size=64)
ASYMMETRIC = replace(preset("W4A16_ASYM"), group_size=64)
LEFT_ALONE = "model.layers.2.mlp.down_proj"
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    layers=30,
    hidden_size=576,
    vocab_size=49152,
    dtype="bfloat16",
    linears={"576x576": 60, "192x576": 60, "1536x576": 60, "576x1536": 30},
    parameters=None,
    bytes=None,
    unknown=[],
)


@pytest.mark.parametrize("method", [Gptqmodel(), Autoawq(), Autogptq()])
def test_a_scheme_of_another_library_and_rounded_activations_are_refused(method):
    for name in ("NF4", "Q4_K_M", "FP8_DYNAMIC", "W8A8"):
        (sentence,) = method.problems(preset(name), FACTS)
        assert method.kind in sentence and name in sentence


@pytest.mark.parametrize(("method", "scheme"), [(Gptqmodel(), INT4), (Autoawq(), ASYMMETRIC), (Autogptq(), INT4)])
def test_groups_and_channels_must_fit_the_model(method, scheme):
    assert method.problems(scheme, FACTS) == []
    assert method.problems(scheme, FACTS.model_copy(update={"linears": None})) == []
    (sentence,) = method.problems(replace(scheme, group_size=128), FACTS)
    assert "group" in sentence and "64" in sentence
    (sentence,) = method.problems(scheme, FACTS.model_copy(update={"linears": {"100x64": 1}}))
    assert "100x64" in sentence


def test_zero_points_go_where_they_can_be_stored():
    assert Gptqmodel().problems(ASYMMETRIC, FACTS) == []
    (sentence,) = Autoawq().problems(INT4, FACTS)
    assert "W4A16_ASYM" in sentence
    (sentence,) = Autogptq().problems(ASYMMETRIC, FACTS)
    assert "gptqmodel" in sentence


def test_autoawq_knows_four_bits_and_the_groups_of_its_kernels():
    (sentence,) = Autoawq().problems(replace(ASYMMETRIC, weight_bits=8), FACTS)
    assert "4 bits" in sentence
    (sentence,) = Autoawq().problems(replace(ASYMMETRIC, group_size=16), FACTS)
    assert "32 or 64 or 128" in sentence


def test_autogptq_needs_a_cuda_device_and_names_its_successor():
    assert "gptqmodel" in Autogptq().refusal("cpu")
    assert Autogptq().refusal("cuda") is None
    assert Gptqmodel().refusal("cpu") is None
    assert Autoawq().refusal("cpu") is None


def test_two_orders_of_columns_at_once_are_refused():
    with pytest.raises(ValidationError, match="act_group_aware: false"):
        Gptqmodel(desc_act=True)
    assert Gptqmodel(desc_act=True, act_group_aware=False).desc_act


def test_ignore_means_full_names_and_patterns_from_the_start():
    names = ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.10.mlp.down_proj"]
    assert matching(names, ("lm_head", "down_proj")) == ["lm_head"]
    assert matching(names, ("re:.*down_proj",)) == names[1:]
    assert matching(names, ("model.layers.0.mlp.down_proj",)) == names[1:2]
    assert matching(names, ("Linear",)) == names, "a class means what it means to llm-compressor"


@dataclass(frozen=True)
class Stages:
    """Runs stages in an environment's interpreter, as a run does, on the tiny Llama."""

    folder: Path
    inputs: dict[str, Path]

    def run(self, kind, config, environment, python, libraries, **inputs):
        """The committed artifact."""
        store = Store(self.folder / "store")
        key = digest({"stage": len(list((self.folder / "logs").iterdir()))})
        spec = StageSpec(
            kind=kind,
            name="variant",
            key=key,
            version=1,
            config=config,
            inputs={**self.inputs, **inputs},
            input_keys={},
            libraries=libraries,
            device="cpu",
            interpreters={} if environment is None else {environment: python},
            environment=environment,
            threads=1,
        )
        log = self.folder / "logs" / f"{key}.log"
        with store.lease(kind, key, lambda _: None) as lease:
            Local().run(spec, store.root, log, lambda *_: None, lease)
        return store.path(kind, key)

    def quantize(self, method, scheme, python, *ignore):
        config = {
            "method": method.model_dump(mode="json"),
            "scheme": asdict(scheme),
            "ignore": ["lm_head", *ignore],
            "seed": 0,
        }
        return self.run("quantize", config, method.environment, python, method.libraries)

    def prove(self, quantized, python):
        engine = Transformers(environment="gptqmodel")
        config = {"engine": engine.model_dump(mode="json")}
        made = self.run("prove", config, "gptqmodel", python, engine.libraries, quantized=quantized)
        return json.loads((made / "proof.json").read_text())


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    (folder / "logs").mkdir()
    first = Stages(folder, {})
    model = first.run("fetch", {"source": Directory(path=str(TINY)).model_dump(mode="json")}, None, None, ())
    asked = Self(samples=16, tokens=128).model_dump(mode="json", by_alias=True)
    tokens = first.run("calibrate", {"calibration": asked}, None, None, (), model=model)
    return Stages(folder, {"model": model, "tokens": tokens})


@pytest.fixture(scope="module")
def by_gptqmodel(stages, environment):
    return stages.quantize(Gptqmodel(), INT4, environment("gptqmodel"), LEFT_ALONE)


@pytest.fixture(scope="module")
def by_autoawq(stages, environment):
    return stages.quantize(Autoawq(), ASYMMETRIC, environment("autoawq"))


def tensors_of(quantized):
    from safetensors.torch import load_file

    return load_file(quantized / "checkpoint" / "model.safetensors")


def packed(quantized):
    return {name.removesuffix(".qweight") for name in tensors_of(quantized) if name.endswith(".qweight")}


def check_checkpoint(quantized):
    """What both formats have in common: nothing but the Linears changed, and nothing of this machine is in it."""
    import torch

    checkpoint, source = quantized / "checkpoint", json.loads((TINY / "config.json").read_text())
    tensors = tensors_of(quantized)
    config = json.loads((checkpoint / "config.json").read_text())
    assert {name: value for name, value in config.items() if name != "quantization_config"} == source
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.scales"].dtype == torch.float16
    assert "/tmp" not in json.dumps(config)
    for name in {path.name for path in TINY.iterdir()} - {"config.json", "model.safetensors"}:
        assert (checkpoint / name).read_bytes() == (TINY / name).read_bytes(), name
    assert (checkpoint / "model.safetensors").stat().st_size < 0.5 * (TINY / "model.safetensors").stat().st_size


@pytest.mark.engine
def test_gptqmodel_packs_every_linear_of_the_blocks_but_those_left_alone(by_gptqmodel):
    names = packed(by_gptqmodel)
    assert len(names) == LINEARS - 1
    assert LEFT_ALONE not in names and "lm_head" not in names
    check_checkpoint(by_gptqmodel)
    settings = json.loads((by_gptqmodel / "checkpoint" / "config.json").read_text())["quantization_config"]
    assert (settings["bits"], settings["group_size"], settings["checkpoint_format"]) == (4, 64, "gptq")


@pytest.mark.engine
def test_autoawq_packs_every_linear_of_the_blocks(by_autoawq):
    names = packed(by_autoawq)
    assert len(names) == LINEARS and "lm_head" not in names
    check_checkpoint(by_autoawq)
    settings = json.loads((by_autoawq / "checkpoint" / "config.json").read_text())["quantization_config"]
    assert (settings["bits"], settings["group_size"], settings["zero_point"]) == (4, 64, True)


@pytest.mark.engine
@pytest.mark.parametrize("maker", ["by_gptqmodel", "by_autoawq"])
def test_the_engine_answers_from_the_checkpoint_as_the_model_in_memory_did(request, stages, environment, maker):
    proof = stages.prove(request.getfixturevalue(maker), environment("gptqmodel"))
    assert proof["outcome"] == "pass", proof["sentences"]
    assert proof["numbers"]["mean_kl"] < 1e-9


@pytest.mark.engine
def test_zero_points_of_gptqmodel_reload_as_they_were_found(stages, environment):
    python = environment("gptqmodel")
    quantized = stages.quantize(Gptqmodel(desc_act=True, act_group_aware=False), ASYMMETRIC, python)
    settings = json.loads((quantized / "checkpoint" / "config.json").read_text())["quantization_config"]
    assert settings["checkpoint_format"] == "gptq_v2"
    proof = stages.prove(quantized, python)
    assert proof["outcome"] == "pass", proof["sentences"]


@pytest.mark.engine
@pytest.mark.parametrize("maker", ["by_gptqmodel", "by_autoawq"])
def test_a_scale_that_is_off_by_five_percent_is_found(request, stages, environment, tmp_path, maker):
    """Found against what was in memory, not against what the library would read from the same file."""
    from safetensors.torch import save_file

    damaged = tmp_path / "damaged"
    shutil.copytree(request.getfixturevalue(maker), damaged)
    tensors = tensors_of(damaged)
    tensors["model.layers.1.self_attn.v_proj.scales"] *= 1.05
    save_file(tensors, damaged / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    proof = stages.prove(damaged, environment("gptqmodel"))
    assert proof["outcome"] == "fail"
    assert any("model.layers.1.self_attn.v_proj" in sentence for sentence in proof["sentences"])


@pytest.mark.engine
def test_autoawq_says_which_linear_it_cannot_leave_alone(stages, environment):
    with pytest.raises(StageFailed, match=LEFT_ALONE) as caught:
        stages.quantize(Autoawq(), ASYMMETRIC, environment("autoawq"), LEFT_ALONE)
    assert "awq" in caught.value.fix
