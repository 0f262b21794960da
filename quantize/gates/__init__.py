"""Gates: the recipe's rules. Each is pure: evidence in, finding out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.gates.benefit import Benefit
from quantize.gates.latency import Latency
from quantize.gates.limit import Limit
from quantize.gates.noninferiority import NonInferiority
from quantize.gates.slo import ServiceLevel

__all__ = ["Benefit", "GateConfig", "Latency", "Limit", "NonInferiority", "ServiceLevel"]

GateConfig = Annotated[NonInferiority | Limit | Latency | ServiceLevel | Benefit, Field(discriminator="kind")]
