"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round column by column, and let the columns not yet rounded make up.

The correction needs the Hessian of each layer's output error, the calibration inputs' second moments, so this method is
as good as its calibration text is like what the model will see. On a CPU most of the time is the column loop, for which
llm-compressor is given a faster one that computes the same bits (`_gptq_block.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, integer_problems, model_problems
from quantize.methods._llmcompressor import FORMAT, LIBRARIES
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Gptq"]


class Gptq(Record):
    """GPTQ by llm-compressor; the fields are those of its GPTQModifier."""

    kind: Literal["gptq"] = "gptq"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    dampening_frac: Annotated[
        float, Field(gt=0, lt=1, description="Added to the Hessian's diagonal, as a fraction of its mean.")
    ] = 0.01
    block_size: Annotated[int, Field(gt=0, description="Columns that are rounded in one pass.")] = 128
    actorder: Annotated[
        Literal["static", "weight"] | None,
        Field(description="`static` (also called `weight`): columns with the largest activations first."),
    ] = "static"

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
        return family_problems("gptq", scheme, FORMAT) or [
            *integer_problems("gptq", scheme),
            *model_problems(scheme, facts),
        ]

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.gptq import GPTQModifier

        from quantize.methods._gptq_block import register
        from quantize.methods._llmcompressor import settings

        register()
        own = self.model_dump(exclude={"kind"})
        return [GPTQModifier(**settings(job), **own)]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._llmcompressor import run

        run(job, self.modifiers)
