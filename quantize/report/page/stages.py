"""The stages of a run: what was done and what had been done before, when and on which device, and what it held."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.report.numbers import duration, size
from quantize.report.page.markup import Markup, element, joined
from quantize.report.page.reading import Reached

__all__ = ["stage_table"]

_HEADS = ("stage", "", "device", "time", "", "peak memory", "files", "made", "log", "key")
_TEXT = ("stage", "", "device", "log", "key")
_BAR = 180.0
#: A recipe of hundreds of variants has thousands of stages.
_STAGES = 400


def stage_table(stages: Sequence[Reached], seconds: float) -> Markup:
    """A row for each stage, its time also as a bar. `seconds` is what the whole run took."""
    if not stages:
        return Markup("")
    known = [stage.manifest.provenance.seconds for stage in stages if stage.manifest is not None]
    longest = max([*known, 1e-9])
    heads = [element("th", head, scope="col", class_=None if head in _TEXT else "number") for head in _HEADS]
    rows = [_row(stage, longest) for stage in stages[:_STAGES]]
    drawn = element(
        "table",
        element("caption", "Stages of the run", class_="hidden"),
        element("thead", element("tr", heads)),
        element("tbody", rows),
    )
    left = len(stages) - _STAGES
    return joined(
        element("p", _told(stages, seconds)),
        element("div", drawn, class_="scroll", tabindex="0", role="region", aria_label="Stages of the run"),
        element("p", f"{left:,} more stages are in run.json.", class_="note") if left > 0 else None,
    )


def _told(stages: Sequence[Reached], seconds: float) -> str:
    ran, again = ([s for s in stages if s.again is way] for way in (False, True))
    saved = sum(stage.manifest.provenance.seconds for stage in again if stage.manifest is not None)
    told = f"{len(ran)} {'stage' if len(ran) == 1 else 'stages'} ran in {duration(seconds)}."
    were = "was" if len(again) == 1 else "were"
    return (
        f"{told} {len(again)} {were} done before and taken from the store, which saved {duration(saved)}."
        if again
        else told
    )


def _row(stage: Reached, longest: float) -> Markup:
    made = stage.manifest.provenance if stage.manifest is not None else None
    state, took = "from the store" if stage.again else "ran", stage.took
    if made is None or stage.manifest is None:
        gone = element("td", "its artifact is not in the store any more", colspan="7")
        return element("tr", element("th", stage.label, scope="row"), element("td", "–"), gone, _key(stage))
    held = sum(file.size for file in stage.manifest.files)
    return element(
        "tr",
        element("th", stage.label, scope="row"),
        element("td", f"○ {state}" if stage.again else f"● {state}"),
        element("td", took.device if took is not None else ""),
        element("td", duration(made.seconds) if made.seconds >= 1 else f"{made.seconds:.1f} s", class_="number"),
        element("td", _bar(made.seconds / longest, again=stage.again)),
        element("td", size(made.peak_memory_bytes), class_="number"),
        element("td", size(held), class_="number"),
        element("td", _when(took.began, took.ended) if took is not None else _moment(made.created), class_="number"),
        element("td", element("code", took.log) if took is not None else ""),
        _key(stage),
    )


def _when(began: str, ended: str) -> str:
    """From when to when, in UTC; the date once, if one will do."""
    first, last = _moment(began), _moment(ended)
    return f"{first} – {last.partition(' ')[2] if last[:10] == first[:10] else last}"


def _moment(told: str) -> str:
    """`2026-11-29 14:02:07`, of an ISO time in UTC."""
    return told.replace("T", " ")[:19]


def _bar(share: float, *, again: bool) -> Markup:
    bar = element(
        "rect", x=0.5, y=1.5, width=max(1.0, (_BAR - 1) * share), height=7, class_="again" if again else "ran"
    )
    return element("svg", bar, width=_BAR, height=10, viewBox=f"0 0 {_BAR:g} 10", class_="bar", aria_hidden="true")


def _key(stage: Reached) -> Markup:
    return element("td", element("code", stage.key[:12], title=stage.key))
