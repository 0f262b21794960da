"""Elements of HTML and SVG as text. Everything that is not markup already is escaped, here and nowhere else.

A page shows what models wrote and what an eval set holds, so any text may look like markup. There is no way to put text
into a page but as a child or an attribute of `element`; only what `element` and `joined` return is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

__all__ = ["Child", "Markup", "element", "inline", "joined", "shown"]

#: Elements that have no end tag.
_EMPTY = frozenset({"br", "col", "hr", "input", "link", "meta", "wbr"})
#: Characters that HTML forbids, half pairs that UTF-8 cannot hold, and marks that reorder the text behind them.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | None


def element(tag: str, /, *children: Child | Iterable[Child], **attributes: str | float | bool | None) -> Markup:
    """`<tag attributes>children</tag>`. None is left out, among children and among attributes.

    An attribute's `_` becomes `-` and one at its end is dropped: `class_`, `aria_label`. True stands for its own name.
    """
    told = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _EMPTY:
        return Markup(f"<{tag}{told}>")
    return Markup(f"<{tag}{told}>{joined(*children)}</{tag}>")


def joined(*children: Child | Iterable[Child]) -> Markup:
    """Children one after another; what is no markup is escaped."""
    parts = (part for child in children for part in ([child] if child is None or isinstance(child, str) else child))
    return Markup(
        "".join(
            part if isinstance(part, Markup) else escape(shown(part), quote=False) for part in parts if part is not None
        )
    )


def shown(text: str) -> str:
    """The text with each character that a page cannot hold, or that would hide others, as `[U+0000]`."""
    return _FORBIDDEN.sub(lambda found: f"[U+{ord(found.group()):04X}]", text)


def inline(tag: str, text: str) -> Markup:
    """The package's own style sheet or script, as it is: its bytes are what the page's policy names by digest."""
    if f"</{tag}" in text.lower():
        raise ValueError(f"what ends the element {tag} stands within it")
    return Markup(f"<{tag}>{text}</{tag}>")


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    key = name.rstrip("_").replace("_", "-")
    if not _NAME.fullmatch(key):
        raise ValueError(f"{key!r} is not the name of an attribute")
    if value is True:
        return f" {key}"
    told = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{escape(shown(told))}"'
