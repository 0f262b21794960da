"""The scheme of somebody else's checkpoint: read back as the variant that made it has it, or called something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize import preflight, proof
from quantize.calibrators import Self
from quantize.device import Device
from quantize.errors import SourceError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Existing, Quip, Rtn, Spinquant
from quantize.readiness import readiness
from quantize.recipe import Variant, load
from quantize.scheme import PRESETS
from quantize.sources import checkpoint_facts
from quantize.sources._held import scheme_of_config

BASELINE = TINY / "checkpoint"
REGISTRY = {"kind": "mlflow", "name": "tiny", "targets": {}}
CPU = Device("cpu", "a CPU", None)
OURS = [scheme for scheme in PRESETS.values() if scheme.family == "compressed-tensors"]
ATTENTION = {"targets": ["re:.*self_attn"], "scheme": "FP8_DYNAMIC"}
FLOATS = {"targets": ["re:.*mlp"], "scheme": "NVFP4A16"}
MLP = {"targets": ["re:.*mlp"], "scheme": "W4A16", "group_size": 64}
#: What our own rtn makes of the test model, by a variant's settings.
MADE = {
    "fp8": {"scheme": "FP8"},
    "mxfp4": {"scheme": "MXFP4"},
    "w4afp8": {"scheme": "W4AFP8", "group_size": 64},
    "w4a16": {"scheme": "W4A16", "group_size": 32, "kv_cache": "fp8"},
    "groups": {"config_groups": {"attention": ATTENTION, "mlp": MLP}, "kv_cache": "fp8"},
    "one-group": {"config_groups": {"mlp": FLOATS}, "ignore": ["re:(?!.*mlp)"]},
}  # fmt: skip


def variant(method=None, **changes):
    return Variant.model_validate({"name": "made", "method": method or {"kind": "rtn"}, **changes})


def make(method, made, out, tokens=None):
    """The checkpoint that a method makes of the test model under `out`."""
    (out / "checkpoint").mkdir(parents=True)
    (out / "witness").mkdir()
    witness = partial(proof.record, tokenizer_dir=BASELINE, out=out / "witness", checkpoint=out / "checkpoint")
    given = tokens if made.resolved_scheme().calibrated else None
    method.quantize(
        QuantizeJob(
            BASELINE, out / "checkpoint", made.resolved_scheme(), made.ignore, given, "cpu", 0, witness,
            lambda *_: None, Host({}, out),
        )
    )  # fmt: skip
    return out / "checkpoint"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function: a name of MADE -> its checkpoint, made once."""
    root, made = tmp_path_factory.mktemp("made"), {}
    tokens = Self(samples=4, tokens=64).draw(BASELINE, "cpu", lambda *_: None).rows

    def give(name):
        if name not in made:
            made[name] = make(Rtn(), variant(**MADE[name]), root / name, tokens)
        return made[name]

    return give


def written(name, group_size=None, **changes):
    """What compressed-tensors writes for a preset into config.json."""
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    scheme = preset_name_to_scheme(name, ["Linear"])
    if group_size is not None:
        scheme.weights.group_size = group_size
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], **changes)
    return json.loads(json.dumps(config.model_dump()))


def read(settings):
    return scheme_of_config({"quantization_config": settings}, "here")[1]


def unnamed(scheme):
    """A scheme without what a checkpoint does not keep: names and order of its groups."""
    groups = {(group.targets, group.scheme) for group in scheme.groups}
    return groups or scheme, len(scheme.groups), scheme.kv_cache, set(scheme.name.split(" + "))


@pytest.mark.parametrize("scheme", OURS, ids=lambda scheme: scheme.name)
def test_every_preset_is_read_back_from_what_the_library_writes(scheme):
    assert read(written(scheme.name)) == variant(scheme=scheme.name).resolved_scheme() == scheme
    if not scheme.fixed_groups:
        assert read(written(scheme.name, 32)) == variant(scheme=scheme.name, group_size=32).resolved_scheme()


