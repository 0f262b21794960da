"""The pipeline while any part of it is killed at any moment: every run comes to what an undisturbed one does.

`make chaos` runs it with hundreds of kills. A round is a new store and a new server, and two nodes that run one recipe
until both have decided everything. Strikes are drawn from a seed, which is printed; how they meet what is going on is
not, because the machine has a say in it. What was struck (`strikes.log`) and what the nodes wrote is kept of
a round that fails.

    QUANTIZE_CHAOS_SEED      the seed
    QUANTIZE_CHAOS_KILLS     how many kills: rounds follow each other until there were as many
    QUANTIZE_CHAOS_SECONDS   the time for it, 16 for each kill where it is not said: fewer kills by then are a failure
    QUANTIZE_CHAOS_PAUSE     seconds between two strikes, on average
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field

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
    """Two variants, of which one stays inconclusive, and an eval in many looks."""
    names = {"int8": "W8A8", "int4": "W4A16"}
    changes = {
        "variants": [{"name": name, "scheme": scheme, "method": {"kind": "rtn"}} for name, scheme in names.items()],
        "gates": [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.04}],
        "registry": {"kind": "mlflow", "name": MODEL, "targets": {"production": {"from": list(names)}}},
        "early_stopping": {"look": 16},
    }
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny_recipe(**changes))


@pytest.fixture
def play(recipe, empty_database, tmp_path):
    """Plays a round with nodes of these names, and gives what it came to (`expected`) and how its jobs fared."""

    def played(name, nodes, chaos, expected=None):
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
                came_to = outcome(world, MODEL)
                assert expected is None or came_to == expected
            finally:
                world.end()
        fared = [(node.ends, node.met()) for node in world.nodes]
        shutil.rmtree(folder)
        return came_to, fared

    return played


@dataclass
class Tally:
    """How many rounds there were, how jobs ended in them by exit code, and how many met what."""

    rounds: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)

    def add(self, fared):
        self.rounds += 1
        for ends, met in fared:
            self.ends.update(ends)
            self.met.update(met)

    def told(self, chaos, seconds):
        """The counts, as lines of a table."""
        struck = [f"{chaos.counts[victim.name]:>5}  {victim.name}" for victim in VICTIMS]
        ended = [f"{count:>5}  jobs ended with {code}" for code, count in sorted(self.ends.items())]
        met = [f"{count:>5}  jobs {what}" for what, count in self.met.items()]
        rate = f"{chaos.killed} kills in {seconds:.0f} s, {60 * chaos.killed / seconds:.1f} a minute; "
        return "\n".join([*struck, *ended, *met, f"{rate}{self.rounds} rounds"])


def test_whatever_is_killed_whenever_every_run_comes_to_what_an_undisturbed_one_does(play, capsys):
    seed = int(setting("SEED", random.SystemRandom().randrange(10**6)))
    began = time.monotonic()
    with capsys.disabled():
        print(f"\nchaos: QUANTIZE_CHAOS_SEED={seed}", flush=True)
    undisturbed, _ = play("undisturbed", ("a",), Chaos(random.Random(seed), 0, began, 0.0))
    kills = int(setting("KILLS", 50))
    chaos = Chaos(random.Random(seed), kills, began + setting("SECONDS", 16 * kills), setting("PAUSE", 5))
    tally = Tally()
    try:
        while not chaos.over:
            _, fared = play(f"round-{tally.rounds}", ("a", "b"), chaos, undisturbed)
            tally.add(fared)
    finally:
        with capsys.disabled():
            print(tally.told(chaos, time.monotonic() - began), flush=True)
    assert chaos.killed >= kills, "the time was over before"
