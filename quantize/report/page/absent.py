"""What stands in a part of which there is nothing to draw: why, and what to add to the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.report.page.known import evidences
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.reading import Sources

__all__ = ["absent"]

_Words = tuple[str, str]  # a sentence, and a line of a recipe or nothing

_ITEMS = "evals: [{kind: items, name: facts, path: facts.jsonl}]"
#: How the sentences begin that tell what is missing of a part.
_LOST = {"load": "The requests sent", "flips": "The answers of", "divergence": "The divergence of"}
_TEXT = "evals: [{kind: text, name: prose, path: prose.txt}]"


def absent(part: str, sources: Sources) -> Markup:
    """A sentence in the place of a part, and in code what would give it something to show."""
    sentence, code = _WHY[part](sources)
    told: list[Child] = [sentence, *([" To the recipe: ", element("code", code), "."] if code else [])]
    lost = [element("p", text, class_="note") for text in sources.missing if text.startswith(_LOST.get(part, "\0"))]
    return joined(element("p", told, class_="absent"), lost)


def _nothing_measured(sources: Sources) -> bool:
    return not evidences(sources.record)


def _trade_off(sources: Sources) -> _Words:
    if _nothing_measured(sources):
        return "No variant came as far as an eval: nothing is gained or lost yet.", ""
    return "No share of right answers and no perplexity was measured, so size has nothing to stand against.", _ITEMS


def _slices(sources: Sources) -> _Words:
    if _nothing_measured(sources):
        return "No variant came as far as an eval.", ""
    told = "No eval of items was measured. An item's slice is judged and drawn apart."
    return told, _ITEMS


def _load(sources: Sources) -> _Words:
    if _asked(sources.resolved, "benchmark"):
        return "Nothing was measured under load: only variants that pass their evals are benchmarked.", ""
    known = ", as the recipe has no benchmark" if sources.resolved else ""
    return f"Nothing was measured under load{known}. A smaller model need not be a faster one.", "benchmark: {}"


def _flips(sources: Sources) -> _Words:
    if sources.flips:
        return "No answer changed: on every item each variant scored as the baseline did.", ""
    if any(text.startswith(_LOST["flips"]) for text in sources.missing):
        return "The answers cannot be compared any more.", ""
    if _nothing_measured(sources):
        return "No variant came as far as an eval.", ""
    return "No answers were compared, as the recipe has no eval of items.", _ITEMS


def _divergence(sources: Sources) -> _Words:
    texts = [told for told in sources.resolved.get("evals", ()) if told.get("kind") == "text"]
    if texts or not sources.resolved:
        return "The divergence of single positions is not on record.", ""
    return "No text was measured. On a text every position tells how far a variant is from the baseline.", _TEXT


def _stages(_: Sources) -> _Words:
    return "The record names no stage.", ""


def _asked(resolved: Mapping[str, Any], key: str) -> bool:
    return resolved.get(key) is not None


_WHY = {
    "trade-off": _trade_off,
    "slices": _slices,
    "load": _load,
    "flips": _flips,
    "divergence": _divergence,
    "stages": _stages,
}
