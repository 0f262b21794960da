"""What tests do to a registry in processes of their own (`forked`)."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

from release_world import Result, World

from quantize import operate
from quantize.errors import RegistryError

__all__ = ["FIRST", "SECOND", "SMALL", "crash", "shuffle", "work"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
SMALL = Result("int4", b"small" * 10, lower=-0.04)
WORSE = range(30, 80)  # 50 items of 300 lost, of which the baseline had 40


def work(world: World, what: str) -> None:
    """The work of a scenario."""
    if what == "first release":
        world.release(FIRST)
    elif what == "second release":
        # Three of a kind: one promoted, one refused, one held because the champion of its variant is better.
        world.release(SECOND, Result("int4", SMALL.weights, "fail"), Result("nf4", b"worse" * 40, lost=WORSE))
    elif what == "rollback":
        operate.rollback(world.registry, "fp8", None, "customers complain", "eva")
    elif what == "promote":
        operate.promote(world.registry, "fp8", "2", "they asked for it", "eva", force=False)
    else:
        operate.reconcile(world.registry)


def crash(fault: str, world: World, what: str) -> None:
    """The work of a scenario, with a fault point armed."""
    os.environ["QUANTIZE_FAULT"] = fault
    work(world, what)


def shuffle(world: World, seed: int, seconds: float, out: Path) -> None:
    """Promote and roll back at random; write down the reasons of what was done and of what was refused."""
    draw = random.Random(seed)
    done: list[str] = []
    refused: list[str] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        reason, number = f"{seed}-{len(done) + len(refused)}", draw.choice(["2", "3"])
        try:
            if draw.random() < 0.5:
                operate.promote(world.registry, "fp8", number, reason, f"p{seed}", force=True)
            else:
                alias = draw.choice(["fp8", "production"])
                operate.rollback(world.registry, alias, draw.choice(["1", "2", "3"]), reason, f"p{seed}")
        except RegistryError as error:
            if "nothing else to go back to" not in str(error):
                raise
            refused.append(reason)
        else:
            done.append(reason)
    out.write_text(json.dumps({"done": done, "refused": refused}), encoding="utf-8")
