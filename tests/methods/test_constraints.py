"""What a method says before any weight is read."""

from dataclasses import replace
from importlib.metadata import version

import pytest
from pydantic import TypeAdapter, ValidationError

from quantize.artifact import ModelFacts
from quantize.methods import Awq, Gptq, MethodConfig, Rtn
from quantize.methods import _cpu_shims as shims
from quantize.scheme import PRESETS, preset

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

#: The presets that compressed-tensors names.
OURS = [name for name, scheme in PRESETS.items() if scheme.family == "compressed-tensors"]


@pytest.mark.parametrize("method", [Rtn(), Gptq(), Awq()])
def test_a_group_size_that_does_not_fit_is_named_with_the_shapes_and_with_what_would_do(method):
    (sentence,) = method.problems(preset("W4A16"), FACTS)
    assert "group size 128" in sentence
    assert "1536x576" in sentence
    assert "576x1536" not in sentence
    assert "32 or 64." in sentence


@pytest.mark.parametrize("method", [Rtn(), Gptq(), Awq()])
def test_a_group_size_that_fits_is_no_problem(method):
    assert method.problems(replace(preset("W4A16"), group_size=64), FACTS) == []


def test_where_no_group_size_fits_channel_schemes_are_offered():
    facts = FACTS.model_copy(update={"linears": {"100x100": 1}})
    (sentence,) = Rtn().problems(preset("W4A16"), facts)
    assert "W8A8" in sentence


@pytest.mark.parametrize(("name", "fits"), [("NVFP4A16", "576x1536"), ("MXFP4", "576x1536"), ("FP8_BLOCK", "128x256")])
def test_schemes_of_one_group_size_name_the_shapes_that_it_does_not_divide_and_offer_no_other(name, fits):
    facts = FACTS.model_copy(update={"linears": {"120x200": 2, fits: 1}})
    (sentence,) = Rtn().problems(preset(name), facts)
    assert "Linear 120x200 (out x in)" in sentence and fits not in sentence
    assert "group_size to" not in sentence and "W8A8 or FP8_DYNAMIC" in sentence
    assert Rtn().problems(preset(name), FACTS.model_copy(update={"linears": {fits: 1}})) == []


def test_blocks_must_divide_both_sides():
    for shape in ("128x192", "192x128"):
        assert "128 x 128" in Rtn().problems(preset("FP8_BLOCK"), FACTS.model_copy(update={"linears": {shape: 1}}))[0]


def test_an_unknown_architecture_is_no_problem():
    assert Rtn().problems(preset("W4A16"), FACTS.model_copy(update={"linears": None})) == []


@pytest.mark.parametrize("method", [Gptq(), Awq()])
def test_integer_methods_refuse_floating_point_weights_and_list_the_presets_that_do(method):
    (sentence,) = method.problems(preset("FP8_DYNAMIC"), FACTS)
    assert method.kind in sentence
    for name, scheme in PRESETS.items():
        assert (f" {name}," in sentence) == (name in OURS and scheme.weight_type == "int")


@pytest.mark.parametrize("name", PRESETS)
def test_rtn_takes_every_preset_of_its_own_library_and_refuses_the_others(name):
    problems = Rtn().problems(preset(name), FACTS.model_copy(update={"linears": {"128x128": 1}}))
    assert (problems == []) == (name in OURS)


@pytest.mark.parametrize("name", OURS)
def test_a_preset_is_the_librarys_preset_of_that_name(name):
    from compressed_tensors.quantization import preset_name_to_scheme

    ours, theirs = preset(name), preset_name_to_scheme(name, ["Linear"])
    assert (ours.weight_bits, ours.weight_type, ours.symmetric, ours.strategy, ours.group_size) == (
        theirs.weights.num_bits,
        theirs.weights.type,
        theirs.weights.symmetric,
        theirs.weights.strategy,
        theirs.weights.group_size,
    )
    assert (ours.block_size and [ours.block_size] * 2) == theirs.weights.block_structure
    own = theirs.weights.scale_dtype
    assert ours.scale_bits == (own.itemsize * 8 if own is not None else None)
    inputs = theirs.input_activations
    assert ours.activation_bits == (inputs.num_bits if inputs else None)
    assert ours.static_activations == (inputs is not None and inputs.dynamic is not True)


def test_a_method_is_chosen_by_its_kind_and_unknown_keys_are_refused():
    adapter = TypeAdapter(MethodConfig)
    assert adapter.validate_python({"kind": "gptq", "block_size": 64}) == Gptq(block_size=64)
    with pytest.raises(ValidationError, match="extra_forbidden"):
        adapter.validate_python({"kind": "rtn", "block_size": 64})


@pytest.mark.parametrize(("duo_scaling", "n_grid"), [(True, 2), ("both", 3)])
def test_a_grid_without_two_ends_is_refused(duo_scaling, n_grid):
    with pytest.raises(ValidationError, match="n_grid must be at least"):
        Awq(duo_scaling=duo_scaling, n_grid=n_grid)


def test_the_awq_shim_is_gone_afterwards_and_touches_no_other_version(monkeypatch):
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    with shims.awq_without_accelerator():
        affected = version("llmcompressor").startswith("0.14.") and not torch.accelerator.is_available()
        assert (IntermediatesCache.pin_memory is not original) == affected
    assert IntermediatesCache.pin_memory is original
    monkeypatch.setattr(shims, "version", lambda _: "0.15.0")
    with shims.awq_without_accelerator():
        assert IntermediatesCache.pin_memory is original
