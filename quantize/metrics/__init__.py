"""Metrics: the evals of a recipe. Each measures one arm, and compares two arms' rows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.metrics._rows import read_rows
from quantize.metrics.items import Items
from quantize.metrics.lm_eval_task import LmEvalTask
from quantize.metrics.text import Text

__all__ = ["Items", "LmEvalTask", "MetricConfig", "Text", "read_rows"]

MetricConfig = Annotated[Items | LmEvalTask | Text, Field(discriminator="kind")]
