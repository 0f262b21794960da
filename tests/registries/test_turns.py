"""Turns on a real `mlflow server`: many who want one, holders that sleep or die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import forkserver
from program import command
from release_processes import FIRST, SECOND, shuffle
from release_world import World
from turn_checks import moves, serial, told, whole

from quantize import faults, operate
from quantize.errors import RegistryError
from quantize.history import check_journal, history
from quantize.turn import SECONDS, holding, unlock

pytest_plugins = ["release_fixtures"]

PROCESSES, LENGTH = 8, 60


@pytest.fixture
def remote(server, tmp_path):
    """A world with a model of its own on the shared server, and two versions of one variant."""
    world = World(tmp_path, server.address, model=f"t-{tmp_path.name}"[:60])
    world.release(FIRST)
    world.release(SECOND)
    return world


def start(world: World, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The program on the world's registry, in the background."""
    verb, *rest = arguments
    return subprocess.Popen(
        [sys.executable, "-m", "quantize", verb, world.model, *rest, "--registry", world.uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def wait_for_state(process: subprocess.Popen[str], letter: str) -> None:
    """Until the process is in a state (`T` is stopped)."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != letter:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- many who want one ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_many_that_move_aliases_at_once_every_move_appears_in_one_order(remote, tmp_path, capsys):
    context = forkserver()
    files = [tmp_path / f"{seed}.json" for seed in range(PROCESSES)]
    processes = [context.Process(target=shuffle, args=(remote, seed, LENGTH, file)) for seed, file in enumerate(files)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LENGTH + 120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    chain = whole(remote)
    assert serial(moves(chain)) == remote.registry.aliases()
    done = {linked.entry.closes for linked in chain.entries if linked.entry.kind == "done"}
    written = [linked.entry.intent for linked in chain.entries if linked.number in done]
    # One that is forced says so before the reason that was given.
    given = [intent.event.reason for intent in written if intent and intent.event.actor.startswith("p")]
    reasons = [reason.rpartition(" ")[2] for reason in given]
    said = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    moved = [reason for told in said for reason in told["done"]]
    assert sorted(reasons) == sorted(moved), "each move is written down once, and what was refused is not"
    assert len({reason.partition("-")[0] for reason in moved}) > PROCESSES // 2, "nobody has it to himself"
    assert {v.version for v in remote.registry.versions()} == {"1", "2", "3"}
    verified = command("history", remote.model, "--verify", "--registry", remote.uri)
    assert verified.returncode == 0, verified.stdout
    with capsys.disabled():
        print(f"{len(moved)} transactions of {PROCESSES} processes: {60 * len(moved) / LENGTH:.0f} a minute")


# --- holders that sleep or die -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["reconcile", "run"])
def test_a_holder_that_slept_past_its_time_moves_an_alias_late_and_it_is_put_back(remote, monkeypatch, by):
    monkeypatch.setenv(SECONDS, "2")
    sleeper = start(
        remote,
        "rollback",
        "--alias",
        "fp8",
        "--unproven",
        "--reason",
        "sleepy",
        QUANTIZE_FAULT="transaction.checked:STOP",
    )
    try:
        wait_for_state(sleeper, "T")
        assert remote.registry.aliases()["fp8"] == "3"
        began = time.monotonic()
        operate.reconcile(remote.registry)
        assert time.monotonic() - began > 2, "it is given the time that it asked for"
        assert remote.registry.aliases()["fp8"] == "2"
        operate.promote(remote.registry, "fp8", "3", "it was not the model", "eva", force=True)
        sleeper.send_signal(signal.SIGCONT)
        _, said = sleeper.communicate(timeout=60)
    finally:
        sleeper.kill()
    assert sleeper.returncode == 1
    assert "the lock of this model was taken over" in said
    assert remote.registry.aliases()["fp8"] == "2", "nothing prevents the move itself"
    assert check_journal(remote.registry).astray == {"fp8": ("3", "2")}
    if by == "run":
        remote.release(SECOND)
    else:
        operate.reconcile(remote.registry)
    assert remote.registry.aliases()["fp8"] == "3"
    whole(remote)
    assert told(remote)[-1] == "moved late"
    assert "was moved to version 2 by" in history(remote.registry)[-1].reason
    remote.registry.set_alias("fp8", "2")
    operate.reconcile(remote.registry)
    assert remote.registry.aliases()["fp8"] == "2", "late only once: from now on it is somebody's hand"


def test_a_holder_that_lives_is_waited_for_however_long_it_takes(remote, monkeypatch):
    monkeypatch.setenv(SECONDS, "1")
    with holding(remote.registry, lambda _sentence: None):
        other = start(remote, "rollback", "--alias", "fp8", "--unproven", "--reason", "it is worse")
        assert other.stderr is not None
        assert f"(pid {os.getpid()}) has the lock of {remote.model}; waiting" in other.stderr.readline()
        time.sleep(4)
        assert other.poll() is None
        assert remote.registry.aliases()["fp8"] == "3"
    output, _ = other.communicate(timeout=60)
    assert output == "fp8: version 3 → 2\n"
    assert "lock taken" not in told(remote)


def test_the_lock_of_a_process_that_is_known_to_be_dead_is_taken_at_once(remote):
    killed = start(
        remote, "rollback", "--alias", "fp8", "--unproven", "--reason", "worse", QUANTIZE_FAULT="transaction.moved"
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    began = time.monotonic()
    result = command("reconcile", remote.model, "--registry", remote.uri)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began < 30, "a lock holds for 60 seconds"
    assert "Finished what" in result.stderr
    assert "worse" in result.stderr
    assert (remote.registry.aliases()["fp8"], remote.registry.aliases()["fp8-previous"]) == ("2", "3")
    whole(remote)
    assert command("reconcile", remote.model, "--registry", remote.uri).stdout == (
        "everything is where the journal says\n"
    )


def test_an_operator_takes_a_lock_and_its_holder_can_do_nothing_more(remote):
    with holding(remote.registry, lambda _sentence: None) as turn:
        owner = unlock(remote.registry, "it hangs", "eva")
        assert owner is not None and owner.pid == os.getpid()
        for work in (turn.check, lambda: turn.append("decided")):
            with pytest.raises(RegistryError, match=r"taken over by `quantize unlock`"):
                work()
    assert history(remote.registry)[-1].what == "lock taken"
    assert history(remote.registry)[-1].reason.endswith("it hangs")
    assert command("unlock", remote.model, "--reason", "again", "--registry", remote.uri).stdout == (
        "nobody has the lock\n"
    )
    whole(remote)


@pytest.mark.parametrize(
    ("point", "moved", "tagged"),
    [("transaction.intent", 0, False), ("transaction.moved", 1, False), ("transaction.read_back", 2, False)],
)
def test_a_holder_whose_lock_is_taken_between_two_steps_does_nothing_more(remote, monkeypatch, point, moved, tagged):
    """Red when the lock is not asked for right before each move, and before the tags."""
    before = remote.registry.aliases()
    monkeypatch.setattr(
        faults, "point", lambda name: unlock(remote.registry, "hangs", "eva") if name == point else None
    )
    with pytest.raises(RegistryError, match="taken over by `quantize unlock`"):
        operate.rollback(remote.registry, "fp8", "2", "worse", "eva")
    monkeypatch.undo()
    now = remote.registry.aliases()
    assert sum(now[alias] != version for alias, version in before.items()) == moved
    assert (remote.registry.versions()[2].state == "rolled_back") is tagged
    operate.reconcile(remote.registry)
    assert (remote.registry.aliases()["fp8"], remote.registry.versions()[2].state) == ("2", "rolled_back")
    whole(remote)
