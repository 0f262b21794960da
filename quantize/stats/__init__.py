"""Statistics of verdicts: pure functions on counts and arrays, each with its formula and source."""

from quantize.stats.betting import betting_lower_limit, betting_p_value, log_capital
from quantize.stats.clustered import FixedSample, clustered_test
from quantize.stats.exact import no_flips_p_value
from quantize.stats.intervals import Interval, document_bootstrap, mcnemar_p_value, wilson_interval
from quantize.stats.multiplicity import attempt_alpha, holm
from quantize.stats.needed import items_needed
from quantize.stats.paired import PairedTest, noninferiority
from quantize.stats.pairs import Pairs
from quantize.stats.path import confidence_path
from quantize.stats.planning import (
    PlannedSize,
    can_pass,
    clustered_no_flips_p_value,
    least_clusters,
    least_items,
    passing_probability,
    planning_table,
    sample_size,
    spent_alpha,
)
from quantize.stats.ratio import (
    DifferenceLimits,
    RatioInterval,
    blocks_for,
    blocks_needed,
    difference_limits,
    equivalent,
    ratio_interval,
    requests_needed,
    share_limits,
)
from quantize.stats.sequential import SequentialTest, judge_pairs, look

__all__ = [
    "DifferenceLimits",
    "FixedSample",
    "Interval",
    "PairedTest",
    "Pairs",
    "PlannedSize",
    "RatioInterval",
    "SequentialTest",
    "attempt_alpha",
    "betting_lower_limit",
    "betting_p_value",
    "blocks_for",
    "blocks_needed",
    "can_pass",
    "clustered_no_flips_p_value",
    "clustered_test",
    "confidence_path",
    "difference_limits",
    "document_bootstrap",
    "equivalent",
    "holm",
    "items_needed",
    "judge_pairs",
    "least_clusters",
    "least_items",
    "log_capital",
    "look",
    "mcnemar_p_value",
    "no_flips_p_value",
    "noninferiority",
    "passing_probability",
    "planning_table",
    "ratio_interval",
    "requests_needed",
    "sample_size",
    "share_limits",
    "spent_alpha",
    "wilson_interval",
]
