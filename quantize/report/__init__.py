"""Reports: a plan, a run's evidence, a comparison, a capacity, as terminal tables, Markdown, a page and plain data."""

from __future__ import annotations

from quantize.report.benchmarks import Benchmarks, read_benchmarks
from quantize.report.capacities import Sizing, capacity_document, print_capacity, size_arms
from quantize.report.capacity_arms import LIMITED, read_arms
from quantize.report.contrasts import contrasts_document, print_contrasts
from quantize.report.files import report_files
from quantize.report.markdown import markdown
from quantize.report.page import page, read_sources
from quantize.report.planning import plan_document, print_plan
from quantize.report.summary import Summary, summarise
from quantize.report.terminal import print_summary
from quantize.report.timing import item_seconds

__all__ = [
    "LIMITED",
    "Benchmarks",
    "Sizing",
    "Summary",
    "capacity_document",
    "contrasts_document",
    "item_seconds",
    "markdown",
    "page",
    "plan_document",
    "print_capacity",
    "print_contrasts",
    "print_plan",
    "print_summary",
    "read_arms",
    "read_benchmarks",
    "read_sources",
    "report_files",
    "size_arms",
    "summarise",
]
