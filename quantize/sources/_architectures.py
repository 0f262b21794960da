"""Which architectures the installed transformers knows, without importing it: that takes seconds, and torch with it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["known_to_transformers"]

#: The files that list them.
_LISTS = ("auto_mappings.py", "configuration_auto.py")


def known_to_transformers(model_type: str) -> bool | None:
    """Whether a `model_type` is among them; None where their list is not found."""
    texts = _lists()
    return f'"{model_type}"' in texts if texts else None


@cache
def _lists() -> str:
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent / "models" / "auto"
    return "".join((folder / name).read_text(encoding="utf-8") for name in _LISTS if (folder / name).is_file())
