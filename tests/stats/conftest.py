"""Full enumeration of paired outcomes, written independently of the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import multinomial

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Outcomes:
    """Every (losses, gains) that n items can give."""

    n: int
    losses: np.ndarray
    gains: np.ndarray

    def probabilities(self, flip_rate: float, difference: float) -> np.ndarray:
        rates = [(flip_rate - difference) / 2, (flip_rate + difference) / 2, 1 - flip_rate]
        counts = np.stack([self.losses, self.gains, self.n - self.losses - self.gains], axis=-1)
        return multinomial.pmf(counts, self.n, np.maximum(rates, 0.0))


@pytest.fixture(scope="session")
def outcomes() -> Callable[[int], Outcomes]:
    def enumerate_outcomes(n: int) -> Outcomes:
        losses, gains = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        possible = losses + gains <= n
        return Outcomes(n, losses[possible], gains[possible])

    return enumerate_outcomes
