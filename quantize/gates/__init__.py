"""Gates: the recipe's rules. Each is pure: evidence in, finding out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.gates.limit import Limit
from quantize.gates.noninferiority import NonInferiority

__all__ = ["GateConfig", "Limit", "NonInferiority"]

GateConfig = Annotated[NonInferiority | Limit, Field(discriminator="kind")]
