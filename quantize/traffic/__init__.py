"""Traffic: who asks, and how the answers are timed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.traffic.guidellm import GuideLLM
from quantize.traffic.in_process import InProcess

__all__ = ["GuideLLM", "InProcess", "TrafficConfig"]

TrafficConfig = Annotated[GuideLLM | InProcess, Field(discriminator="kind")]
