"""How often each rule of a verdict errs on variants that are worse by exactly the margin, and how often it delivers.

    python tests/bench/error_rates.py [--scale 1.0]

prints a Markdown table: rule, situation, nominal rate, measured rate (95 % Clopper-Pearson interval, or "enumerated").
Seeded: the same versions of numpy and scipy give the same table. ``--scale`` multiplies the numbers of repetitions.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "stats"))

from simulation import Gate, Situation, clopper_pearson, decided_passes, equal, promotes, unequal

from quantize.stats import (
    clustered_test,
    judge_pairs,
    least_clusters,
    log_capital,
    look,
    passing_probability,
    sample_size,
    spent_alpha,
)
from quantize.stats.exact import score_test_size

if TYPE_CHECKING:
    from collections.abc import Callable

ALPHA = 0.05
SMALL_LEVELS = (ALPHA, 0.01, 0.003)  # of later attempts


def row(rule: str, situation: str, nominal: str, measured: str) -> None:
    print(f"| {rule} | {situation} | {nominal} | {measured} |", flush=True)


def enumerated(rule: str, situation: str, nominal: float, rate: float) -> None:
    row(rule, situation, f"≤ {nominal:.1%}", f"{rate:.2%} (enumerated)")


def simulated(rule: str, situation: str, nominal: str, hits: int, runs: int) -> None:
    low, high = clopper_pearson(hits, runs)
    row(rule, situation, nominal, f"{hits / runs:.2%} ({low:.2%} to {high:.2%}; {runs} runs)")


def repeated(seed: int, runs: int, experiment: Callable[[np.random.Generator, int], bool]) -> int:
    random = np.random.default_rng(seed)
    return sum(experiment(random, run) for run in range(runs))


def enumerations() -> None:
    for n, margin, alpha in ((150, 0.02, 0.05), (222, 0.02, 0.05), (680, 0.02, 0.04), (2000, 0.02, 0.05)):
        flips = margin + (1 - margin) * np.linspace(0, 1, 60) ** 3
        worst = max(passing_probability(n, margin, alpha, float(rate), -margin) for rate in flips)
        enumerated("exact", f"{n} items, margin {margin:.0%}, worst of 60 flip rates", alpha, worst)
    for n in (222, 2001, 5000):
        used = "" if n > 2000 else " (not used at this size)"
        enumerated("Tango" + used, f"{n} items, margin 2%, worst flip rate", ALPHA, score_test_size(n, 0.02, ALPHA))
    groups = least_clusters(0.05, ALPHA, 4, 4)
    rate = (1 - 0.05) ** groups
    enumerated("no cluster differs", f"{groups} clusters of 4, whole clusters lost, margin 5%", ALPHA, rate)


def bets(scale: float) -> None:
    runs, n = int(4000 * scale), 600
    for margin, flips in ((0.02, 0.02), (0.02, 0.06), (0.05, 0.15)):
        draw = np.random.default_rng(0).random((runs, n))
        lost, gained = (flips + margin) / 2, (flips - margin) / 2
        differences = np.where(draw < lost, -1.0, np.where(draw < lost + gained, 1.0, 0.0))
        hits = [0, 0]
        for part in np.array_split(differences, max(1, runs // 200)):
            up = log_capital(part, np.ones(n), 1.0, -margin).max(axis=1)
            down = log_capital(-part, np.ones(n), 1.0, margin).max(axis=1)
            hits[0] += int((up >= -math.log(0.2 * ALPHA)).sum())
            hits[1] += int((down >= -math.log(0.05)).sum())
        what = f"{n} items, margin {margin:.0%}, {flips:.0%} flip, a look after every item"
        simulated("early pass alone", what, "≤ 1.0%", hits[0], runs)
        simulated("early fail alone", what, "≤ 5.0%", hits[1], runs)


CLUSTERED = [
    ("100 clusters of 4, 15% flip", Situation(equal(4, 100), 0.15, -0.05, 0.2), 0.05),
    ("100 clusters of 4, losses alone", Situation(equal(4, 100), 0.05, -0.05, 0.2), 0.05),
    ("70 clusters of 10, 15% flip", Situation(equal(10, 70), 0.15, -0.05, 0.2), 0.05),
    ("300 clusters of 1 to 12, 12% flip", Situation(unequal(300, 12), 0.12, -0.05, 0.2), 0.05),
    ("300 clusters of 1 to 12, losses alone", Situation(unequal(300, 12), 0.05, -0.05, 0.2), 0.05),
    ("1000 clusters of 1 to 40, 12% flip", Situation(unequal(1000, 40), 0.12, -0.05, 0.2), 0.05),
    ("600 graded items, noise on 20%", Situation(equal(1, 600), 0.2, -0.02, graded=True), 0.02),
    ("110 clusters of 3, 20% flip", Situation(equal(3, 110), 0.2, -0.08, 0.5), 0.08),
    ("300 graded items, noise on 2%", Situation(equal(1, 300), 0.02, -0.05, graded=True), 0.05),
]


def clusters(scale: float) -> None:
    runs = int(1500 * scale)
    for what, situation, margin in CLUSTERED:
        samples = np.random.default_rng(1)
        p_values = []
        naive = 0
        for run in range(runs):
            sample = situation.complete(samples)
            p_values.append(clustered_test(*sample.sums(), margin, ALPHA, seed=run).p_value)
            d = sample.differences
            naive += float(d.mean()) + margin > 1.6449 * float(d.std(ddof=1)) / math.sqrt(len(d))
        for level in SMALL_LEVELS if situation.uneven >= 0.5 else (ALPHA,):
            hits = int((np.array(p_values) <= level).sum())
            simulated("clusters (bootstrap-t, bet)", f"{what}, margin {margin:.0%}", f"{level:.1%}", hits, runs)
        if situation.uneven < 1 and situation.flips > 0.1:
            simulated("z-test of items (not used)", what, "5.0%", naive, runs)


def gates(scale: float) -> None:
    runs = int(10000 * scale)
    for n, margin, flips in ((300, 0.02, 0.02), (680, 0.02, 0.06), (2000, 0.02, 0.06), (600, 0.05, 0.15)):
        passed = decided_passes(np.random.default_rng(2), n, margin, ALPHA, flips, -margin, runs)
        what = f"{n} items, margin {margin:.0%}, {flips:.0%} flip, a look after every item"
        simulated("one gate with early stopping", what, "≤ 5.0%", int(passed.sum()), runs)
    for what, situation, margin in (CLUSTERED[0], CLUSTERED[3], CLUSTERED[6]):
        runs = int(2000 * scale)
        hits = repeated(3, runs, lambda r, _, s=situation, m=margin: stepwise(r, s, m) == "pass")
        simulated("one gate with early stopping", f"{what}, margin {margin:.0%}, looks of 48", "≤ 5.0%", hits, runs)


def stepwise(random: np.random.Generator, situation: Situation, margin: float) -> str:
    """The outcome of one gate, asked after each look."""
    baseline = situation.baseline(random)
    answers = situation.answers(random, baseline)
    stops = (
        end
        for end in situation.looks(48)
        if look(situation.pairs(answers, baseline, end), margin, ALPHA) is not None
    )  # fmt: skip
    return judge_pairs(situation.pairs(answers, baseline, next(stops, None)), margin, ALPHA).outcome


def promotions(scale: float) -> None:
    """Every variant is at the margin of one gate and better on the other: the worst case of "all must pass"."""
    plain = [Gate(Situation(equal(1, 90), 0.16, -0.08), 0.08), Gate(Situation(equal(1, 90), 0.06, 0.05), 0.08)]
    losses = [Gate(Situation(equal(1, 90), 0.08, -0.08), 0.08), Gate(Situation(equal(1, 90), 0.06, 0.05), 0.08)]
    grouped = [
        Gate(Situation(equal(3, 110), 0.2, -0.08, 0.5), 0.08),
        Gate(Situation(equal(3, 110), 0.06, 0.05, 0.5), 0.08),
    ]
    for what, which, variants, attempts, runs in (
        ("mixed flips, 2 variants, 3 attempts", plain, 2, 3, 2000),
        ("losses alone, 2 variants, 3 attempts", losses, 2, 3, 2000),
        ("mixed flips, 1 variant, 5 attempts", plain, 1, 5, 2000),
        ("mixed flips, 4 variants, 1 attempt", plain, 4, 1, 2000),
        ("clusters of 3, 2 variants, 3 attempts", grouped, 2, 3, 1000),
    ):
        count = int(runs * scale)
        size = 40 if which is grouped else 30
        hits = repeated(
            4,
            count,
            lambda r, _, g=which, v=variants, a=attempts, i=size: promotes(r, g, variants=v, attempts=a, look_items=i),
        )
        simulated("series of promotions", what, "≤ 5.0%", hits, count)


def power(scale: float) -> None:
    runs = int(4000 * scale)
    for margin, flips in ((0.02, 0.01), (0.02, 0.03), (0.02, 0.06), (0.05, 0.10)):
        alpha = spent_alpha(ALPHA, early=0.0)
        n = sample_size(margin, flips, spent_alpha(ALPHA))
        passed = decided_passes(np.random.default_rng(5), n, margin, alpha, flips, 0.0, runs)
        what = f"planned {n} items, margin {margin:.0%}, {flips:.0%} flip, no true difference, first attempt"
        simulated("power", what, "≥ 90%", int(passed.sum()), runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of repetitions")
    scale = parser.parse_args().scale
    print("| rule | situation | nominal | measured |\n|---|---|---|---|", flush=True)
    enumerations()
    bets(scale)
    clusters(scale)
    gates(scale)
    promotions(scale)
    power(scale)


if __name__ == "__main__":
    main()
