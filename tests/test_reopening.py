"""A rollback opens the version that it goes back to before an alias moves; one that does not load is not served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from program import command, tiny_recipe, write_recipe
from release_world import Result

from quantize.device import Device
from quantize.errors import RegistryError
from quantize.executors import Local
from quantize.history import history
from quantize.job import named_registry
from quantize.operate import promote, rollback
from quantize.proved import Proved
from quantize.record import file_sha256
from quantize.reopening import engine_of_version, reopen, run_folder
from quantize.store import Store
from quantize.transaction import Stale

pytest_plugins = ["release_fixtures"]

CPU = Device("cpu", "a CPU", None)
FIRST, SECOND = Result("fp8", b"first" * 100), Result("fp8", b"second" * 90)


def proved(version):
    return Proved(engine="transformers", artifact=version.artifact_digest, when="2026-01-01T00:00:00+00:00")


def test_what_was_opened_is_written_into_the_journal(world):
    world.release(FIRST)
    world.release(SECOND)
    move = rollback(world.registry, "fp8", None, "it is worse", "eva", prove=proved)
    told = history(world.registry)[-1].proved
    assert move.proved is not None
    assert (told["outcome"], told["engine"], told["digest"]) == ("proved", "transformers", move.proved.artifact)


def test_without_a_proof_the_journal_says_so(world):
    world.release(FIRST)
    world.release(SECOND)
    rollback(world.registry, "fp8", None, "it is worse", "eva")
    assert history(world.registry)[-1].proved == {"outcome": "unproven"}


def test_no_lock_is_held_while_a_version_is_opened(world):
    """Others may move aliases meanwhile; what was opened is then not what would serve, and nothing moves."""
    world.release(FIRST)
    world.release(SECOND)

    def meanwhile(version):
        promote(world.registry, "fp8", "2", "they were faster", "max", force=False)
        return proved(version)

    with pytest.raises(Stale, match="would go to version 3 by now, which is not the one that was opened"):
        rollback(world.registry, "fp8", None, "it is worse", "eva", prove=meanwhile)
    assert world.registry.aliases()["fp8"] == "2"


def test_a_version_that_does_not_load_is_refused_with_the_reason_and_moved_to_when_told(world):
    """The weights of this world are no safetensors file."""
    world.release(FIRST)
    world.release(SECOND)
    place = ("--store", world.folder / "store", "--registry", world.uri)
    words = ("rollback", "tiny", "--alias", "fp8", "--reason", "it is worse")
    refused = command(*words, *place)
    assert refused.returncode == 1
    assert "tiny version 2: it is not served again: model.safetensors is damaged or cut short" in refused.stderr
    assert "--unproven" in refused.stderr
    assert world.registry.aliases()["fp8"] == "3"
    moved = command(*words, "--unproven", *place)
    assert moved.returncode == 0, moved.stderr
    assert world.registry.aliases()["fp8"] == "2"


def test_an_environment_that_is_missing_is_named_with_what_makes_it(world, monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTIZE_ENVS", str(tmp_path / "none"))
    world.release(FIRST)
    version = world.registry.versions()[1]
    world.registry.tag("2", {"engine": '{"kind": "llamacpp"}'})
    version = world.registry.versions()[1]
    with pytest.raises(
        RegistryError, match=r"environment llamacpp is not made.*quantize env create llamacpp.*--unproven"
    ):
        reopen(world.registry, version, world.store, CPU, lambda _sentence: None)


def test_the_engine_is_the_versions_own_then_its_runs_then_its_formats(world, tmp_path):
    world.release(FIRST)
    version = world.registry.versions()[1]
    assert json.loads(version.tags["engine"])["kind"] == "transformers"
    world.registry.tag("2", {"engine": '{"kind": "vllm"}'})
    store = Store(tmp_path / "other")
    assert engine_of_version(world.registry.versions()[1], store, tmp_path).kind == "vllm"
    world.registry.tag("2", {"engine": ""})
    older = world.registry.versions()[1]
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert engine_of_version(older, store, tmp_path).kind == "llamacpp"
    (tmp_path / "model.gguf").unlink()
    config = {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert engine_of_version(older, store, tmp_path).environment("cpu") == "gptqmodel"


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..", ".", ""])
def test_a_tag_leads_to_no_folder_but_a_run_of_the_store(world, tmp_path, name):
    """Who may write tags must not choose which interpreters and commands run here."""
    world.release(FIRST)
    world.registry.tag("2", {"run": name})
    store = Store(tmp_path / "store")
    assert run_folder(store, world.registry.versions()[1]) == tmp_path / "store" / "runs" / "-"


def test_a_version_that_was_rolled_back_is_not_promoted_by_hand_without_force(world):
    world.release(FIRST)
    world.release(SECOND)
    rollback(world.registry, "fp8", None, "it is worse", "eva")
    with pytest.raises(RegistryError, match=r"version 3 is rolled back.*--force"):
        promote(world.registry, "fp8", "3", "again", "eva", force=False)
    assert promote(world.registry, "fp8", "3", "again", "eva", force=True).after == "3"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """The folder of a released run of the tiny Llama: version 2 is its INT8 variant."""
    folder = tmp_path_factory.mktemp("released")
    done = command("run", write_recipe(folder, tiny_recipe()), "--store", folder / "store", seconds=900)
    assert done.returncode == 0, done.stderr
    return folder


def registry_of(folder):
    return named_registry("tiny", None, folder / "store")


@pytest.mark.slow
def test_a_release_keeps_what_opens_a_version_again(released):
    version = registry_of(released).versions()[1]
    told = json.loads(version.tags["proved"])
    assert (told["engine"], told["digest"]) == ("transformers", version.artifact_digest)
    assert told["when"]
    (logged,) = (released / "store" / "mlartifacts").rglob("witness.safetensors")
    assert json.loads(version.tags["witness"])["sha256"] == file_sha256(logged)


@pytest.mark.slow
def test_a_version_is_fetched_and_compared_with_its_witness_where_the_store_does_not_hold_it(released, tmp_path):
    said = []
    version = registry_of(released).versions()[1]
    found = reopen(registry_of(released), version, Store(tmp_path / "empty"), CPU, said.append)
    assert "the checkpoint answers as the model in memory did" in found.sentence
    assert found.artifact == version.artifact_digest
    assert said[0] == "fetching version 2: this store does not hold it"
    assert list((tmp_path / "empty" / "drafts").iterdir()) == []


@pytest.mark.slow
def test_the_stores_own_bytes_are_taken_if_they_verify_and_fetched_if_not(released, tmp_path, monkeypatch):
    store = Store(Path(shutil.copytree(released / "store", tmp_path / "store", symlinks=True)))
    version = registry_of(released).versions()[1]
    said = []
    reopen(registry_of(released), version, store, CPU, said.append)
    assert said == ["opening tiny version 2 in transformers"]
    (weights,) = (store.root / "quantize").glob("*/checkpoint/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    # Not opened once more: what is asked is where the bytes are from.
    monkeypatch.setattr(Local, "run", lambda *_: pytest.fail("enough"))
    with pytest.raises(pytest.fail.Exception, match="enough"):
        reopen(registry_of(released), version, store, CPU, said.append)
    assert said[1] == "fetching version 2: this store does not hold it"


@pytest.mark.slow
def test_the_models_own_bytes_are_opened_when_a_target_goes_back_to_the_baseline(released):
    done = command("rollback", "tiny", "--reason", "complaints", "--store", released / "store")
    assert done.returncode == 0, done.stderr
    assert "production: version 2 → 1" in done.stdout
    assert "version 1 loads in transformers" in done.stderr
    assert "there is no witness" in done.stderr
    told = command("history", "tiny", "--store", released / "store").stdout
    assert "proved transformers" in told
