"""Experts that calibration hardly reaches: covered, refused or left as the recipe says, and never in silence."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from program import TINY, command, problems_of, tiny_recipe, write_recipe
from small_models import EXPERTS, LAYERS, save

from quantize.device import choose
from quantize.engines import Transformers
from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Gptq, Rtn
from quantize.methods._experts import check
from quantize.planner import make_plan
from quantize.proof import prove, record
from quantize.recipe import load
from quantize.scheme import preset
from quantize.sources import config_facts

INT4 = replace(preset("W4A16"), group_size=32)
ALL = LAYERS * EXPERTS


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return save("Qwen3MoeConfig", tmp_path_factory.mktemp("moe"))


def rows(*lengths):
    import torch

    chance = torch.Generator().manual_seed(0)
    return tuple(torch.randint(3, 512, (length,), generator=chance) for length in lengths)


MANY, FEW = (64, 3, 64, 2, 64), (8,)


@pytest.fixture
def quantized(moe, tmp_path):
    """A function: method, scheme, rows and what the recipe says -> folder, proof, what was told."""

    def run(method, scheme, tokens, source=moe, **rule):
        out, witness, told = tmp_path / "checkpoint", tmp_path / "witness", {}
        out.mkdir()
        witness.mkdir()
        note = partial(record, tokenizer_dir=source, out=witness)
        job = QuantizeJob(
            source, out, scheme, ("lm_head",), tokens, "cpu", 0, note, lambda *_: None, Host({}, tmp_path), **rule
        )
        method.quantize(replace(job, tell=told.update))
        session = Transformers().open(out, "cpu")
        try:
            return out, prove(out, witness, source, session, "transformers"), told["experts"]
        finally:
            session.close()

    return run


def tensors(folder):
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("method", "scheme"), [(Gptq(), INT4), (Rtn(), preset("NVFP4"))], ids=["gptq", "nvfp4"])
def test_covered_experts_are_calibrated_on_what_the_router_sends_them(quantized, method, scheme):
    out, proof, told = quantized(method, scheme, rows(*MANY), uncovered="refuse", least_tokens=8)
    assert proof.outcome == "pass", proof.sentences
    assert (told["experts"], told["few"], told["left"]) == (ALL, {}, [])
    assert told["sentences"] == [
        f"Each of {ALL} experts got 8 calibration tokens or more; all were calibrated on what the router sends them."
    ]
    scales = [float(t) for name, t in tensors(out).items() if "experts" in name and "input_global_scale" in name]
    assert all(1 < scale < 1e6 for scale in scales), "a range that nobody saw would be anything"
    assert bool(scales) == (scheme.name == "NVFP4")


def test_uncovered_experts_are_refused_by_name_before_anything_is_calibrated(quantized):
    with pytest.raises(QuantizeError, match=rf"\d of {ALL} experts get fewer than 3 .*experts\.\d: 0") as e:
        quantized(Gptq(), INT4, rows(*FEW), uncovered="refuse", least_tokens=3)
    assert "set experts.uncovered to calibrate_all, or to leave" in str(e.value)


def test_uncovered_experts_are_left_with_their_whole_layer_and_it_is_told(quantized, moe):
    """Engines read one scheme for all experts of a layer."""
    import torch

    out, proof, told = quantized(Gptq(), INT4, rows(*FEW), uncovered="leave", least_tokens=1)
    assert proof.outcome == "pass", proof.sentences
    (layer,) = told["left"]
    assert all(name.startswith(f"{layer}.") and count == 0 for name, count in told["few"].items())
    assert f"the experts of {layer} were left as they are" in told["sentences"][0]
    before, after = tensors(moe), tensors(out)
    kept = [name for name in before if name.startswith(f"{layer}.")]
    assert len(kept) == 3 * EXPERTS
    assert all(torch.equal(before[name], after[name]) for name in kept)
    other = "model.layers.0.mlp.experts" if "layers.1" in layer else "model.layers.1.mlp.experts"
    assert all(f"{other}.{n}.up_proj.weight_packed" in after for n in range(EXPERTS))
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert {f"{layer}.{n}.{p}_proj" for n in range(EXPERTS) for p in ("up", "gate", "down")} < set(ignored)


def test_a_mixture_that_transformers_saved_is_read_by_the_plan(moe):
    """It writes the number of experts under another name than the hub's configs have."""
    saved = json.loads((moe / "config.json").read_text("utf-8"))
    assert "num_experts" not in saved
    facts = config_facts(saved)
    assert facts.linears == config_facts({**saved, "num_experts": EXPERTS}).linears
    assert facts.linears["64x64"] >= 3 * ALL


