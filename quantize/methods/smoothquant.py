"""SmoothQuant (Xiao et al. 2023, arXiv:2211.10438): move what is hard to round from activations to weights.

A few channels of activations are far larger than the others, and one scale for a token serves them badly. Each channel
is divided by s and the weights that read it are multiplied by s, with s = max|x|^strength / max|w|^(1 - strength) over
the calibration text. The division goes into the norm before, so that serving costs nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._llmcompressor import FORMAT, LIBRARIES
from quantize.methods.gptq import Gptq
from quantize.methods.rtn import Rtn
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Smoothquant"]


class Smoothquant(Record):
    """SmoothQuant by llm-compressor, and the method that rounds afterwards."""

    kind: Literal["smoothquant"] = "smoothquant"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    strength: Annotated[
        float, Field(ge=0, le=1, description="0 leaves activations as they are, 1 moves all of it into the weights.")
    ] = 0.5
    then: Annotated[Rtn | Gptq, Field(discriminator="kind", description="What rounds the smoothed model.")] = Rtn()

    @property
    def format(self) -> str:
        """The container on disk."""
        return FORMAT

    @property
    def calibrated(self) -> bool:
        """Always."""
        return True

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return LIBRARIES

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """Schemes that round activations: without that there is nothing to smooth for. And what `then` says."""
        found = self.then.problems(scheme, facts)
        if found or not scheme.weight_only:
            return found
        return [f"smoothquant smooths activations and {scheme.name} does not round them. Take W8A8, or method awq."]

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        return [SmoothQuantModifier(smoothing_strength=self.strength), *self.then.modifiers(job)]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._llmcompressor import run

        run(job, self.modifiers)
