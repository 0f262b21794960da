"""AutoRound (Cheng et al. 2023, arXiv:2309.05516): learn, by the gradient's sign, which way each weight is rounded.

Layer by layer, `iters` steps change the rounding of every weight and the range of every group so that the layer's
output on the calibration text comes close to the original's. Time grows with `iters` times the number of layers.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, integer_problems, model_problems
from quantize.methods._llmcompressor import FORMAT, LIBRARIES
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Autoround"]


class Autoround(Record):
    """AutoRound by llm-compressor; the fields are those of its AutoRoundModifier. It tunes in bfloat16 where it can."""

    kind: Literal["autoround"] = "autoround"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    iters: Annotated[int, Field(gt=0, description="Steps of a layer; time grows with it.")] = 200
    batch_size: Annotated[int, Field(gt=0, description="Calibration rows of a step.")] = 8
    lr: Annotated[float | None, Field(gt=0, description="Size of a step; unset: 1 / iters.")] = None

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
        return ("auto-round", *LIBRARIES)

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """Integer weights only, and groups that fit the model."""
        return family_problems("autoround", scheme, FORMAT) or [
            *integer_problems("autoround", scheme),
            *model_problems(scheme, facts),
        ]

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.autoround import AutoRoundModifier

        from quantize.methods._llmcompressor import settings

        own = self.model_dump(exclude={"kind"})
        return [AutoRoundModifier(**settings(job), **own, enable_torch_compile=False)]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._llmcompressor import run

        with warnings.catch_warnings():
            # Where a CPU has no bfloat16 the library asks torch for autocast in float32, which is none.
            warnings.filterwarnings("ignore", message="In CPU autocast")
            run(job, self.modifiers)
