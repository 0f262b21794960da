"""kill -9 at every step of a release, a promotion, a rollback and a reconciliation, each time it is reached.

The points are read from the source; one that no scenario reaches fails the test.
"""

from __future__ import annotations

import ast
import shutil
import signal
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forked import forkserver
from release_processes import FIRST, SECOND, crash, work
from release_world import Result, World

import quantize
from quantize import faults, operate
from quantize.history import check_journal, history
from quantize.pull import pull
from quantize.turn import owner_is_gone, read_journal

pytest_plugins = ["release_fixtures"]

pytestmark = pytest.mark.slow

MODULES = ("release.py", "publishing.py", "transaction.py", "turn.py", "operate.py")
SCENARIOS = ("first release", "second release", "promote", "rollback", "finish", "undo", "hand", "late")


def points() -> set[str]:
    """The fault points of all that moves aliases, read from the source."""
    sources = ((Path(quantize.__file__).parent / module).read_text(encoding="utf-8") for module in MODULES)
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {ast.literal_eval(node.args[0]) for node in nodes if ast.unparse(node.func) == "faults.point"}


@pytest.fixture(scope="module")
def killed():
    """Do a scenario's work in a process that dies at a point."""
    context = forkserver()

    def kill(fault: str, world: World, what: str) -> None:
        process = context.Process(target=crash, args=(fault, world, what))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{fault} was never reached in {what}"

    return kill


@dataclass
class Place:
    """The folder of a world, which can be put back to what it was. Its database keeps its file: it is open."""

    world: World
    kept: Path

    def keep(self, name: str) -> None:
        for part in ("store", "mlartifacts"):
            if (self.world.folder / part).exists():
                shutil.copytree(self.world.folder / part, self.kept / name / part, symlinks=True)
        (self.kept / name).mkdir(exist_ok=True)
        with closing(self.database()) as now, closing(sqlite3.connect(self.kept / name / "mlflow.db")) as copy:
            now.backup(copy)

    def restore(self, name: str) -> None:
        folder = self.world.folder
        for part in ("store", "mlartifacts"):
            shutil.rmtree(folder / part, ignore_errors=True)
            if (self.kept / name / part).exists():
                shutil.copytree(self.kept / name / part, folder / part, symlinks=True)
        with closing(self.database()) as now:
            now.execute("ATTACH ? AS kept", [str(self.kept / name / "mlflow.db")])
            tables = now.execute(
                "SELECT name FROM kept.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
            for (table,) in tables.fetchall():
                now.execute(f"DELETE FROM main.{table}")
                if now.execute(f"SELECT count(*) FROM kept.{table}").fetchone()[0]:  # others have computed columns
                    now.execute(f"INSERT INTO main.{table} SELECT * FROM kept.{table}")
            now.commit()

    def database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.world.folder / "mlflow.db")


def prepare(place: Place, what: str, killed) -> None:
    """Put the world into the state that a scenario starts from."""
    world = place.world
    if what == "first release":
        place.restore("empty")
    elif what == "second release":
        place.restore("first")
        world.release(Result("nf4", b"other" * 50))
        world.release(Result("fp8", SECOND.weights, "inconclusive"))  # the version was decided by another verdict
    else:
        place.restore("second")
    if what == "finish":
        killed("transaction.moved", world, "rollback")
    elif what == "undo":
        killed("transaction.moved@2", world, "rollback")
        world.registry.set_alias("fp8", "1")
    elif what == "hand":
        world.registry.set_alias("fp8", "1")
    elif what == "late":
        killed("transaction.checked@2", world, "rollback")
        operate.reconcile(world.registry)
        operate.promote(world.registry, "fp8", "3", "it was not the model", "eva", force=True)
        world.registry.set_alias("fp8", "2")  # as the one that was killed would have, had it only slept
    place.keep(what)


@dataclass
class Prepared:
    """A scenario: its place, the points that its work reaches, and the facts that it ends with undisturbed."""

    place: Place
    reached: list[str] = field(default_factory=list)
    ended: list[tuple[object, ...]] = field(default_factory=list)


@pytest.fixture(scope="module")
def scenarios(empty_database, tmp_path_factory, killed):
    """Every scenario, prepared."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copy(empty_database, folder / "mlflow.db")
    world = World(folder, f"sqlite:///{folder}/mlflow.db")
    place = Place(world, tmp_path_factory.mktemp("kept"))
    place.keep("empty")
    world.release(FIRST)
    place.keep("first")
    world.release(SECOND)
    place.keep("second")
    found = {}
    for what in SCENARIOS:
        prepare(place, what, killed)
        prepared = found[what] = Prepared(place)
        counted: Counter[str] = Counter()

        def reach(name, counted=counted, prepared=prepared):
            counted[name] += 1
            if name in points():  # those of runs and stores are test_faults.py's
                prepared.reached.append(f"{name}@{counted[name]}")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faults, "point", reach)
            work(world, what)
        prepared.ended = facts(world)
    return found


def facts(world: World) -> list[tuple[object, ...]]:
    """All that matters of a registry and does not depend on the time, and all that its journal tells, in its order."""
    told = ("decided", "sentence", "against", "actor", "reason")
    rows = [
        (v.variant, v.state, v.artifact_digest, v.aliases, *(v.tags.get(name) or None for name in told))
        for v in world.registry.versions()
    ]
    if not rows:
        return []
    events = [(e.what, e.variant, e.version, e.aliases, e.against, e.actor) for e in history(world.registry)]
    return [*rows, *(event for event in events if event[0] != "lock taken")]


def recover(world: World, what: str, ended: list[tuple[object, ...]]) -> None:
    """What the next process does: a run is started again; an operator reconciles and sees whether it was done."""
    if what.endswith("release"):
        work(world, what)
        return
    operate.reconcile(world.registry)
    if facts(world) != ended:
        work(world, what)


def intact(world: World) -> None:
    """One champion, whose bytes are those that were judged; a whole journal, and aliases where it says."""
    checked = check_journal(world.registry)
    assert checked.problems == ()
    assert checked.astray == {}
    chain = read_journal(world.registry)
    assert chain.state.intent is None
    # Where nothing was left to do but to give the lock back, nobody needed it since.
    assert chain.state.lock is None or owner_is_gone(chain.state.lock)
    with tempfile.TemporaryDirectory() as scratch:
        pull(world.registry, "fp8", Path(scratch) / "out")


def test_every_point_is_reached_by_a_scenario(scenarios):
    reached = {name.partition("@")[0] for prepared in scenarios.values() for name in prepared.reached}
    assert points() - reached == set()


@pytest.mark.parametrize("what", SCENARIOS)
def test_a_kill_at_any_step_is_finished_by_who_comes_next(scenarios, killed, what):
    prepared = scenarios[what]
    world = prepared.place.world
    for fault in prepared.reached:
        prepared.place.restore(what)
        assert facts(world) != prepared.ended
        before = world.registry.versions()
        killed(fault, world, what)
        served = world.registry.aliases().get("fp8")
        assert served in allowed(what), f"{fault}: the alias always points at what passed"
        recover(world, what, prepared.ended)
        assert facts(world) == prepared.ended, fault
        intact(world)
        now = {(v.version, v.artifact_digest) for v in world.registry.versions()}
        assert now >= {(v.version, v.artifact_digest) for v in before}, f"{fault}: a version was lost"


def allowed(what: str) -> tuple[str | None, ...]:
    """Where the champion's alias may point at any moment of a scenario."""
    return {
        "first release": (None, "2"),
        "second release": ("2", "4"),
        "undo": ("1",),
        "hand": ("1",),
    }.get(what, ("2", "3"))
