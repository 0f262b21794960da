"""Calibrators: where calibration tokens come from. Each is one file; the union below is the whole list."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.calibrators.self_ import Self
from quantize.calibrators.text import Text

__all__ = ["CalibratorConfig", "Self", "Text"]

CalibratorConfig = Annotated[Self | Text, Field(discriminator="kind")]