def test_if_nothing_is_said_every_expert_sees_all_tokens_and_none_is_destroyed(quantized):
    out, proof, told = quantized(Gptq(), INT4, rows(*FEW))
    assert proof.outcome == "pass"
    assert told["uncovered"] == "calibrate_all"
    assert told["reached"] < told["experts"] == ALL
    assert "every expert was calibrated on all of it" in told["sentences"][0]
    packed = [tensor for name, tensor in tensors(out).items() if "experts" in name and name.endswith("weight_packed")]
    assert all(len(tensor.unique()) > 1 for tensor in packed)


def test_a_model_without_experts_is_told_that_it_has_none(quantized):
    with pytest.raises(QuantizeError, match="no experts that a router chooses from"):
        quantized(Gptq(), INT4, rows(16), source=TINY / "checkpoint", uncovered="leave")


def test_an_expert_that_is_lost_while_it_is_calibrated_is_an_error_unless_its_layer_is_left():
    routed = SimpleNamespace(tokens=lambda: {"layers.0.experts": {"layers.0.experts.0": 5, "layers.0.experts.1": 0}})
    job = SimpleNamespace(uncovered="refuse", ignore=("lm_head",))
    with pytest.raises(QuantizeError, match=r"the router sent layers\.0\.experts\.1 no token"):
        check(job, routed)
    check(SimpleNamespace(uncovered="leave", ignore=(r"re:layers\.0\.experts\.",)), routed)


def variant(**more):
    return {"name": "int4", "scheme": "W4A16", "method": {"kind": "gptq"}, **more}


def recipe(**more):
    tokens = {"kind": "self", "samples": 4, "tokens": 32}
    return tiny_recipe(calibration=tokens, variants=[variant(**more)], registry={"kind": "mlflow", "name": "tiny"})


def test_saying_what_is_done_anyway_changes_no_key_and_anything_else_does(tmp_path):
    def key(**more):
        return make_plan(load(write_recipe(tmp_path, recipe(**more))), choose("cpu")).variants[0].quantize.key

    plain = key()
    assert key(experts={"uncovered": "calibrate_all", "least_tokens": 9}) == plain
    leave, refuse = key(experts={"uncovered": "leave"}), key(experts={"uncovered": "refuse"})
    assert len({plain, leave, refuse, key(experts={"uncovered": "leave", "least_tokens": 9})}) == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"scheme": "FP8_DYNAMIC", "method": {"kind": "rtn"}}, "looks at no tokens: leave experts out"),
        ({"method": {"kind": "gptqmodel"}}, "method gptqmodel has no experts: take a method of llm-compressor"),
    ],
)
def test_experts_where_they_mean_nothing_are_refused(tmp_path, more, said):
    path = write_recipe(tmp_path, recipe(experts={"uncovered": "leave"}, **more))
    assert any(said in problem for problem in problems_of(path))


@pytest.mark.slow
def test_a_report_says_what_became_of_the_experts(moe, tmp_path):
    told = recipe(experts={"uncovered": "leave", "least_tokens": 100_000}, group_size=32)
    told["model"] = {"kind": "directory", "path": str(moe)}
    store = tmp_path / "store"
    result = command("run", write_recipe(tmp_path, told), "--store", store, "--no-release")
    assert result.returncode in (0, 3, 4), result.stderr
    (report,) = store.glob("runs/*/report.md")
    assert f"{ALL} of {ALL} experts get fewer than 100000 calibration tokens" in report.read_text("utf-8")
