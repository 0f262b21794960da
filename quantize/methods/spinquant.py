"""SpinQuant (Liu et al. 2024, arXiv:2405.16406): rotate the model so that no channel sticks out, then round.

An orthogonal matrix and its inverse between two Linears cancel out, and what flows between them has its outliers spread
over all channels. `R1` (the residual stream) and `R2` (values, head by head) go into the weights and cost nothing while
serving. `R4` (before `down_proj`) has to be done while serving. The rotations here are Hadamard matrices, not learned.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import rotation_problems
from quantize.methods._llmcompressor import FORMAT, LIBRARIES, ROTATED
from quantize.methods.gptq import Gptq
from quantize.methods.rtn import Rtn
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Spinquant"]


class Spinquant(Record):
    """SpinQuant by llm-compressor, and the method that rounds afterwards."""

    kind: Literal["spinquant"] = "spinquant"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    rotations: Annotated[
        tuple[Literal["R1", "R2", "R4"], ...],
        Field(min_length=1, description="R1 and R2 go into the weights; R4 is left to the engine."),
    ] = ("R1", "R2")
    transform: Literal["hadamard", "random-hadamard", "random-matrix"] = "hadamard"
    block_size: Annotated[
        int | None, Field(gt=1, description="Channels that are rotated together; unset: all of them.")
    ] = None
    then: Annotated[Rtn | Gptq, Field(discriminator="kind", description="What rounds the rotated model.")] = Rtn()

    @property
    def format(self) -> str:
        """The container on disk; with R4 one that a reader must rotate activations for."""
        return ROTATED if "R4" in self.rotations else FORMAT

    @property
    def calibrated(self) -> bool:
        """Where what comes after it is: rotating needs no data."""
        return self.then.calibrated

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return LIBRARIES

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """What `then` says, and rotations that fit the model's widths."""
        sizes = {}
        if "R1" in self.rotations and facts.hidden_size is not None:
            sizes["the hidden size"] = facts.hidden_size
        return self.then.problems(scheme, facts) or rotation_problems(
            "spinquant", self.transform, self.block_size, sizes
        )

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.transform import SpinQuantModifier

        rotating = SpinQuantModifier(
            rotations=list(self.rotations), transform_type=self.transform, transform_block_size=self.block_size
        )
        return [rotating, *self.then.modifiers(job)]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._llmcompressor import run

        run(job, self.modifiers)
