"""Statistics of verdicts: pure functions on counts and arrays, each with its formula and source."""

from quantize.stats.exact import no_flips_p_value
from quantize.stats.intervals import Interval, document_bootstrap, mcnemar_p_value, wilson_interval
from quantize.stats.paired import PairedTest, noninferiority
from quantize.stats.planning import PlannedSize, least_items, passing_probability, planning_table, sample_size

__all__ = [
    "Interval",
    "PairedTest",
    "PlannedSize",
    "document_bootstrap",
    "least_items",
    "mcnemar_p_value",
    "no_flips_p_value",
    "noninferiority",
    "passing_probability",
    "planning_table",
    "sample_size",
    "wilson_interval",
]
