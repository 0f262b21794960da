"""Checkpoints that somebody else quantized: what is read of them, what is refused, and that they are judged as ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hub_server import serving
from program import TINY, command, tiny_recipe, write_recipe

from quantize import proof
from quantize.device import Device
from quantize.errors import QuantizeError, SourceError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Existing, Rtn
from quantize.planner import make_plan
from quantize.readiness import readiness
from quantize.recipe import load
from quantize.record import file_sha256
from quantize.registry import MANIFEST_FILE
from quantize.scheme import preset
from quantize.sources import checkpoint_facts
from quantize.store import Store

BASELINE = TINY / "checkpoint"
SCHEMES = {"w8a8": preset("W8A8"), "w4a16": replace(preset("W4A16"), group_size=64)}


def silent(*_):
    return None


def job(out, scheme, **changes):
    """What a method is given to write `out`/checkpoint, with a witness beside it."""
    (out / "checkpoint").mkdir(parents=True)
    (out / "witness").mkdir()
    made = QuantizeJob(
        checkpoint=BASELINE,
        out=out / "checkpoint",
        scheme=scheme,
        ignore=("lm_head",),
        tokens=None,
        device="cpu",
        seed=0,
        witness=partial(proof.record, tokenizer_dir=BASELINE, out=out / "witness", checkpoint=out / "checkpoint"),
        progress=silent,
        host=Host({}, out),
        refer=partial(proof.refer, baseline=BASELINE, out=out / "witness", device="cpu"),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Checkpoints as somebody's script would have saved them."""
    root = tmp_path_factory.mktemp("uploads")
    for name, scheme in SCHEMES.items():
        Rtn().quantize(job(root / name, scheme))
    return root


@pytest.fixture
def upload(uploads, tmp_path):
    """A copy of one, to damage."""
    return Path(shutil.copytree(uploads / "w4a16" / "checkpoint", tmp_path / "upload"))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def existing(place):
    return Existing(path=str(place))


def bring(place, out, scheme=SCHEMES["w4a16"]):
    existing(place).quantize(job(out, scheme))
    return out


def prove(out):
    from quantize.engines import Transformers

    session = Transformers().open(out / "checkpoint", "cpu")
    try:
        return proof.prove(out / "checkpoint", out / "witness", BASELINE, session)
    finally:
        session.close()


@pytest.mark.parametrize("name", SCHEMES)
def test_container_and_numbers_are_the_checkpoints_own(uploads, name):
    found = existing(uploads / name / "checkpoint")
    assert found.format == "compressed-tensors"
    assert found.scheme() == SCHEMES[name]
    assert found.problems(found.scheme(), checkpoint_facts(BASELINE)) == []


def test_a_scheme_that_is_another_is_a_problem(uploads):
    found = existing(uploads / "w4a16" / "checkpoint")
    (problem,) = found.problems(preset("W8A8"), checkpoint_facts(BASELINE))
    assert "names the scheme W8A8 and the checkpoint holds W4A16" in problem


@pytest.mark.parametrize(
    ("settings", "format_", "name", "group"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "gptq", "W4A16", 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True}, "gptq", "W8A16", None),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True}, "awq", "W4A16_ASYM", 64),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bitsandbytes",
            "NF4",
            64,
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "INT8", None),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128, "sym": True}, "gptq", "W3A16", 128),
    ],
)
def test_what_other_programs_write_is_read(upload, settings, format_, name, group):
    change(upload / "config.json", quantization_config=settings)
    scheme = existing(upload).scheme()
    assert (existing(upload).format, scheme.name, scheme.group_size) == (format_, name, group)


@pytest.mark.parametrize(
    ("settings", "says"),
    [(None, "is not quantized"), ({"quant_method": "hqq"}, "quantized by hqq, which no engine here")],
)
def test_what_is_not_quantized_or_in_no_known_way_is_refused(upload, settings, says):
    change(upload / "config.json", quantization_config=settings)
    with pytest.raises(SourceError, match=says):
        existing(upload).scheme()


def test_the_witness_is_a_reference_and_the_proof_says_so(uploads, tmp_path):
    out = bring(uploads / "w4a16" / "checkpoint", tmp_path / "made")
    result = prove(out)
    assert result.outcome == "pass", result.sentences
    assert "a reading of its files by a reference" in result.sentences[0]
    assert result.numbers["fingerprints"] == 28
    assert result.numbers["witness"] == "reference"