def test_a_whole_row_is_a_group_where_a_preset_takes_any():
    settings = written("W4A16")
    settings["config_groups"]["group_0"]["weights"] |= {"strategy": "channel", "group_size": None}
    assert read(settings) == replace(PRESETS["W4A16"], strategy="channel", group_size=None)


@pytest.mark.parametrize("name", ["NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16"])
def test_floats_of_4_bits_that_do_not_name_the_type_of_their_scales_are_known_by_their_packing(name):
    settings = written(name, format=f"{name.removesuffix('A16').lower()}-pack-quantized")
    for args in settings["config_groups"]["group_0"].values():
        if isinstance(args, dict):
            del args["scale_dtype"]
    assert read(settings) == PRESETS[name]


@pytest.mark.parametrize(
    ("preset", "weights", "inputs", "name"),
    [
        ("FP8", {"strategy": "channel"}, {}, "FP8A8_CHANNEL_STATIC"),
        ("FP8_DYNAMIC", {"strategy": "tensor"}, {}, "FP8A8_TENSOR"),
        ("FP8_DYNAMIC", {}, {"symmetric": False}, "FP8A8_CHANNEL_ASYM_INPUTS"),
        ("FP8_DYNAMIC", {}, {"strategy": "tensor"}, "FP8A8_CHANNEL_TENSOR_INPUTS"),
        ("FP8_BLOCK", {"block_structure": [64, 64]}, {}, "FP8A8_BLOCK"),
        ("W8A8", {}, {"dynamic": False, "strategy": "tensor"}, "W8A8_STATIC"),
        ("W8A8", {"strategy": "group", "group_size": 128}, {}, "W8A8_GROUP128"),
        ("W8A8", {}, {"type": "float"}, "W8AFP8"),
        ("W4A16", {"num_bits": 3}, {}, "W3A16"),
        ("W4A16", {"strategy": "tensor", "group_size": None}, {}, "W4A16_TENSOR"),
        ("NVFP4A16", {"group_size": 32}, {}, "NVFP4A16_TENSOR_GROUP32"),
        ("MXFP4A16", {"num_bits": 8}, {}, "MXFP8A16"),
        ("MXFP4A16", {"scale_dtype": "torch.bfloat16"}, {}, "FP4A16_GROUP"),
    ],
)
def test_numbers_that_no_preset_has_are_called_by_none(preset, weights, inputs, name):
    settings = written(preset)
    group = settings["config_groups"]["group_0"]
    group["weights"] |= weights
    if inputs:
        group["input_activations"] |= inputs
    found = read(settings)
    assert found.name == name and name not in PRESETS
    assert found.calibrated == (preset == "FP8" or "dynamic" in inputs)


def test_outputs_that_are_rounded_too_are_in_the_name():
    settings = written("W8A8")
    group = settings["config_groups"]["group_0"]
    group["output_activations"] = group["input_activations"]
    assert read(settings).name == "W8A8_OUTPUTS"


@pytest.mark.parametrize("name", MADE)
def test_what_our_own_method_made_is_read_back_as_the_variant_that_made_it(checkpoints, name):
    made = variant(**MADE[name]).resolved_scheme()
    found = Existing(path=str(checkpoints(name)))
    assert unnamed(found.scheme()) == unnamed(made)
    assert found.format == "compressed-tensors"
    assert found.problems(found.scheme(), checkpoint_facts(BASELINE)) == []


@pytest.mark.parametrize(
    ("method", "format_"),
    [(Spinquant(), "compressed-tensors"), (Quip(), "compressed-tensors+rotations")],
    ids=["in the weights", "by the engine"],
)
def test_rotations_that_an_engine_must_do_are_part_of_the_container(tmp_path, method, format_):
    found = Existing(path=str(make(method, variant(scheme="W8A8"), tmp_path)))
    assert (found.format, found.scheme()) == (format_, PRESETS["W8A8"])
    assert found.format == method.format


def recipe(folder, **changes):
    found = {"name": "up", **changes}
    return load(write_recipe(folder, tiny_recipe(variants=[found], registry=REGISTRY))).recipe


