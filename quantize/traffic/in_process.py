"""Filled in by its author."""

from __future__ import annotations
from typing import ClassVar, Literal
from quantize.record import Record


class InProcess(Record):
    kind: Literal["in_process"] = "in_process"
    served: ClassVar[bool] = False
    environment: ClassVar[str | None] = None
