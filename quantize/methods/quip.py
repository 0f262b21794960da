"""QuIP's rotations (Tseng et al. 2024, arXiv:2402.04396): rotate every Linear's inputs, and outputs, then round.

Unlike SpinQuant's, these rotations are not between two Linears but around each, so that they fit any architecture and
every one of them has to be undone while serving: engines that do not know them answer nonsense. The lattice codebooks
of QuIP# are no part of it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import rotation_problems
from quantize.methods._llmcompressor import LIBRARIES, ROTATED
from quantize.methods.gptq import Gptq
from quantize.methods.rtn import Rtn
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Quip"]


class Quip(Record):
    """QuIP's rotations by llm-compressor, and the method that rounds afterwards."""

    kind: Literal["quip"] = "quip"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    rotations: Annotated[
        tuple[Literal["v", "u"], ...], Field(min_length=1, description="`v` rotates inputs, `u` outputs.")
    ] = ("v",)
    transform: Literal["hadamard", "random-hadamard", "random-matrix"] = "random-hadamard"
    block_size: Annotated[
        int | None, Field(gt=1, description="Channels that are rotated together; unset: all of them.")
    ] = None
    then: Annotated[Rtn | Gptq, Field(discriminator="kind", description="What rounds the rotated model.")] = Rtn()

    @property
    def format(self) -> str:
        """The container on disk, which a reader must rotate activations for."""
        return ROTATED

    @property
    def calibrated(self) -> bool:
        """Where what comes after it is: rotating needs no data."""
        return self.then.calibrated

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return LIBRARIES

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """What `then` says, and rotations that fit the model's Linears."""
        shapes = {shape: [int(size) for size in shape.split("x")] for shape in facts.linears or {}}
        inputs = {f"the inputs of Linear {shape}": into for shape, (_, into) in shapes.items() if "v" in self.rotations}
        outputs = {f"the outputs of Linear {shape}": out for shape, (out, _) in shapes.items() if "u" in self.rotations}
        return self.then.problems(scheme, facts) or rotation_problems(
            "quip", self.transform, self.block_size, inputs | outputs
        )

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def modifiers(self, job: QuantizeJob) -> list[Any]:
        """What llm-compressor is told to do."""
        from llmcompressor.modifiers.transform import QuIPModifier

        rotating = QuIPModifier(
            rotations=list(self.rotations),
            transform_type=self.transform,
            transform_block_size=self.block_size,
            ignore=list(job.ignore),
        )
        return [rotating, *self.then.modifiers(job)]

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        from quantize.methods._llmcompressor import run

        run(job, self.modifiers)