def brought(place):
    return {"kind": "existing", "path": str(place)}


@pytest.mark.parametrize("named", [None, "MXFP4"])
def test_its_name_may_be_said_and_the_rules_are_those_of_its_scheme(checkpoints, tmp_path, named):
    found = recipe(tmp_path, method=brought(checkpoints("mxfp4")), engine={"kind": "vllm"}, scheme=named)
    (problem,), _ = readiness(found, CPU, found.variants, environments=False)
    assert "vllm does not serve compressed-tensors MXFP4 here: vLLM has no kernels for 4-bit floats on CPUs" in problem


def test_groups_are_counted_and_what_it_left_alone_is_no_problem(checkpoints, tmp_path):
    facts = checkpoint_facts(BASELINE)
    for name, said in {
        "groups": "16 group_0 (FP8_DYNAMIC), 12 group_1 (W4A16), 0 ignored",
        "one-group": "12 group_0 (NVFP4A16), 16 ignored",
    }.items():
        found = recipe(tmp_path, method=brought(checkpoints(name)))
        told = preflight.check(found, facts, CPU, tmp_path, found.variants)
        assert not told.problems
        assert any(said in note for note in told.notes), told.notes


def test_a_list_of_what_it_left_alone_may_be_missing(checkpoints, tmp_path):
    place = shutil.copytree(checkpoints("one-group"), tmp_path / "theirs")
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]["ignore"]
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = recipe(tmp_path, method=brought(place))
    told = preflight.check(found, checkpoint_facts(BASELINE), CPU, tmp_path, found.variants)
    assert not told.problems


def test_an_engine_that_is_told_not_to_round_its_keys_and_values_is_refused(checkpoints, tmp_path):
    engine = {"kind": "vllm", "kv_cache_dtype": "bfloat16"}
    found = recipe(tmp_path, method=brought(checkpoints("w4a16")), engine=engine)
    problems, _ = readiness(found, CPU, found.variants, environments=False)
    assert any("its kv_cache is fp8 and its engine keeps keys and values in bfloat16" in text for text in problems)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kv_cache_scheme": {"num_bits": 8, "type": "int"}}, "keys and values in 8 bits of type 'int'"),
        ({"config_groups": {}}, "none of its groups has weights"),
        ({"ignore": ["re:*"]}, "'re:\\*' is no pattern: nothing to repeat"),
    ],
)
def test_what_cannot_be_said_of_a_checkpoint_is_refused(changes, says):
    with pytest.raises(SourceError, match=says):
        read({**written("W8A8"), **changes})


@pytest.mark.parametrize("scheme", ["FP8", "NVFP4"])
def test_nothing_is_calibrated_so_a_scheme_with_stored_ranges_needs_no_calibration(checkpoints, tmp_path, scheme):
    found = recipe(tmp_path, method=brought(checkpoints("fp8")), scheme=scheme)
    assert found.calibration is None and not found.variants[0].calibrated


@pytest.mark.slow
def test_a_champion_with_groups_and_rounded_keys_and_values_is_rechecked(tmp_path):
    """A recheck brings it as an existing checkpoint: it holds on other items too."""
    items = (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_text("".join(items), encoding="utf-8")
    made = tiny_recipe(
        variants=[{"name": "int8", "method": {"kind": "rtn"}, **MADE["groups"]}],
        calibration={"kind": "self", "samples": 4, "tokens": 64},
        evals=[{"kind": "items", "name": "facts", "path": str(tmp_path / "items.jsonl")}],
        gates=[{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.25}],
    )
    store = tmp_path / "store"
    first = command("run", write_recipe(tmp_path, made), "--store", store, seconds=900)
    assert first.returncode == 0, first.stderr
    (tmp_path / "items.jsonl").write_text("".join(items[3:]), encoding="utf-8")
    again = command("recheck", "tiny", "--store", store, "--json", seconds=900)
    assert again.returncode == 0, again.stderr
    (found,) = json.loads(again.stdout)["rechecked"]
    assert found["outcome"] == "holds", found
