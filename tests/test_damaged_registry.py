"""A registry that can only be read, and rows in it that are not those that were judged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from release_processes import FIRST, SECOND
from release_world import World

from quantize import operate
from quantize.errors import RegistryError
from quantize.evidence import ITEM_ROWS
from quantize.metrics import read_rows
from quantize.metrics._rows import write_rows
from quantize.turn import read_journal

pytest_plugins = ["release_fixtures"]


@pytest.fixture
def read_only() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program while a folder can only be read, which no permission bits do to the superuser."""

    def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
        private = ["unshare", "--mount", "--map-root-user"] if os.getuid() else ["unshare", "--mount"]
        probe = subprocess.run([*private, "sh", "-c", mount], capture_output=True, text=True)
        if probe.returncode:
            pytest.skip(f"no read-only mount can be made here: {probe.stderr.strip()}")
        return subprocess.run(
            [
                *private,
                "sh",
                "-c",
                f'{mount} && exec "$@"',
                "sh",
                sys.executable,
                "-m",
                "quantize",
                *map(str, arguments),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_a_store_that_can_only_be_read_is_looked_at_and_nothing_in_it_is_moved(world, read_only):
    world.release(FIRST)
    world.release(SECOND)
    before, journal = world.registry.aliases(), read_journal(world.registry).head
    place = ("--store", world.folder / "store", "--registry", world.uri)
    looked = read_only(world.folder, "status", "tiny", *place)
    assert looked.returncode == 0, looked.stderr
    assert "fp8, fp8-candidate, production" in looked.stdout
    for verb in ("rollback", "promote"):
        arguments = ("--alias", "fp8", "--unproven") if verb == "rollback" else ("fp8",)
        result = read_only(world.folder, verb, "tiny", *arguments, "--reason", "they asked", *place)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1, "no traceback"
        assert "cannot be opened (Read-only file system)" in result.stderr
        assert str(world.registry.lock_file) in result.stderr
        assert "must be able to write there" in result.stderr
    assert (world.registry.aliases(), read_journal(world.registry).head) == (before, journal)


def test_a_database_that_cannot_be_written_beside_a_lock_that_can_is_named(world, read_only):
    world.release(FIRST)
    world.release(SECOND)
    before = world.registry.aliases()
    file = world.folder / "mlflow.db"
    inner = world.folder / "database"
    inner.mkdir()
    for path in world.folder.glob("mlflow.db*"):
        path.rename(inner / path.name)
    file.symlink_to(inner / file.name)
    (world.folder / "mlflow.db.lock").touch()
    arguments = ("rollback", "tiny", "--alias", "fp8", "--unproven", "--reason", "worse", "--registry", world.uri)
    result = read_only(inner, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {world.uri}: the registry's storage does not work: ")
    assert "readonly database" in result.stderr
    assert "can be read and written" in result.stderr
    assert result.stderr.count("\n") == 1, "no traceback"
    assert world.registry.aliases() == before


def forge(world: World, version: str) -> None:
    """Make an answer of a version wrong in the rows that its MLflow run holds."""
    from mlflow import MlflowClient

    run = world.registry.versions()[int(version) - 1].tags["evidence_run"]
    place = MlflowClient(world.uri, world.uri).get_run(run).info.artifact_uri.removeprefix("file://")
    file = Path(place) / "rows" / "facts" / "rows.parquet"
    rows = read_rows(file.parent)
    rows[1]["score"] = 1.0 - rows[1]["score"]
    write_rows(rows, ITEM_ROWS, file.parent)


def test_a_version_whose_rows_were_changed_is_not_promoted_by_hand(world):
    """Red when `promote` does not check the rows (`check_rows`)."""
    world.release(FIRST)
    world.release(SECOND)
    operate.rollback(world.registry, "fp8", "2", "complaints", "eva")
    forge(world, "3")
    before = world.registry.aliases()
    with pytest.raises(RegistryError, match="version 3: its rows of facts are not those that its verdict rests on"):
        operate.promote(world.registry, "fp8", "3", "it was not the model", "eva", force=True)
    assert world.registry.aliases() == before
    assert read_journal(world.registry).state.intent is None


def test_a_champion_whose_rows_were_changed_is_not_replaced_by_a_comparison_with_them(world):
    """Red when `rows_of_version` takes rows without their digest: one item less changes nothing in the outcome."""
    world.release(FIRST)
    forge(world, "2")
    decision = world.release(SECOND).variants[0].decision
    assert decision is not None
    assert decision.action == "hold"
    assert "version 2: its rows of facts are not those that its verdict rests on" in decision.sentence
    assert world.registry.aliases()["fp8"] == "2"
