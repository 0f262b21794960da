"""The page as a whole: one file that loads nothing, in the order in which a reviewer asks.

A policy forbids everything but the one style sheet and the one script that the package ships, each by its digest. So
even text that got past the escaping could neither run nor fetch anything. Nothing is kept in the browser: a viewer may
show the page in a frame that has no storage.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from quantize.report.page.absent import absent
from quantize.report.page.divergence import divergences
from quantize.report.page.flips import flipped
from quantize.report.page.latency import latencies
from quantize.report.page.markup import Child, Markup, element, inline
from quantize.report.page.reading import Sources
from quantize.report.page.receipt import receipt
from quantize.report.page.slices import differences
from quantize.report.page.stages import stage_table
from quantize.report.page.tradeoff import trade_off
from quantize.report.page.verdicts import lead, verdicts

__all__ = ["MOST_BYTES", "page"]

#: A page is never larger.
MOST_BYTES = 3_000_000
#: The most that each part takes; what is left of the page is for the flips, and they take no more than `_FLIPS`.
_PARTS = {
    "verdicts": 950_000,
    "trade-off": 200_000,
    "slices": 300_000,
    "load": 400_000,
    "divergence": 250_000,
    "stages": 250_000,
    "receipt": 300_000,
}
_FLIPS, _SPARE = 1_600_000, 60_000


def page(sources: Sources) -> str:
    """The page of a run as HTML."""
    record = sources.record
    before: list[tuple[str, str, Markup | None]] = [
        ("verdicts", "Verdicts", verdicts(sources)),
        ("trade-off", "Trade-off", trade_off(record)),
        ("slices", "Differences by slice", differences(record)),
        ("load", "Under load", latencies(sources)),
    ]
    after = [
        ("divergence", "Divergence by position", divergences(sources.positions)),
        ("stages", "Stages", stage_table(sources.stages, record.seconds)),
        ("receipt", "Receipt", receipt(sources)),
    ]
    first, last = ([_bounded(sources, *part) for part in parts] for parts in (before, after))
    taken = sum(len(drawn.encode()) for _, _, drawn in (*first, *last))
    flips = flipped(sources, min(_FLIPS, MOST_BYTES - taken - _SPARE)) or absent("flips", sources)
    return _document(sources, [*first, ("flips", "Answers that flipped", flips), *last])


def _bounded(sources: Sources, name: str, title: str, drawn: Markup | None) -> tuple[str, str, Markup]:
    """A part, or a sentence in its place where there is nothing in it, or more than there may be."""
    if not drawn:
        return name, title, absent(name, sources)
    run = sources.record.run
    told = f"This part would be too large for a page. It is in run.json, and quantize report {run} shows its numbers."
    return name, title, drawn if len(drawn.encode()) <= _PARTS[name] else element("p", told)


def _document(sources: Sources, sections: list[tuple[str, str, Markup]]) -> str:
    style, script = (_own(name) for name in ("page.css", "page.js"))
    title = f"{sources.record.recipe} on {sources.record.device}"
    head: list[Child] = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}: quantize report"),
        element("link", rel="icon", href="data:,"),
        inline("style", style),
    ]
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    body: list[Child] = [
        element("a", "Skip to the verdicts", href="#verdicts", class_="skip"),
        element(
            "header",
            element("h1", title),
            element("p", lead(sources.record), class_="lead"),
            element(
                "p", f"{sources.record.run}, started {sources.record.started} by {sources.record.actor}", class_="run"
            ),
            element("nav", element("ul", links), aria_label="Sections"),
            element("button", "Theme: as the system", id="theme", type="button", hidden=True),
        ),
        element("main", [_section(*section) for section in sections]),
        inline("script", script),
    ]
    told = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{told}\n"


def _section(name: str, heading: str, drawn: Markup) -> Markup:
    return element(
        "section", element("h2", heading, id=f"{name}-heading"), drawn, id=name, aria_labelledby=f"{name}-heading"
    )


def _policy(style: str, script: str) -> str:
    """Nothing but these two, by digest."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
