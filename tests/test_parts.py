"""Parts of a long stage that two nodes share: what another node took over while this one slept is taken, not an error.

Two recipes that differ in their gates alone share the looks of an eval, under leases of their own each.
"""

from __future__ import annotations

import os
import shutil

import pytest
from program import commits
from release_world import PROVENANCE

from quantize.errors import LeaseLost
from quantize.leases import NODE, SECONDS
from quantize.parts import LOOK, StoreParts
from quantize.store import Store


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The same parts as several nodes see them; beats are too far apart to come to one that sleeps."""
    monkeypatch.setenv(SECONDS, "1000")
    return lambda: StoreParts(Store(tmp_path), "base", "int8 facts", lambda seconds: PROVENANCE)


def fall_asleep(store, monkeypatch):
    """What comes after this happens on another node, as if this one had given its leases back."""
    for ticket in store.glob(f"leases/{LOOK}-*/[0-9]"):
        os.utime(ticket, (0, 0))
    monkeypatch.setenv(NODE, "b")


@pytest.mark.parametrize("moment", ["before it wrote", "after it wrote"])
def test_a_part_that_another_node_kept_meanwhile_is_taken(parts, tmp_path, monkeypatch, moment):
    """The other node removes the draft of the one that sleeps: half of it may be written."""
    monkeypatch.setenv(NODE, "a")
    mine, others, kept = parts(), parts(), []

    def write(draft):
        if moment == "after it wrote":
            (draft / "rows").write_text("answers", encoding="utf-8")
        if not kept:
            fall_asleep(tmp_path, monkeypatch)
            kept.append(others.keep(0, lambda draft: (draft / "rows").write_text("answers", encoding="utf-8")))
            made.append(commits(tmp_path))
            monkeypatch.setenv(NODE, "a")
        if moment == "before it wrote":
            (draft / "rows").write_text("answers", encoding="utf-8")

    made = []
    assert mine.keep(0, write) == kept[0]
    assert [commits(tmp_path)] == made, "it stays what it was"
    assert mine.used == others.used
    assert not list((tmp_path / "drafts").iterdir())


def test_a_part_whose_stage_was_taken_over_ends_with_it(parts, monkeypatch):
    def write(draft):
        raise LeaseLost("another node has taken this work over.", where="leases/evaluate-0123")

    with pytest.raises(LeaseLost):
        parts().keep(0, write)


def test_a_part_that_cannot_be_written_is_an_error(parts):
    with pytest.raises(FileNotFoundError):
        parts().keep(0, shutil.rmtree)
