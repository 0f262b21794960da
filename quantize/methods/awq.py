"""AWQ (Lin et al. 2023, arXiv:2306.00978): scale up the channels that large activations meet, then round to nearest.

Scaling a channel up and its input down by the same factor leaves the model as it is but makes the rounding error of
that channel smaller. The factors are searched on a grid, each tried on the calibration text, so time grows with
`n_grid` times the number of calibration tokens. The layers that are scaled together are llm-compressor's mappings for
the architecture.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, integer_problems, model_problems
from quantize.methods._llmcompressor import FORMAT, LIBRARIES
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Awq"]


class Awq(Record):
    """AWQ by llm-compressor; the fields are those of its AWQModifier."""

    kind: Literal["awq"] = "awq"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    n_grid: Annotated[int, Field(gt=1, description="Points of the grid search; time grows with it.")] = 20
    duo_scaling: Annotated[
        bool | Literal["both"],
        Field(description="Whether the factors also look at the weights; `both` tries half of the grid each way."),
    ] = True

    @model_validator(mode="after")
    def _grid_has_two_ends(self) -> Awq:
        least = {True: 3, "both": 4, False: 2}[self.duo_scaling]
        if self.n_grid < least:
            raise ValueError(f"n_grid must be at least {least} with duo_scaling: {str(self.duo_scaling).lower()}")
        return self

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
        """Integer weights only, and groups that fit the model."""
        return family_problems("awq", scheme, FORMAT) or [
            *integer_problems("awq", scheme),
            *model_problems(scheme, facts),
        ]

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        from quantize.methods._llmcompressor import settings

        scaling = AWQModifier(n_grid=self.n_grid, duo_scaling=self.duo_scaling)
        return [scaling, QuantizationModifier(**settings(job))]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._cpu_shims import awq_without_accelerator
        from quantize.methods._llmcompressor import run

        with awq_without_accelerator():
            run(job, self.modifiers)
