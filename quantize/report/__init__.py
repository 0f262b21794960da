"""Reports: a plan and a run's evidence, as terminal tables, Markdown and plain data."""

from __future__ import annotations

from quantize.report.markdown import markdown
from quantize.report.planning import plan_document, print_plan
from quantize.report.summary import Summary, summarise
from quantize.report.terminal import print_summary

__all__ = ["Summary", "markdown", "plan_document", "print_plan", "print_summary", "summarise"]
