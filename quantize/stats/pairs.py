"""The data of a paired verdict: differences in the order answered, what is still to come, and who belongs together.

A cluster (a passage, a conversation, a template) is the independent unit; where items are unclustered each is a cluster
of its own. Items come in a seeded order fixed before the run, cluster by cluster, and a look never cuts a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.errors import DataError
from quantize.stats.tango import Floats

Ints = NDArray[np.int64]
_ROUNDING = 1e-9  # a mean of several generations may leave [-1, 1] by this much


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Paired scores of a set of items of which the first n were answered by both arms, in the seeded order.

    differences: (n,) variant minus baseline, in [-1, 1], in the order answered.
    clusters: (n,) labels; items of one cluster stand together; all different where unclustered.
    possible: (m,) items not answered yet, in order: the greatest difference each could still have, 1 minus the
    baseline's score, in [0, 1].
    possible_clusters: (m,) their labels, none of which is in ``clusters``.
    binary: scores are 0 or 1 by construction.

    `DataError` for anything else, naming the item.
    """

    differences: Floats
    clusters: Ints
    possible: Floats
    possible_clusters: Ints
    binary: bool

    def __post_init__(self) -> None:
        _check_values("difference", self.differences, -1.0, binary=self.binary)
        _check_values("possible difference", self.possible, 0.0, binary=self.binary)
        _check_labels("differences", self.differences, self.clusters)
        _check_labels("possible differences", self.possible, self.possible_clusters)
        if len(self.differences) == 0:
            raise DataError("no item was answered by both arms", fix="Judge after the first look.")
        labels = np.concatenate([self.clusters, self.possible_clusters])
        starts = labels[np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))]
        found, times = np.unique(starts, return_counts=True)
        if (times > 1).any():
            raise DataError(
                f"cluster {found[times > 1][0]} does not stand together", fix="Order the items cluster by cluster."
            )
        if len(self.possible) and self.clusters[-1] == self.possible_clusters[0]:
            raise DataError(
                f"cluster {self.clusters[-1]} is answered only in part",
                fix="End every look with the last item of a cluster.",
            )

    @property
    def n(self) -> int:
        """Items answered."""
        return len(self.differences)

    @property
    def total(self) -> int:
        """Items answered and still to come."""
        return len(self.differences) + len(self.possible)

    @property
    def clustered(self) -> bool:
        """Whether any two items belong together."""
        return self.largest > 1

    @property
    def largest(self) -> int:
        """Items of the largest cluster of the whole set, answered or not."""
        labels = np.concatenate([self.clusters, self.possible_clusters])
        return int(np.unique(labels, return_counts=True)[1].max())

    def sums(self) -> tuple[Floats, Floats]:
        """Sum of the differences and number of items of each answered cluster, in order; both of shape (G,)."""
        return cluster_sums(self.differences, self.clusters)

    def possible_sums(self) -> tuple[Floats, Floats]:
        """The same of the clusters still to come, each item at its greatest possible difference."""
        return cluster_sums(self.possible, self.possible_clusters)


def cluster_sums(values: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """Sum and number of the ``values`` in each run of equal ``labels``."""
    if len(values) == 0:
        return np.zeros(0), np.zeros(0)
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    sizes = np.diff(starts, append=len(values)).astype(np.float64)
    return np.add.reduceat(values, starts), sizes


def _check_values(name: str, values: Floats, least: float, *, binary: bool) -> None:
    if values.ndim != 1:
        raise DataError(f"the {name}s have shape {values.shape}", fix="Give one number per item.")
    bad = ~((values >= least - _ROUNDING) & (values <= 1 + _ROUNDING))  # true for NaN as well
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"the {name} of item {place} is {values[place]}, not between {least:g} and 1",
            fix="Scores lie between 0 and 1; a NaN comes from the model's logits.",
        )
    if binary and (values != np.round(values)).any():
        place = int(np.flatnonzero(values != np.round(values))[0])
        raise DataError(
            f"the {name} of item {place} is {values[place]}, and scores are said to be 0 or 1",
            fix="Say binary=False for graded scores or means of several generations.",
        )


def _check_labels(name: str, values: Floats, labels: Ints) -> None:
    if labels.shape != values.shape:
        raise DataError(
            f"there are labels of shape {labels.shape} for {name} of shape {values.shape}",
            fix="Give one cluster label per item, all different where items are unclustered.",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"the labels of the {name} are {labels.dtype}, not integers", fix="Number the clusters.")
