"""What the methods of a run were calibrated on, for the receipt: how much of what, and by which digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantize.record import digest
from quantize.report.page.reading import Reached

__all__ = ["calibrations"]

_STAGE = "calibrate"
_PACKING = {"pack": "documents end to end, every row full", "truncate": "a document a row, cut at the length"}


def calibrations(stages: Sequence[Reached]) -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    """Each stage that made tokens: what they were made of, and a line for each thing that is known of them."""
    for stage in stages:
        if stage.manifest is not None and stage.manifest.kind == _STAGE:
            yield stage.manifest.name, _lines(stage.manifest.summary)


def _lines(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of an artifact of an earlier release, what it tells."""
    longest, shortest = told["tokens"], told.get("shortest", told["tokens"])
    length = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
    yield "rows", f"{told['samples']:,} of {length} tokens, {told['distinct']:,} of them different"
    yield "tokens", f"{told.get('total_tokens', told['samples'] * longest):,}"
    yield from _source(told)
    for number, part in enumerate(told.get("parts", ()), start=1):
        share = f"{part['samples']:,} rows, {part['total_tokens']:,} tokens for a weight of {part['weight']:g}"
        what = "; ".join([share, *(f"{name}: {value}" for name, value in _source(part))])
        yield f"part {number}, {part['kind']}", what
    yield "sha256 over the rows' own", digest(told["rows"])


def _source(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "repo" in told:
        yield "dataset", f"{told['repo']} at {told['commit']}, split {told['split']}"
    if "packing" in told:
        yield "packing", _PACKING[told["packing"]]
        cut = f", {told['cut']:,} cut" if "cut" in told else ""
        yield "documents", f"{told['documents']:,} read, {told['empty']:,} empty{cut}"