def test_bytes_that_change_after_the_witness_fail_the_proof(uploads, tmp_path):
    from safetensors.torch import load_file, save_file

    out = bring(uploads / "w4a16" / "checkpoint", tmp_path / "made")
    path = out / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name] = tensors[name] * 1.05
    path.unlink()  # it is another name of the upload's own file
    save_file(tensors, path, metadata={"format": "pt"})
    result = prove(out)
    assert result.outcome == "fail"
    assert name.removesuffix(".weight_scale") in " ".join(result.sentences)


def test_files_are_linked_and_nothing_else_is_taken(upload, tmp_path):
    (upload / "training_args.bin").write_bytes(b"pickle")
    (upload / "modeling_x.py").write_text("print()", encoding="utf-8")
    out = bring(upload, tmp_path / "made") / "checkpoint"
    assert (out / "model.safetensors").stat().st_ino == (upload / "model.safetensors").stat().st_ino
    assert not {"training_args.bin", "modeling_x.py"} & {path.name for path in out.iterdir()}


def test_pickle_weights_are_refused(upload, tmp_path):
    (upload / "model.safetensors").rename(upload / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"only pickle weights \(pytorch_model\.bin\)"):
        bring(upload, tmp_path / "made")


def test_a_file_that_is_cut_short_is_refused(upload, tmp_path):
    data = (upload / "model.safetensors").read_bytes()
    (upload / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(SourceError, match="truncated"):
        bring(upload, tmp_path / "made")


def test_scales_that_are_not_finite_are_refused(upload, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(upload / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if name.endswith("weight_scale"))[0] = float("nan")
    save_file(tensors, upload / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match="4 values that are NaN"):
        bring(upload, tmp_path / "made")


def test_a_linear_that_is_missing_is_refused(upload, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(upload / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.up_proj." not in name}
    save_file(kept, upload / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizeError, match=r"layers\.1\.mlp\.up_proj"):
        bring(upload, tmp_path / "made")


def test_another_tokenizer_fails_the_proof(upload, tmp_path):
    tokenizer = json.loads((upload / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[60:62]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (upload / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    result = prove(bring(upload, tmp_path / "made"))
    assert result.outcome == "fail"
    assert "the tokenizer gives other ids than the baseline's" in " ".join(result.sentences)


@pytest.mark.parametrize(
    ("values", "says"),
    [({"model_type": "qwen2"}, "a qwen2 and the baseline is a llama"), ({"num_hidden_layers": 7}, "layers are 7 and")],
)
def test_another_model_is_refused_before_anything_is_read(upload, values, says):
    change(upload / "config.json", **values)
    (problem,) = existing(upload).problems(existing(upload).scheme(), checkpoint_facts(BASELINE))
    assert says in problem


def test_without_a_reference_the_proof_says_that_nothing_was_compared(uploads, tmp_path):
    out = bring(uploads / "w4a16" / "checkpoint", tmp_path / "made")
    (out / "witness" / "witness.safetensors").unlink()
    (out / "witness" / "nothing.json").write_text('{"why": "nobody reads it"}', encoding="utf-8")
    result = prove(out)
    assert result.outcome == "pass", result.sentences
    assert "compared with nothing, because there is no witness: nobody reads it" in result.sentences[0]
    assert result.numbers["witness"] == "none"


def test_what_was_pulled_is_taken_as_its_list_says(upload, tmp_path):
    files = [path for path in upload.iterdir() if path.is_file()]
    rows = [{"path": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)} for path in files]
    (upload / MANIFEST_FILE).write_text(json.dumps({"version": 1, "files": rows}), encoding="utf-8")
    out = bring(upload, tmp_path / "made") / "checkpoint"
    assert {path.name for path in out.iterdir()} == {path.name for path in files}
    config = upload / "generation_config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(SourceError, match=r"generation_config\.json is not the file that its list names"):
        bring(upload, tmp_path / "again")


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "weights.bin"])
def test_a_list_that_leads_out_or_names_pickle_is_refused(upload, tmp_path, name):
    rows = [{"path": name, "size": 1, "sha256": "0" * 64}]
    (upload / MANIFEST_FILE).write_text(json.dumps({"version": 1, "files": rows}), encoding="utf-8")
    with pytest.raises(SourceError, match=r"its list (of files )?names"):
        existing(upload).identity()


def recipe(folder, *variants, **changes):
    return load(write_recipe(folder, tiny_recipe(variants=list(variants), registry=REGISTRY, **changes)))


REGISTRY = {"kind": "mlflow", "name": "tiny", "targets": {}}
CPU = Device("cpu", "a CPU", None)


def test_the_key_is_of_the_bytes_and_not_of_the_place(upload, tmp_path):
    other = Path(shutil.copytree(upload, tmp_path / "elsewhere"))
    keys = []
    for place in (upload, other):
        loaded = recipe(tmp_path, {"name": "up", "method": {"kind": "existing", "path": str(place)}})
        keys.append(make_plan(loaded, CPU).variants[0].quantize.key)
    assert keys[0] == keys[1]
    change(other / "generation_config.json", top_k=3)
    assert make_plan(loaded, CPU).variants[0].quantize.key != keys[0]


def test_an_engine_that_cannot_serve_it_is_refused_by_plan(upload, tmp_path):
    variant = {"name": "up", "method": {"kind": "existing", "path": str(upload)}, "engine": {"kind": "llamacpp"}}
    loaded = recipe(tmp_path, variant)
    problems, _ = readiness(loaded.recipe, CPU, loaded.recipe.variants, environments=False)
    assert "variants.up: llamacpp does not serve compressed-tensors W4A16 here" in problems[0]


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ({"method": {"kind": "existing"}}, "either at a path or in a repo"),
        ({"method": {"kind": "existing", "path": "x", "repo": "a/b"}}, "either at a path or in a repo"),
        ({"method": {"kind": "existing", "path": "x"}, "group_size": 64}, "group_size has no meaning for an existing"),
        ({"method": {"kind": "rtn"}}, "variants.0: a variant has either a `scheme` or `config_groups`"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(tmp_path, variant, says):
    with pytest.raises(QuantizeError) as caught:
        recipe(tmp_path, {"name": "up", **variant})
    assert says in str(caught.value)


@pytest.mark.slow
def test_an_upload_is_judged_like_the_variant_that_made_it(uploads, tmp_path):
    """The same bytes, once made here and once brought: the same rows, the same verdict."""
    place = uploads / "w8a8" / "checkpoint"
    variants = [
        {"name": "own", "scheme": "W8A8", "method": {"kind": "rtn"}},
        {"name": "up", "method": {"kind": "existing", "path": str(place)}},
        {"name": "hub", "method": {"kind": "existing", "repo": "org/upload"}},
    ]
    path = write_recipe(tmp_path, tiny_recipe(variants=variants, registry=REGISTRY))
    with serving("org/upload", place, {"main": "a" * 40}) as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = command("run", path, "--store", tmp_path / "store", "--json", "--no-release", seconds=900, **variables)
    assert done.returncode == 0, done.stderr
    outcomes = {v["name"]: v["verdict"]["outcome"] for v in json.loads(done.stdout)["variants"]}
    assert outcomes == dict.fromkeys(("own", "up", "hub"), "pass")
    rows = rows_of(tmp_path / "store")
    assert rows["up facts"] == rows["hub facts"] == rows["own facts"]


@pytest.mark.slow
@pytest.mark.engine
def test_a_gguf_file_is_judged_like_the_variant_that_made_it(environment, tmp_path):
    environment("llamacpp")
    own = {"name": "own", "scheme": "Q8_0", "method": {"kind": "gguf"}}
    store = tmp_path / "store"
    first = command(
        "run",
        write_recipe(tmp_path, tiny_recipe(variants=[own], registry=REGISTRY)),
        "--store",
        store,
        "--no-release",
        seconds=1800,
    )
    assert first.returncode == 0, first.stderr
    (made,) = (found for found, manifest in Store(store).manifests("quantize"))
    shutil.copy(made / "checkpoint" / "model.gguf", tmp_path / "theirs.gguf")
    theirs = {"name": "up", "method": {"kind": "existing", "path": str(tmp_path / "theirs.gguf")}}
    assert existing(tmp_path / "theirs.gguf").scheme() == preset("Q8_0")
    path = write_recipe(tmp_path, tiny_recipe(variants=[theirs], registry=REGISTRY))
    second = command("run", path, "--store", store, "--no-release", "--json", seconds=1800)
    assert second.returncode == 0, second.stderr
    assert "by a reference" in second.stdout
    rows = rows_of(store)
    assert rows["up facts"] == rows["own facts"]


def rows_of(store):
    """The digest of every arm's rows, by the name of its evaluation."""
    found = Store(store).manifests("evaluate")
    return {manifest.name: file_sha256(place / "rows.parquet") for place, manifest in found}
