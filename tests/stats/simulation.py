"""Experiments whose truth is known: variants at the margin, and gates and promotions as the program runs them.

Used by the tests and by `tests/bench/error_rates.py`. Every baseline is right with a probability of 0.6 where scores
are binary; losses hit only items that it had right, gains only those that it had wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from quantize.stats import Pairs, attempt_alpha, holm, judge_pairs, log_capital, look
from quantize.stats.exact import critical_score
from quantize.stats.tango import score

RIGHT = 0.6
GRADED_BASELINE = 0.6
GRADED_STEPS = np.array([-0.6, -0.2, 0.2])


@dataclass(frozen=True)
class Situation:
    """A kind of eval set and the flips of a variant whose true mean difference is ``difference``.

    sizes: items of each cluster. uneven: the share of clusters in which all flips happen (1: items independent).
    graded: scores in fifths, the baseline's all 0.6, a loss costs 0.6 and noise of ±0.2 hits ``flips`` of the items.
    """

    sizes: tuple[int, ...]
    flips: float
    difference: float
    uneven: float = 1.0
    graded: bool = False
    clusters: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rates = [(self.flips - self.difference) / 2 / RIGHT, (self.flips + self.difference) / 2 / (1 - RIGHT)]
        assert max(rates) <= self.uneven or self.graded, "more flips than the items could show"
        object.__setattr__(self, "clusters", np.repeat(np.arange(len(self.sizes)), self.sizes))

    def baseline(self, random: np.random.Generator) -> np.ndarray:
        """The baseline's score of each item."""
        if self.graded:
            return np.full(len(self.clusters), GRADED_BASELINE)
        return (random.random(len(self.clusters)) < RIGHT).astype(float)

    def answers(self, random: np.random.Generator, baseline: np.ndarray) -> np.ndarray:
        """A new variant's differences from that baseline."""
        busy = (random.random(len(self.sizes)) < self.uneven)[self.clusters] / self.uneven
        draw = random.random(len(baseline))
        if self.graded:
            loss = self.difference / GRADED_STEPS[0]
            steps = np.concatenate([GRADED_STEPS, [0.0]])
            ends = np.cumsum(np.array([loss, self.flips / 2, self.flips / 2]))[:, None] * busy
            return steps[(draw[None, :] >= ends).sum(axis=0)]
        lose = (self.flips - self.difference) / 2 / RIGHT * busy
        gain = (self.flips + self.difference) / 2 / (1 - RIGHT) * busy
        return np.where(baseline == 1, -(draw < lose).astype(float), (draw < gain).astype(float))

    def pairs(self, differences: np.ndarray, baseline: np.ndarray, answered: int | None = None) -> Pairs:
        """The first ``answered`` items (all by default); must end with a whole cluster."""
        n = len(differences) if answered is None else answered
        return Pairs(differences[:n], self.clusters[:n], 1 - baseline[n:], self.clusters[n:], binary=not self.graded)

    def looks(self, items: int) -> list[int]:
        """Numbers of items after which to look: at least ``items`` more each time, whole clusters, not the end."""
        ends, found = np.cumsum(self.sizes), [0]
        for end in ends[:-1]:
            if end - found[-1] >= items:
                found.append(int(end))
        return found[1:]

    def complete(self, random: np.random.Generator) -> Pairs:
        baseline = self.baseline(random)
        return self.pairs(self.answers(random, baseline), baseline)


def equal(items: int, clusters: int) -> tuple[int, ...]:
    return (items,) * clusters


def unequal(clusters: int, largest: int, seed: int = 0) -> tuple[int, ...]:
    """Lognormal cluster sizes, cut at ``largest``."""
    drawn = np.random.default_rng(seed).lognormal(0.8, 0.8, clusters)
    return tuple(int(size) for size in np.clip(np.ceil(drawn), 1, largest))


def clopper_pearson(hits: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval for the share of ``hits``."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(special.betaincinv(hits, runs - hits + 1, tail))
    high = 1.0 if hits == runs else float(special.betaincinv(hits + 1, runs - hits, 1 - tail))
    return low, high


def decided_passes(
    random: np.random.Generator, n: int, margin: float, alpha: float, flips: float, difference: float, runs: int,
    early: float = 0.2,
) -> np.ndarray:  # fmt: skip
    """Of many binary unclustered sets at once: which reach K+ >= 1/(early alpha) on the way, or pass at the end."""
    rates = [(flips - difference) / 2, (flips + difference) / 2]
    draw = random.random((runs, n))
    differences = np.where(draw < rates[0], -1.0, np.where(draw < sum(rates), 1.0, 0.0))
    z = score((differences < 0).sum(axis=1), (differences > 0).sum(axis=1), n, -margin)
    passed = z >= critical_score(n, margin, (1 - early) * alpha)
    for start in range(0, runs, 200):
        part = slice(start, start + 200)
        path = log_capital(differences[part], np.ones(n), 1.0, -margin).max(axis=-1)
        passed[part] |= path >= -math.log(early * alpha)
    return passed


@dataclass(frozen=True)
class Gate:
    situation: Situation
    margin: float


def ratio_of_attempt(
    random: np.random.Generator,
    gates: list[Gate],
    baselines: list[np.ndarray],
    alpha: float,
    *,
    choices: int,
    look_items: int,
) -> float:
    """One new variant through all its gates, in looks: the greatest p/alpha where every gate passes, else NaN.

    Stops as soon as one gate cannot be saved, or all say that they have passed.
    """
    answers = [gate.situation.answers(random, b) for gate, b in zip(gates, baselines, strict=True)]
    seen = [None] * len(gates)
    for ends in zip(*(gate.situation.looks(look_items) for gate in gates), strict=True):
        samples = [
            gate.situation.pairs(a, b, end) for gate, a, b, end in zip(gates, answers, baselines, ends, strict=True)
        ]
        said = [look(s, g.margin, alpha, choices=choices) for s, g in zip(samples, gates, strict=True)]
        if "fail" in said or "futile" in said or all(word == "pass" for word in said):
            seen = list(ends)
            break
    tests = [
        judge_pairs(gate.situation.pairs(a, b, end), gate.margin, alpha, choices=choices)
        for gate, a, b, end in zip(gates, answers, baselines, seen, strict=True)
    ]
    return max(t.p_value / alpha for t in tests) if all(t.outcome == "pass" for t in tests) else math.nan


def promotes(
    random: np.random.Generator,
    gates: list[Gate],
    *,
    variants: int,
    attempts: int,
    alpha: float = 0.05,
    look_items: int = 30,
) -> bool:
    """Whether a target ever takes one of several variants, each made anew and judged again on one eval set."""
    baselines = [gate.situation.baseline(random) for gate in gates]
    for attempt in range(1, attempts + 1):
        level = attempt_alpha(alpha, attempt)
        ratios = [
            ratio_of_attempt(random, gates, baselines, level, choices=variants, look_items=look_items)
            for _ in range(variants)
        ]
        if any(holm(ratios)):
            return True
    return False
