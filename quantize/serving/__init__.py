"""Files that serve a promoted artifact: a script for each engine that takes its format, and a page beside them."""

from __future__ import annotations

from quantize.serving.files import pick_draft, write_serving
from quantize.serving.model import Limits, Served, Shape, describe, read_shape
from quantize.serving.sizing import CARDS, Size, kv_bytes_per_token, size_for

__all__ = [
    "CARDS",
    "Limits",
    "Served",
    "Shape",
    "Size",
    "describe",
    "kv_bytes_per_token",
    "pick_draft",
    "read_shape",
    "size_for",
    "write_serving",
]
