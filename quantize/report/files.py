"""The reports that a run keeps in its folder and logs to MLflow."""

from __future__ import annotations

from pathlib import Path

from quantize.report.markdown import markdown
from quantize.report.page import page, read_sources
from quantize.run import RunRecord
from quantize.store import Store

__all__ = ["report_files"]


def report_files(record: RunRecord, directory: Path, store: Store) -> dict[str, str]:
    """The texts of the run in `directory`, by the names of their files."""
    sources = read_sources(record, directory, store)
    return {"report.md": markdown(sources.summary), "report.html": page(sources)}
