"""Reports: a plan, a run's evidence and a comparison, as terminal tables, Markdown and plain data."""

from __future__ import annotations

from quantize.report.contrasts import contrasts_document, print_contrasts
from quantize.report.markdown import markdown
from quantize.report.planning import plan_document, print_plan
from quantize.report.summary import Summary, summarise
from quantize.report.terminal import print_summary
from quantize.report.timing import item_seconds

__all__ = [
    "Summary",
    "contrasts_document",
    "item_seconds",
    "markdown",
    "plan_document",
    "print_contrasts",
    "print_plan",
    "print_summary",
    "summarise",
]
