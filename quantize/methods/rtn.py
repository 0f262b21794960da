"""RTN, round to nearest: scales from each weight's own range, no data.

Nothing is searched for: a channel's (or group's) largest magnitude sets its scale and every weight goes to the nearest
grid point. It takes seconds, is close to lossless at 8 bits, and is the yardstick for the calibrated methods at 4.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, model_problems
from quantize.methods._llmcompressor import FORMAT, LIBRARIES
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Rtn"]


class Rtn(Record):
    """Round to nearest, by llm-compressor's QuantizationModifier."""

    kind: Literal["rtn"] = "rtn"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()

    @property
    def format(self) -> str:
        """The container on disk."""
        return FORMAT

    @property
    def calibrated(self) -> bool:
        """Not by itself: weight scales come from the weights. Schemes that store ranges of activations need tokens."""
        return False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return LIBRARIES

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """Every preset will do, as long as its groups fit the model."""
        return family_problems("rtn", scheme, FORMAT) + model_problems(scheme, facts)

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from quantize.methods._llmcompressor import settings

        return [QuantizationModifier(**settings(job))]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._llmcompressor import run

        run(job, self.modifiers)
