"""Executors: how one stage's command is run with its resources."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.executors.local import Local
from quantize.executors.ray import Ray

__all__ = ["ExecutorConfig", "Local", "Ray"]

ExecutorConfig = Annotated[Local | Ray, Field(discriminator="kind")]
