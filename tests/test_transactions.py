"""What a transaction notices, refuses and leaves behind: hands, strangers, forgers, newer programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import command, seldom, tiny_recipe, write_recipe
from release_world import Result, World

from quantize import faults, operate
from quantize.errors import RegistryError, UsageError
from quantize.history import check_journal, history
from quantize.release import release_run
from quantize.run import read_record
from quantize.turn import holding, read_journal, unlock

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)


def client(world: World):
    from mlflow import MlflowClient

    return MlflowClient(world.uri, world.uri)


def by_hand(world: World, alias: str, version: str) -> None:
    """As somebody does on MLflow's page."""
    client(world).set_registered_model_alias(world.model, alias, version)


def told(world: World) -> list[str]:
    return [event.what for event in history(world.registry) if event.what != "registered"]


def killed(world: World, fault: str, *arguments: str) -> None:
    """The program, dead at a point."""
    place = ("--store", str(world.folder / "store"), "--registry", world.uri)
    process = command(*arguments, *place, QUANTIZE_FAULT=fault)
    assert process.returncode == -signal.SIGKILL, process.stderr


def cli(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(*arguments, "--store", world.folder / "store", "--registry", world.uri)


# --- hands ---------------------------------------------------------------------------------------------------------


def test_a_champion_that_a_hand_moves_after_the_decision_makes_it_stale_and_the_next_run_decides_anew(
    world, monkeypatch
):
    world.release(FIRST)
    runner, record = world.run(SECOND)
    monkeypatch.setattr(faults, "point", lambda name: by_hand(world, "fp8", "1") if name == "release.passed" else None)
    released = release_run(world.registry, runner, record)
    monkeypatch.undo()
    decision = released.variants[0].decision
    assert decision is not None
    assert (decision.action, decision.previous_version) == ("stale", "2")
    assert decision.sentence.startswith("Stale: version 3 passed and was not promoted: an alias was moved by somebody")
    assert "fp8 was 2 and is 1" in decision.sentence
    assert world.registry.aliases()["fp8"] == "1"
    assert (world.registry.versions()[2].state, world.registry.versions()[2].tags.get("decided")) == ("passed", None)
    assert told(world)[-2:] == ["moved by hand", "stale"]
    assert read_record(runner.directory) == released
    again = world.release(SECOND).variants[0].decision
    assert again is not None
    assert (again.action, again.previous_version) == ("promote", "1")
    assert (world.registry.aliases()["fp8"], world.registry.aliases()["fp8-previous"]) == ("3", "1")


@pytest.mark.slow
def test_a_run_that_became_stale_exits_with_75_and_the_same_command_promotes(tmp_path):
    recipe = write_recipe(tmp_path, tiny_recipe())
    arguments = ["run", str(recipe), "--store", str(tmp_path / "store"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "quantize", *arguments],
        env={**os.environ, "QUANTIZE_FAULT": "release.passed:STOP"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    by_hand(World(tmp_path, f"sqlite:///{tmp_path}/store/mlflow.db"), "int8", "1")
    process.send_signal(signal.SIGCONT)
    output, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert json.loads(output)["variants"][0]["decision"]["action"] == "stale"
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    decision = json.loads(again.stdout)["variants"][0]["decision"]
    assert (decision["action"], decision["previous_version"]) == ("promote", "1")


def test_an_alias_that_a_hand_moves_amid_the_moves_is_read_back_and_what_was_begun_is_undone(world, monkeypatch):
    """Red when aliases are not read back after the last move, and when an intent with a stray is finished."""
    world.release(FIRST)
    world.release(SECOND)
    hands = iter(["1"])

    def hand(name: str) -> None:
        if name == "transaction.moved" and (version := next(hands, None)):
            by_hand(world, "fp8", version)

    monkeypatch.setattr(faults, "point", hand)
    with pytest.raises(RegistryError, match=r"alias 'fp8' was set to version 2 and reads back as 1.*find out who"):
        operate.rollback(world.registry, "fp8", "2", "worse", "eva")
    monkeypatch.undo()
    assert world.registry.versions()[2].state == "promoted"
    assert read_journal(world.registry).state.intent is not None
    (event,) = operate.reconcile(world.registry)
    assert event.reason.startswith("Undone, because fp8 moved elsewhere meanwhile")
    aliases = world.registry.aliases()
    assert (aliases["fp8"], aliases["fp8-previous"]) == ("1", "2"), "what a hand moved stays, the rest is as before"
    assert check_journal(world.registry).astray == {}


def test_the_previous_champion_is_written_down_before_the_new_one_serves(world):
    world.release(FIRST)
    world.release(SECOND)
    intents = [linked.entry.intent for linked in read_journal(world.registry).entries if linked.entry.intent]
    moved = [[(move.alias, move.before, move.after) for move in intent.moves] for intent in intents]
    assert moved[2] == [("fp8-candidate", "2", "3"), ("fp8-previous", "1", "2"), ("fp8", "2", "3")]
    assert [move[0] for move in moved[3]] == ["production-previous", "production"]


def test_an_alias_that_a_hand_moved_is_noticed_by_the_next_run_and_stays(world):
    world.release(FIRST)
    world.release(SECOND)
    by_hand(world, "fp8", "2")
    assert check_journal(world.registry).astray == {"fp8": ("3", "2")}
    world.release(SECOND)  # nothing new to decide
    assert world.registry.aliases()["fp8"] == "2"
    event = history(world.registry)[-1]
    assert (event.what, event.aliases) == ("moved by hand", {"fp8": "2"})
    assert "fp8: 3 → 2" in event.reason
    assert check_journal(world.registry).astray == {}


def test_a_run_that_has_nothing_to_decide_takes_no_lock(world):
    world.release(FIRST)
    before = read_journal(world.registry).head
    world.release(FIRST)
    assert read_journal(world.registry).head == before


# --- strangers and forgers -----------------------------------------------------------------------------------------


def test_a_version_that_quantize_did_not_make_is_left_alone_and_nothing_points_at_it(world):
    world.release(FIRST)
    client(world).create_model_version(world.model, source=(world.folder / "theirs").as_uri())
    with pytest.raises(RegistryError, match="version 3: quantize did not make it"):
        operate.rollback(world.registry, "production", "3", "try it", "eva")
    assert world.registry.aliases()["production"] == "2"
    by_hand(world, "fp8", "3")
    decision = world.release(SECOND).variants[0].decision
    assert decision is not None
    assert decision.action == "hold"
    assert "version 3 was never measured" in decision.sentence
    assert world.registry.aliases()["fp8"] == "3"
    assert any("fp8: 2 → 3 (which quantize did not make)" in event.reason for event in history(world.registry))
    assert operate.rollback(world.registry, "fp8", "2", "who was that?", "eva").before == "3"


@pytest.mark.parametrize("what", ["its list of files", "its verdict"])
def test_a_version_whose_papers_were_exchanged_is_not_promoted(world, what):
    """Red when a transaction does not verify what it points at (`check_claims` in `transact`)."""
    world.release(FIRST)
    world.release(SECOND)
    name = "quantize-manifest.json" if what == "its list of files" else "verdict.json"
    newest = max((world.folder / "mlartifacts").rglob(name), key=lambda path: path.stat().st_mtime_ns)
    operate.rollback(world.registry, "fp8", "2", "complaints", "eva")
    newest.write_text(newest.read_text(encoding="utf-8").replace("7", "8"), encoding="utf-8")
    before = world.registry.aliases()
    with pytest.raises(RegistryError, match=f"version 3: {what} is not the one"):
        operate.promote(world.registry, "fp8", "3", "it was not the model", "eva", force=True)
    assert world.registry.aliases() == before
    assert read_journal(world.registry).state.intent is None


def test_a_journal_of_a_newer_program_is_refused_and_nothing_moves(world):
    world.release(FIRST)
    before = world.registry.aliases()
    world.registry.append(json.dumps({"version": 2, "program": "quantize 9.1"}), "")
    for work in (
        lambda: world.release(SECOND),
        lambda: operate.rollback(world.registry, "fp8", "1", "worse", "eva"),
        lambda: operate.reconcile(world.registry),
    ):
        with pytest.raises(RegistryError, match=r"journal of tiny: entry .* newer program \(quantize 9\.1\).*Update"):
            work()
    assert world.registry.aliases() == before
    result = cli(world, "history", "tiny", "--verify")
    assert result.returncode == 1
    assert "newer program" in result.stderr


@pytest.mark.parametrize("damage", seldom(["changed", "removed", "cut off"], often=("removed",)))
def test_a_journal_that_was_tampered_with_is_told_with_its_entry_and_stops_every_move(world, damage):
    world.release(FIRST)
    good = cli(world, "history", "tiny", "--verify")
    assert good.returncode == 0
    assert good.stdout.startswith("✓ the journal's chain is whole: ")
    mlflow, last = client(world), read_journal(world.registry).head[0]
    if damage == "changed":
        text = mlflow.get_model_version("tiny--journal", "2").tags["quantize.entry"]
        mlflow.set_model_version_tag("tiny--journal", "2", "quantize.entry", text.replace('"2"', '"1"'))
        said = "entry 2 was changed"
    elif damage == "removed":
        mlflow.delete_model_version("tiny--journal", "3")
        said = "entry 3 is missing"
    else:
        mlflow.delete_model_version("tiny--journal", str(last))
        said = f"tag names entry {last}, and there is none"
    bad = cli(world, "history", "tiny", "--verify")
    assert bad.returncode == 1
    assert said in bad.stdout
    before = world.registry.aliases()
    with pytest.raises(RegistryError, match=said):
        operate.rollback(world.registry, "fp8", "1", "worse", "eva")
    assert world.registry.aliases() == before
    # As docs/registry.md says how to go on.
    mlflow.delete_registered_model("tiny--journal")
    mlflow.delete_registered_model_tag("tiny", "quantize.journal_head")
    operate.rollback(world.registry, "fp8", "1", "worse", "eva")
    assert told(world) == ["found", "rolled back"]


# --- finishing, undoing, locks -------------------------------------------------------------------------------------


def test_an_operator_undoes_what_was_begun(world):
    world.release(FIRST)
    world.release(SECOND)
    rows = [(v.state, v.aliases, v.tags.get("sentence")) for v in world.registry.versions()]
    killed(world, "transaction.tagged", "rollback", "tiny", "--alias", "fp8", "--unproven", "--reason", "the wrong one")
    assert world.registry.aliases()["fp8"] == "2"
    result = cli(world, "reconcile", "tiny", "--undo", "--json")
    assert result.returncode == 0, result.stderr
    assert [event["what"] for event in json.loads(result.stdout)] == ["undone"]
    assert [(v.state, v.aliases, v.tags.get("sentence")) for v in world.registry.versions()] == rows
    assert history(world.registry)[-1].reason.startswith("Undone, because an operator asked for it: rolled back")
    assert check_journal(world.registry).problems == ()


def test_the_first_promotion_undone_leaves_no_alias_behind(world):
    runner, record = world.run(FIRST)

    def cut(name: str) -> None:
        if name == "transaction.read_back":
            raise RegistryError("cut off here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "point", cut)
        with pytest.raises(RegistryError, match="cut off here"):
            release_run(world.registry, runner, record)
    assert set(world.registry.aliases()) == {"fp8", "fp8-candidate", "fp8-previous"}
    operate.reconcile(world.registry, undo=True)
    assert world.registry.aliases() == {}
    assert world.release(FIRST).variants[0].decision is not None
    assert world.registry.aliases()["fp8"] == "2"


def test_a_rollback_that_is_asked_for_again_after_a_kill_is_done_once(world):
    world.release(FIRST)
    world.release(SECOND)
    arguments = ("rollback", "tiny", "--alias", "fp8", "--unproven", "--reason", "customers complain")
    killed(world, "transaction.moved", *arguments)
    again = cli(world, *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout == "fp8: version 3 → 2\n"
    assert told(world).count("rolled back") == 1


def test_a_file_lock_is_not_taken_from_a_process_that_has_it(world):
    world.release(FIRST)
    with (
        holding(world.registry, lambda _sentence: None),
        pytest.raises(UsageError, match=rf"a process holds \(.* \(pid {os.getpid()}\)\).*End that process"),
    ):
        unlock(world.registry, "it hangs", "eva")
    assert unlock(world.registry, "it hangs", "eva") is None


def test_a_lock_that_cannot_be_opened_is_named(world):
    world.release(FIRST)
    file = world.registry.lock_file
    assert file is not None
    file.unlink()
    file.mkdir()
    with pytest.raises(RegistryError, match=r"the lock of tiny cannot be opened.*able to write"):
        operate.rollback(world.registry, "fp8", "1", "worse", "eva")


def test_the_name_of_a_journal_is_no_models_name(tmp_path):
    result = command("status", "tiny--journal", "--store", tmp_path)
    assert result.returncode == 2
    assert "cannot be a model's name" in result.stderr
