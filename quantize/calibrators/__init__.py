"""Calibrators: where calibration tokens come from. Each is one file; the union below is the whole list."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.calibrators._size import CalibrationSize, sized
from quantize.calibrators.dataset import Dataset
from quantize.calibrators.mixture import Mixture
from quantize.calibrators.self_ import Self
from quantize.calibrators.text import Text

__all__ = ["CalibrationSize", "CalibratorConfig", "Dataset", "Mixture", "Self", "Text", "sized"]

CalibratorConfig = Annotated[Self | Text | Dataset | Mixture, Field(discriminator="kind")]
