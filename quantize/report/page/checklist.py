"""The review checklist of a variant that passed: every line with its evidence and where that lies."""

from __future__ import annotations

from quantize.report.page.markup import Child, element
from quantize.report.page.tables import clipped
from quantize.review import Checklist

__all__ = ["checklist"]

#: A line's state, as a mark, and in the colours of an outcome; what was not asked has none.
_SIGNS = {"met": ("✓", "pass"), "not met": ("✗", "fail"), "not asked": ("·", "")}
_SENTENCE = 600


def checklist(found: Checklist | None) -> Child:
    """The list, folded under a line that sums it up; nothing for a variant that has none."""
    if found is None:
        return None
    lines = []
    for line in found.lines:
        mark, outcome = _SIGNS[line.state]
        shade = f"word {outcome}".strip()
        told = [
            element("span", mark, class_=shade, aria_hidden="true"),
            " ",
            element("span", f"{line.state}: ", class_=shade),
            element("strong", line.name),
            f". {clipped(line.sentence, _SENTENCE)}",
            element("span", f" [{line.reference}]", class_="note") if line.reference else None,
        ]
        lines.append(element("li", *told))
    return element("details", element("summary", found.told()), element("ul", lines, class_="findings"))
