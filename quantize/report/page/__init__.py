"""A run as one HTML page that loads nothing: for reviewers, from disk or in MLflow's artifact viewer."""

from __future__ import annotations

from quantize.report.page.document import MOST_BYTES, page
from quantize.report.page.reading import Sources, read_sources

__all__ = ["MOST_BYTES", "Sources", "page", "read_sources"]
