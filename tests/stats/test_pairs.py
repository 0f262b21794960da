"""What a set of pairs refuses, and how it is cut into clusters."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.errors import DataError
from quantize.stats import Pairs


def pairs(differences, clusters=None, possible=(), possible_clusters=None, *, binary=False):
    n = len(differences)
    clusters = range(n) if clusters is None else clusters
    rest = range(n, n + len(possible)) if possible_clusters is None else possible_clusters
    values = [np.array(list(x), dtype=float) for x in (differences, possible)]
    labels = [np.array(list(x), dtype=np.int64) for x in (clusters, rest)]
    return Pairs(values[0], labels[0], values[1], labels[1], binary=binary)


def test_sums_and_sizes_follow_the_order_of_the_clusters():
    sample = pairs([0.5, -0.5, 1.0, 0.25], [7, 7, 2, 9], [1.0, 0.5, 0.0], [4, 4, 1])
    sums, sizes = sample.sums()
    assert sums.tolist() == [0.0, 1.0, 0.25]
    assert sizes.tolist() == [2, 1, 1]
    sums, sizes = sample.possible_sums()
    assert sums.tolist() == [1.5, 0.0]
    assert sizes.tolist() == [2, 1]
    assert (sample.n, sample.total, sample.clustered, sample.largest) == (4, 7, True, 2)


def test_the_largest_cluster_may_be_one_that_is_not_answered_yet():
    sample = pairs([0.0, 1.0], [0, 1], [1.0, 1.0, 0.0], [5, 5, 5])
    assert sample.clustered
    assert sample.largest == 3
    assert not pairs([0.0, 1.0], possible=[1.0]).clustered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, float("nan")],), "difference of item 1 is nan"),
        (([1.5],), "difference of item 0 is 1.5"),
        (([0.0, -1.1],), "difference of item 1 is -1.1"),
        (([0.0], None, [float("nan")]), "possible difference of item 0 is nan"),
        (([0.0], None, [0.3, -0.2]), "possible difference of item 1 is -0.2"),
        (([0.0], None, [1.2]), "possible difference of item 0 is 1.2"),
        (([],), "no item was answered"),
        (([0.0, 0.0], [1]), "labels of shape"),
        (([0.0], [1], [0.5, 0.5], [2]), "labels of shape"),
        (([0.0, 0.0, 0.0], [1, 2, 1]), "cluster 1 does not stand together"),
        (([0.0, 0.0], [1, 2], [0.0, 0.0], [3, 1]), "cluster 1 does not stand together"),
        (([0.0, 0.0], [1, 2], [0.0, 0.0], [2, 3]), "cluster 2 is answered only in part"),
    ],
)
def test_samples_that_cannot_be_judged_are_refused(arguments, message):
    with pytest.raises(DataError, match=message) as refusal:
        pairs(*arguments)
    assert refusal.value.fix


def test_graded_scores_are_refused_where_binary_ones_are_promised():
    with pytest.raises(DataError, match=r"difference of item 1 is 0\.5"):
        pairs([1.0, 0.5], binary=True)
    with pytest.raises(DataError, match=r"possible difference of item 0 is 0\.25"):
        pairs([1.0], possible=[0.25], binary=True)


def test_arrays_of_another_shape_or_kind_are_refused():
    empty, labels = np.zeros(0), np.zeros(0, dtype=np.int64)
    with pytest.raises(DataError, match="have shape"):
        Pairs(np.zeros((2, 2)), np.arange(2), empty, labels, binary=False)
    with pytest.raises(DataError, match="not integers"):
        Pairs(np.zeros(2), np.arange(2.0), empty, labels, binary=False)


def test_rounding_of_a_mean_is_no_error():
    assert pairs([1.0 + 1e-12, -1.0 - 1e-12], possible=[-1e-12, 1 + 1e-12]).total == 4
