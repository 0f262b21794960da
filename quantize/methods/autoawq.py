"""AWQ by AutoAWQ, in the format `awq` (version GEMM) that most servers read.

The algorithm is that of `awq` (Lin et al. 2023, arXiv:2306.00978), with a search for the clipping range on top
(`apply_clip`). AutoAWQ is archived and names llm-compressor as its successor; it is here for those who must ship its
format. Its releases know the architectures of their time only.

It runs in an environment of its own. On a CPU nearly all the time goes into the clipping search: 42 s of one core for a
layer of a 135M model, and 2 s without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, group_size_problems, integer_problems
from quantize.methods._packed import (
    dtypes,
    examples,
    finish,
    packing_problems,
    settle_and_witness,
    weight_only_problems,
)
from quantize.patterns import matching
from quantize.record import Record
from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["Autoawq"]

#: Group sizes that kernels for the format read.
GROUP_SIZES = (32, 64, 128)


class Autoawq(Record):
    """AWQ by AutoAWQ; the fields are those of its `quantize`."""

    kind: Literal["autoawq"] = "autoawq"
    environment: ClassVar[str | None] = "autoawq"
    tools: ClassVar[tuple[str, ...]] = ()
    even_rows: ClassVar[bool] = True
    duo_scaling: Annotated[bool, Field(description="Whether the factors also look at the weights.")] = True
    apply_clip: Annotated[bool, Field(description="Whether each group's range is searched for too; slow on a CPU.")] = (
        True
    )
    n_parallel_calib_samples: Annotated[
        int | None, Field(gt=0, description="Rows that go through a layer together; None: all. Fewer take less memory.")
    ] = None

    @property
    def format(self) -> Literal["awq"]:
        """The container on disk."""
        return "awq"

    @property
    def calibrated(self) -> bool:
        """Always."""
        return True

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return ("autoawq", "torch", "transformers")

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """4-bit integers with zero points, whole groups of a known size, whole words."""
        first = (
            family_problems("autoawq", scheme, "compressed-tensors")
            or integer_problems("autoawq", scheme)
            or weight_only_problems("autoawq", scheme, (4,))
        )
        if first:
            return first
        if scheme.symmetric:
            return [f"autoawq stores zero points and {scheme.name} has none. Take W4A16_ASYM, or method awq."]
        if scheme.group_size not in GROUP_SIZES:
            known = " or ".join(map(str, GROUP_SIZES))
            return [f"kernels for the format awq know groups of {known}, not {scheme.group_size}. Set group_size."]
        return [*group_size_problems(scheme, facts), *packing_problems("autoawq", facts, inputs=1, outputs=8)]

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`. Raises QuantizeError where it cannot leave a Linear alone."""
        import torch
        from awq import AutoAWQForCausalLM

        from quantize.methods._cpu_shims import autoawq_without_accelerator

        torch.manual_seed(job.seed)
        arithmetic, saved_dtype = dtypes(job)
        rows = examples(job)
        job.progress("loading", 0, None)
        wrapped = AutoAWQForCausalLM.from_pretrained(
            str(job.checkpoint), torch_dtype=arithmetic, trust_remote_code=False, safetensors=True, device_map=None
        )
        _refuse_ignored_in_layers(wrapped, job)
        job.progress("quantizing", 0, None)
        with autoawq_without_accelerator():
            wrapped.quantize(
                quant_config={
                    "zero_point": True,
                    "q_group_size": job.scheme.group_size,
                    "w_bit": job.scheme.weight_bits,
                    "version": "GEMM",
                },
                calib_data=rows,
                max_calib_samples=len(rows),
                max_calib_seq_len=len(rows[0]),  # rows are joined and cut again to this length: they stay what they are
                duo_scaling=self.duo_scaling,
                apply_clip=self.apply_clip,
                n_parallel_calib_samples=self.n_parallel_calib_samples,
            )
        settle_and_witness(job, wrapped.model, _dequantize, saved_dtype)
        job.progress("saving", 0, None)
        wrapped.save_quantized(str(job.out))
        finish(job, lambda _: False, lambda _: None)


def _refuse_ignored_in_layers(wrapped: Any, job: QuantizeJob) -> None:
    """AutoAWQ scales the Linears of a layer together and fails, without saying why, where one is left out."""
    from quantize.methods._modules import linears

    names = linears(wrapped.model)
    inside = {
        f"{name}.{inner}" if inner else name
        for layer in wrapped.get_model_layers(wrapped.model)
        for name in [next(name for name, module in wrapped.model.named_modules() if module is layer)]
        for inner in linears(layer)
    }
    refused = [name for name in matching(names, job.ignore) if name in inside]
    if refused:
        raise QuantizeError(
            f"AutoAWQ cannot leave {refused[0]} alone: it scales the Linears of a layer together.",
            fix="Take it out of the variant's `ignore`, or take method awq.",
        )


def _dequantize(module: Any) -> torch.Tensor:
    """The weight (out, in) of a WQLinear_GEMM by the library's own arithmetic, float16."""
    from awq.utils.packing_utils import dequantize_gemm

    weight: torch.Tensor = dequantize_gemm(
        module.qweight, module.qzeros, module.scales, module.w_bit, module.group_size
    ).T
    return weight
