"""What an operator does by hand: roll back, promote, pull, look; and the same from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from program import command
from release_world import Result, World

from quantize.artifact import FileEntry, files_digest
from quantize.cli import cli
from quantize.errors import QuantizeError, RegistryError
from quantize.history import history, status
from quantize.operate import promote, rollback
from quantize.pull import pull
from quantize.record import file_sha256
from quantize.registry import MANIFEST_FILE
from quantize.turn import holding

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)


def state(world: World, number: str) -> str:
    return next(v.state for v in world.registry.versions() if v.version == number)


def stored(world: World, name: str) -> Path:
    """The file of the newest version, where the registry keeps it."""
    return max((world.folder / "mlartifacts").rglob(name), key=lambda path: path.stat().st_mtime_ns)


def test_a_rollback_serves_the_previous_version_and_keeps_the_reason(world):
    world.release(FIRST)
    world.release(SECOND)
    move = rollback(world.registry, "fp8", None, "customers complain", "eva")
    assert (move.alias, move.before, move.after) == ("fp8", "3", "2")
    assert move.still == ("production",)
    aliases = world.registry.aliases()
    assert (aliases["fp8"], aliases["fp8-previous"], aliases["production"]) == ("2", "3", "3")
    left = world.registry.versions()[2]
    assert left.state == "rolled_back"
    assert left.tags["reason"] == "customers complain"
    row = status(world.registry)[2]
    assert (row.actor, row.sentence) == ("eva", "Rolled back: fp8 went from version 3 to 2. customers complain")
    assert state(world, "2") == "promoted"


def test_a_second_rollback_does_not_serve_again_what_was_rolled_back(world):
    world.release(FIRST)
    world.release(SECOND)
    rollback(world.registry, "fp8", None, "customers complain", "eva")
    with pytest.raises(RegistryError, match=r"was version 3 before, and that one is rolled back.*--to 3"):
        rollback(world.registry, "fp8", None, "pressed twice", "eva")
    assert world.registry.aliases()["fp8"] == "2"
    assert rollback(world.registry, "fp8", "3", "it was not the model", "eva").after == "3"


def test_the_only_target_is_rolled_back_to_the_baseline_when_nothing_served_before(world):
    world.release(FIRST)
    assert rollback(world.registry, None, None, "customers complain", "eva").after == "1"
    assert world.registry.aliases()["production"] == "1"
    assert state(world, "1") == "baseline"


def test_there_is_nothing_to_go_back_to(world):
    world.release(Result("fp8", FIRST.weights, "fail"))
    with pytest.raises(RegistryError, match=r"nothing else to go back to.*--to"):
        rollback(world.registry, "production", None, "no reason", "eva")


def test_a_rollback_says_which_aliases_and_versions_there_are(world):
    with pytest.raises(RegistryError, match="no such registered model"):
        rollback(world.registry, None, None, "no reason", "eva")
    world.targets = {"production": {"from": ["fp8"]}, "edge": {"from": ["fp8"]}}
    world.release(FIRST)
    with pytest.raises(RegistryError, match=r"no alias 'staging' \(there are edge, fp8, production\)"):
        rollback(world.registry, "staging", None, "no reason", "eva")
    with pytest.raises(RegistryError, match="not one target but: edge, production"):
        rollback(world.registry, None, None, "no reason", "eva")
    with pytest.raises(RegistryError, match="no version 9"):
        rollback(world.registry, "edge", "9", "no reason", "eva")


def test_a_variants_alias_serves_only_its_own_versions_and_the_baseline(world):
    world.release(FIRST, Result("int4", b"small"))
    with pytest.raises(RegistryError, match=r"version 3 is one of int4, and fp8 serves only its own"):
        rollback(world.registry, "fp8", "3", "typed wrong", "eva")
    assert rollback(world.registry, "fp8", "1", "customers complain", "eva").after == "1"
    decision = world.release(SECOND, Result("int4", b"small")).variants[0].decision
    assert decision is not None
    assert (decision.model_version, decision.previous_version) == ("4", "1")
    assert (decision.action, decision.against) == ("promote", []), "the baseline is what it was judged against already"


@pytest.mark.parametrize("alias", ["fp8-candidate", "fp8-previous", "production-previous"])
def test_the_aliases_that_move_with_others_are_not_rolled_back_alone(world, alias):
    world.release(FIRST)
    before = world.registry.aliases()
    with pytest.raises(RegistryError, match=rf"no alias '{alias}' \(there are fp8, production\)"):
        rollback(world.registry, alias, "1", "no reason", "eva")
    assert world.registry.aliases() == before


def test_only_what_passed_is_promoted_by_hand_unless_forced(world):
    world.release(FIRST)
    world.release(Result("fp8", SECOND.weights, "fail"))
    with pytest.raises(RegistryError, match=r"version 3 is rejected.*--force"):
        promote(world.registry, "fp8", "3", "they want it", "eva", force=False)
    assert world.registry.aliases()["fp8"] == "2"
    move = promote(world.registry, "fp8", "3", "they want it", "eva", force=True)
    assert (move.before, move.after) == ("2", "3")
    assert [row.state for row in status(world.registry)] == ["baseline", "superseded", "promoted"]
    assert world.registry.aliases()["fp8-previous"] == "2"
    assert (status(world.registry)[2].actor, status(world.registry)[2].sentence) == (
        "eva",
        "Promoted by hand: fp8 points at version 3. Forced, although it was rejected. they want it",
    )
    last = history(world.registry)[-1]
    told = "Forced, although it was rejected. they want it"
    assert (last.what, last.actor, last.reason, last.against) == ("promoted", "eva", told, "2")


def test_by_default_the_newest_version_that_passed_is_promoted(world):
    world.release(FIRST)
    world.release(SECOND)
    world.release(Result("fp8", b"third", "fail"))
    rollback(world.registry, "fp8", None, "customers complain", "eva")
    assert promote(world.registry, "fp8", None, "back", "eva", force=False).after == "2"
    assert promote(world.registry, "fp8", "3", "it was not the model", "eva", force=True).after == "3"


def test_a_target_is_set_by_hand_to_a_version(world):
    world.release(FIRST, Result("int4", b"small"))
    assert world.registry.aliases()["production"] == "3"
    move = promote(world.registry, "production", "2", "they want it", "eva", force=False)
    assert (move.before, move.after) == ("3", "2")
    assert world.registry.aliases()["production-previous"] == "3"
    assert rollback(world.registry, "production", None, "no", "eva").after == "3"


def test_an_unknown_variant_and_a_version_of_another_are_named(world):
    world.release(FIRST, Result("int4", b"small"))
    with pytest.raises(RegistryError, match=r"no variant 'int8' \(there are fp8, int4"):
        promote(world.registry, "int8", None, "no reason", "eva", force=False)
    with pytest.raises(RegistryError, match=r"version 3 is not one of fp8 \(those are 2\)"):
        promote(world.registry, "fp8", "3", "no reason", "eva", force=True)


def test_history_tells_what_when_by_whom_on_which_evidence_against_which_champion(world):
    world.release(FIRST)
    record = world.release(SECOND)
    rollback(world.registry, None, None, "customers complain", "eva")
    rows = history(world.registry)
    assert [(row.what, row.version, row.actor) for row in rows if row.what != "registered"] == [
        ("promoted", "2", "nightly"),
        ("served", "2", "nightly"),
        ("promoted", "3", "nightly"),
        ("served", "3", "nightly"),
        ("rolled back", "3", "eva"),
    ]
    promoted = [row for row in rows if row.what == "promoted"][1]
    assert promoted.verdict == record.variants[0].verdict.digest()
    assert promoted.against == "2"
    assert rows[-1].reason == "customers complain"
    assert [row.state for row in status(world.registry)] == ["baseline", "superseded", "rolled_back"]


def test_pull_brings_exactly_the_judged_files_and_their_list(world, tmp_path):
    world.release(FIRST)
    version = pull(world.registry, "production", tmp_path / "deep" / "model")
    out = tmp_path / "deep" / "model"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    found = {name for name in files if not name.startswith("serving/")}
    assert found == {"config.json", "model.safetensors", "extra/tokenizer.json", MANIFEST_FILE}
    assert {"serving/README.md", "serving/vllm.sh"} <= files
    assert (out / "model.safetensors").read_bytes() == FIRST.weights
    entries = [
        FileEntry(path=name, size=(out / name).stat().st_size, sha256=file_sha256(out / name))
        for name in found - {MANIFEST_FILE}
    ]
    assert files_digest(entries) == version.artifact_digest
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    (tmp_path / "empty").mkdir()
    pull(world.registry, "1", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() == world.baseline


def test_serving_files_that_were_changed_in_the_registry_are_refused(world, tmp_path):
    world.release(FIRST)
    script = stored(world, "vllm.sh")
    script.write_text(script.read_text(encoding="utf-8") + "curl somewhere\n", encoding="utf-8")
    with pytest.raises(RegistryError, match="serving files are not those"):
        pull(world.registry, "fp8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_serves_a_promoted_version_lies_in_the_runs_folder_and_can_be_run(world, tmp_path):
    world.release(FIRST)
    (script,) = (world.folder / "store" / "runs").glob("*/serving/fp8/vllm.sh")
    assert script.stat().st_mode & 0o111
    pull(world.registry, "fp8", tmp_path / "out")
    assert (tmp_path / "out" / "serving" / "vllm.sh").read_bytes() == script.read_bytes()
    assert (tmp_path / "out" / "serving" / "vllm.sh").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", MANIFEST_FILE])
def test_a_byte_that_flipped_in_the_registrys_files_is_refused(world, tmp_path, name):
    world.release(FIRST)
    file = stored(world, name)
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(RegistryError, match=name):
        pull(world.registry, "fp8", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*")) == []


def test_files_and_list_exchanged_together_are_refused(world, tmp_path):
    world.release(FIRST)
    weights, listing = stored(world, "model.safetensors"), stored(world, MANIFEST_FILE)
    weights.write_bytes(b"evil")
    rows = json.loads(listing.read_text(encoding="utf-8"))
    for row in rows["files"]:
        if row["path"] == "model.safetensors":
            row |= {"size": 4, "sha256": file_sha256(weights)}
    listing.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(RegistryError, match="not the one that was judged"):
        pull(world.registry, "fp8", tmp_path / "out")


def test_a_file_that_was_added_or_removed_is_refused(world, tmp_path):
    world.release(FIRST)
    extra = stored(world, "model.safetensors").with_name("modeling_evil.py")
    extra.write_text("print()", encoding="utf-8")
    with pytest.raises(RegistryError, match=r"modeling_evil\.py was added"):
        pull(world.registry, "fp8", tmp_path / "out")
    extra.unlink()
    stored(world, "tokenizer.json").unlink()
    with pytest.raises(RegistryError, match=r"extra/tokenizer\.json"):
        pull(world.registry, "fp8", tmp_path / "out")


def test_pull_leaves_a_place_that_holds_something_alone(world, tmp_path):
    world.release(FIRST)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(QuantizeError, match="not empty"):
        pull(world.registry, "fp8", tmp_path / "out")
    with pytest.raises(RegistryError, match=r"no alias or version 'prod' \(aliases: fp8, .*production"):
        pull(world.registry, "prod", tmp_path / "new")


def test_the_command_line_shows_moves_and_pulls(world, tmp_path):
    world.release(FIRST)
    world.release(SECOND)

    def said(*arguments: str | Path) -> str:
        place = ("--store", world.folder / "store", "--registry", world.uri)
        result = CliRunner().invoke(cli, [str(part) for part in (*arguments, *place)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "fp8, fp8-candidate, production" in said("status", "tiny")
    moved = said("rollback", "tiny", "--unproven", "--reason", "customers complain")
    assert "production: version 3 → 2" in moved
    assert "fp8 still at version 3" in moved
    document = json.loads(said("status", "tiny", "--json"))
    assert document["aliases"]["production"] == "2"
    assert document["versions"][2]["state"] == "rolled_back"
    told = said("history", "tiny")
    assert "customers complain" in told
    assert "production → 2" in told
    assert json.loads(said("history", "tiny", "--json"))[-1]["actor"]
    assert "fp8: version 3 → 2" in said("promote", "tiny", "fp8", "--version", "2", "--reason", "so be it")
    assert "version 2 (fp8)" in said("pull", "tiny@production", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == FIRST.weights


def test_an_operator_waits_while_a_run_releases_to_the_same_database(world):
    world.release(FIRST)
    world.release(SECOND)
    verb = ("rollback", "tiny", "--unproven", "--reason", "customers complain", "--store", world.folder / "store")
    line = [sys.executable, "-m", "quantize", *map(str, verb), "--registry", world.uri]
    with holding(world.registry, lambda _sentence: None):
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        waits = process.stderr.readline()
        assert waits.startswith("another process is releasing tiny (")
        assert f"(pid {os.getpid()})); waiting" in waits
        assert world.registry.aliases()["production"] == "3"
    output, _ = process.communicate(timeout=60)
    assert output == "production: version 3 → 2\n"
    assert world.registry.aliases()["production"] == "2"


@pytest.mark.parametrize("arguments", [("status", "a b"), ("pull", "a/b@production", "out"), ("history", "")])
def test_a_name_that_no_model_can_have_is_a_usage_error(arguments):
    result = command(*arguments)
    assert result.returncode == 2
    assert "cannot be a model's name" in result.stderr


def test_a_refusal_is_a_sentence_and_an_exit_code(world):
    world.release(FIRST)
    result = command("promote", "tiny", "fp8", "--version", "7", "--reason", "no", "--registry", world.uri)
    assert result.returncode == 1
    assert result.stderr.strip() == "error: tiny: version 7 is not one of fp8 (those are 2)."


def test_looking_at_a_registry_that_is_not_there_makes_none(tmp_path):
    result = command("status", "tiny", "--store", tmp_path / "store")
    assert result.returncode == 1
    assert "no such registered model" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_version_that_served_by_a_persons_hand_can_be_gone_back_to(world):
    """It passed and no run promoted it: its state is `passed` while a target serves it."""
    world.releasing = {"require_approval": True}
    world.release(FIRST)
    world.releasing = {}
    promote(world.registry, "production", "2", "we need it now", "eva", force=True)
    assert state(world, "2") == "passed"
    assert "**Passed**, and promoted by hand." in world.registry.versions()[1].description
    world.release(SECOND)
    assert world.registry.aliases()["production"] == "3"
    rollback(world.registry, "production", None, "customers complain", "eva")
    assert world.registry.aliases()["production"] == "2"


def test_a_command_that_knows_no_targets_leaves_what_the_models_page_says_of_them(world):
    world.release(FIRST)
    before = world.registry.description()
    assert "`production`: what consumers load" in before
    rollback(world.registry.model_copy(update={"targets": {}}), "production", None, "so", "eva")
    assert world.registry.description() == before
