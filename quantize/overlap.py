"""Evals that calibration data holds: looked for before a run where it is at hand, else as soon as it is fetched."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.leakage import overlaps
from quantize.recipe import Recipe

__all__ = ["leaked"]


def leaked(recipe: Recipe, seen: Sequence[str]) -> list[str]:
    """One sentence an eval whose texts are known and among what was `seen` (`leakage.seen_hashes`)."""
    problems = []
    for metric in recipe.evals if seen else []:
        asked = [(str(number), text) for number, text in enumerate(metric.texts(), 1)]
        found = overlaps(asked, seen)
        if found:
            problems.append(
                f"calibration: its data holds {len(found)} of the {len(asked)} texts of the eval {metric.name!r}, "
                f"number {found[0]} first: the variant would have seen the examination. Take them out of one of the "
                "two, or set calibration.allow_overlap: true"
            )
    return problems
