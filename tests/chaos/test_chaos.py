"""The pipeline while any part of it is killed at any moment: every run comes to what an undisturbed one does.

`make chaos` runs it with hundreds of kills. A round is a new store and a new server, and two nodes that run one recipe
until both have decided everything. Strikes are drawn from a seed, which is printed; how they meet what is going on is
not, because the machine has a say in it. What was struck (`strikes.log`) and what the nodes wrote lie in the test's
folder.

    QUANTIZE_CHAOS_SEED      the seed
    QUANTIZE_CHAOS_KILLS     how many kills: rounds follow each other until there were as many
    QUANTIZE_CHAOS_SECONDS   the time for it, 15 for each kill where it is not said: fewer kills by then are a failure
    QUANTIZE_CHAOS_PAUSE     seconds between two strikes, on average
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest
from chaos_outcome import check, outcome
from chaos_victims import VICTIMS, Chaos
from chaos_world import World
from mlflow_server import serving
from program import tiny_recipe, write_recipe

pytest_plugins = ["release_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.chaos]

MODEL = "tiny"
#: A round takes about a minute undisturbed.
_ROUND_SECONDS = 900
_LOOK_SECONDS = 0.02


def setting(name: str, default: float) -> float:
    return float(os.environ.get(f"QUANTIZE_CHAOS_{name}") or default)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Three variants, of which one stays inconclusive, and an eval in many looks."""
    names = {"int8": "W8A8", "int4": "W4A16", "fp8": "FP8_DYNAMIC"}
    changes = {
        "variants": [{"name": name, "scheme": scheme, "method": {"kind": "rtn"}} for name, scheme in names.items()],
        "gates": [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.04}],
        "registry": {"kind": "mlflow", "name": MODEL, "targets": {"production": {"from": list(names)}}},
        "early_stopping": {"look": 16},
    }
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny_recipe(**changes))


@pytest.fixture
def play(recipe, empty_database, tmp_path):
    """Plays a round with nodes of these names, and gives what it came to and how its jobs ended."""

    def played(name, nodes, chaos):
        folder = tmp_path / name
        (folder / "server").mkdir(parents=True)
        with serving(folder / "server", empty_database) as server:
            world = World.of(folder, server, recipe, nodes, chaos.draw)
            deadline = time.monotonic() + _ROUND_SECONDS
            try:
                while not world.decided:
                    assert time.monotonic() < deadline, f"{name} does not come to an end"
                    world.look()
                    chaos.look(world)
                    time.sleep(_LOOK_SECONDS)
                chaos.settle(world)
                check(world, MODEL)
                return outcome(world, MODEL), sum((node.ends for node in world.nodes), Counter())
            finally:
                world.end()

    return played


def told(chaos, rounds, ends, seconds):
    """The counts, as lines of a table."""
    lines = [f"{victim.name:<20} {chaos.counts[victim.name]:>5}" for victim in VICTIMS]
    jobs = ", ".join(f"{count} with {code}" for code, count in sorted(ends.items()))
    rate = f"{chaos.killed} kills in {seconds:.0f} s, {60 * chaos.killed / seconds:.1f} a minute; {rounds} rounds"
    return "\n".join([*lines, rate, f"jobs ended: {jobs}"])


def test_whatever_is_killed_whenever_every_run_comes_to_what_an_undisturbed_one_does(play, capsys):
    seed = int(setting("SEED", random.SystemRandom().randrange(10**6)))
    began = time.monotonic()
    with capsys.disabled():
        print(f"\nchaos: QUANTIZE_CHAOS_SEED={seed}", flush=True)
    undisturbed, _ = play("undisturbed", ("a",), Chaos(random.Random(seed), 0, began, 0.0))
    kills = int(setting("KILLS", 50))
    chaos = Chaos(random.Random(seed), kills, began + setting("SECONDS", 15 * kills), setting("PAUSE", 5))
    rounds, ends = 0, Counter()
    try:
        while not chaos.over:
            came_to, ended = play(f"round-{rounds}", ("a", "b"), chaos)
            rounds, ends = rounds + 1, ends + ended
            assert came_to == undisturbed
    finally:
        with capsys.disabled():
            print(told(chaos, rounds, ends, time.monotonic() - began), flush=True)
    assert chaos.killed >= kills, "the time was over before"
