"""`quantize status` says what is out of order: aliases astray, work left half done, who has the lock. It takes none."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner
from forked import forkserver
from release_processes import FIRST, SECOND, crash
from release_world import World

from quantize.cli import cli
from quantize.turn import holding, read_journal

pytest_plugins = ["release_fixtures"]


@pytest.fixture
def served(world):
    """A world with two releases behind it."""
    world.release(FIRST)
    world.release(SECOND)
    return world


def status(world: World) -> tuple[str, dict]:
    """What it prints, and the journal's part of its document."""
    place = ("status", "tiny", "--store", world.folder / "store", "--registry", world.uri)
    shown, document = (CliRunner().invoke(cli, [*map(str, place), *more]) for more in ([], ["--json"]))
    assert (shown.exit_code, document.exit_code) == (0, 0), shown.output + document.output
    return shown.stdout, json.loads(document.stdout)["journal"]


def test_where_all_is_in_order_nothing_is_said_and_no_lock_taken(served):
    before = read_journal(served.registry).read
    text, journal = status(served)
    assert "!" not in text
    assert (journal["problems"], journal["astray"], journal["begun"], journal["lock"]) == ([], {}, None, None)
    assert read_journal(served.registry).read == before


def test_an_alias_that_a_hand_moved_is_shown_with_where_it_belongs(served):
    served.registry.set_alias("fp8", "2")
    served.registry.set_alias("theirs", "1")
    text, journal = status(served)
    assert "! fp8 is at version 2, the journal says 3: the next run or `quantize reconcile tiny` settles it" in text
    assert "! theirs is at version 1, the journal says (none)" in text
    assert journal["astray"] == {"fp8": ["3", "2"], "theirs": [None, "1"]}


def test_what_was_left_half_done_is_shown_with_who_began_it_and_that_its_process_is_gone(served):
    process = forkserver().Process(target=crash, args=("transaction.moved", served, "rollback"))
    process.start()
    process.join(60)
    text, journal = status(served)
    assert "! begun and not done: rolled back fp8 → 2, fp8-previous → 3" in text
    assert "`quantize reconcile tiny` ends it" in text
    assert f"(pid {process.pid}) since " in text
    assert "a process that is gone: the next command takes it" in text
    assert journal["astray"] == {}, "they are on their way"
    assert (journal["begun"]["what"], journal["begun"]["version"]) == ("rolled back", "3")
    assert journal["begun"]["since"][:2] == "20"
    assert journal["lock"]["gone"] is True


def test_who_has_the_lock_is_shown_while_it_is_held_and_is_not_waited_for(served):
    with holding(served.registry, lambda _sentence: None):
        text, journal = status(served)
    assert f"(pid {os.getpid()}) since 20" in text
    assert "gone" not in text
    assert journal["lock"]["gone"] is False
    assert status(served)[1]["lock"] is None


def test_a_broken_chain_is_shown_beside_what_can_be_known(served):
    from mlflow import MlflowClient

    MlflowClient(served.uri, served.uri).delete_model_version("tiny--journal", "2")
    text, journal = status(served)
    assert "✗ the journal: entry 2 is missing" in text
    assert "fp8, fp8-candidate, production" in text
    assert journal["problems"][0].startswith("entry 2 is missing")
