"""Methods: how a scheme's numbers are found. Each is one file; the union below is the whole list."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.methods.awq import Awq
from quantize.methods.gptq import Gptq
from quantize.methods.rtn import Rtn

__all__ = ["Awq", "Gptq", "MethodConfig", "Rtn"]

MethodConfig = Annotated[Rtn | Gptq | Awq, Field(discriminator="kind")]
