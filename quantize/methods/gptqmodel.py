"""GPTQ by GPTQModel, in the format `gptq` that AutoGPTQ introduced and most servers read.

The algorithm is that of `gptq` (Frantar et al. 2022, arXiv:2210.17323); what differs is the container, and that
GPTQModel reorders whole groups of columns by their activations (`act_group_aware`), which costs nothing while serving,
where `desc_act` reorders single columns and makes kernels look up each column's group.

It runs in an environment of its own, because its pins clash with those of the other libraries.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantize.artifact import ModelFacts
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems, group_size_problems, integer_problems
from quantize.methods._packed import (
    dtypes,
    examples,
    finish,
    packing_problems,
    settle_and_witness,
    weight_only_problems,
    words,
)
from quantize.patterns import matching
from quantize.record import Record
from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["Gptqmodel"]

#: Widths that the format packs and that kernels read.
BITS = (2, 3, 4, 8)


class Gptqmodel(Record):
    """GPTQ by GPTQModel; the fields are those of its QuantizeConfig. None leaves a field to the library."""

    kind: Literal["gptqmodel"] = "gptqmodel"
    environment: ClassVar[str | None] = "gptqmodel"
    tools: ClassVar[tuple[str, ...]] = ()
    desc_act: Annotated[bool, Field(description="Round the columns with the largest activations first.")] = False
    act_group_aware: Annotated[
        bool, Field(description="Reorder whole groups by their activations; not together with desc_act.")
    ] = True
    damp_percent: Annotated[
        float | None, Field(gt=0, lt=1, description="Added to the Hessian's diagonal, as a fraction of its mean.")
    ] = None
    mse: Annotated[
        float, Field(ge=0, description="Search each group's scale for the least error in this norm; 0 takes the range.")
    ] = 0.0

    @model_validator(mode="after")
    def _one_order(self) -> Gptqmodel:
        if self.desc_act and self.act_group_aware:
            raise ValueError("desc_act: true needs act_group_aware: false")
        return self

    @property
    def format(self) -> Literal["gptq"]:
        """The container on disk."""
        return "gptq"

    @property
    def calibrated(self) -> bool:
        """Always."""
        return True

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return ("gptqmodel", "torch", "transformers")

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """Integer weights only, whole groups, whole words."""
        full = words(scheme.weight_bits)
        return (
            family_problems("gptqmodel", scheme, "compressed-tensors")
            or integer_problems("gptqmodel", scheme)
            or weight_only_problems("gptqmodel", scheme, BITS)
            or [
                *group_size_problems(scheme, facts),
                *packing_problems("gptqmodel", facts, inputs=full, outputs=full),
            ]
        )

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        # Its loader needs two CPU workers; on two cores it would start one, and refuse to go on.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
        import torch
        from gptqmodel import GPTQModel

        from quantize.methods._modules import linears, skeleton

        torch.manual_seed(job.seed)
        arithmetic, saved_dtype = dtypes(job)
        ignored = matching(linears(skeleton(job.checkpoint)), job.ignore)
        job.progress("loading", 0, None)
        wrapped = GPTQModel.load(
            str(job.checkpoint),
            self._config(job.scheme, ignored),
            device=job.device,
            dtype=arithmetic,
            trust_remote_code=False,
        )
        job.progress("quantizing", 0, None)
        # Rows as they are: nothing sorted, nothing dropped for being short.
        wrapped.quantize(examples(job), calibration_sort=None, batch_size=1, calibration_data_min_length=1)
        settle_and_witness(job, wrapped.model, _dequantize, saved_dtype)
        job.progress("saving", 0, None)
        quantized = [name for name, module in wrapped.model.named_modules() if hasattr(module, "qweight")]
        wrapped.save(str(job.out))
        finish(job, lambda path: path.name == "quantize_config.json", _amend(quantized, ignored))

    def _config(self, scheme: Scheme, ignored: list[str]) -> Any:
        import re

        from gptqmodel import QuantizeConfig

        return QuantizeConfig(
            bits=scheme.weight_bits,
            group_size=scheme.group_size or -1,
            sym=scheme.symmetric,
            # Format `gptq` stores zero points less one in packed words, where a zero point of 0 borrows from its
            # neighbour: kernels that unpack first then read another number. Symmetric ones are never 0.
            format="gptq" if scheme.symmetric else "gptq_v2",
            desc_act=self.desc_act,
            act_group_aware=self.act_group_aware,
            mse=self.mse,
            dynamic={f"-:^{re.escape(name)}$": {} for name in ignored} or None,
            # The default writes layers to a temporary folder, whose name then stands in the checkpoint.
            offload_to_disk=False,
            **({} if self.damp_percent is None else {"damp_percent": self.damp_percent}),
        )


def _dequantize(module: Any) -> torch.Tensor:
    """The weight (out, in) of a packed Linear by the library's own arithmetic, float16.

    Packed for the format `gptq` its zero points are stored less one, and its arithmetic wants them as they are.
    """
    from gptqmodel.quantization import FORMAT
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    stored, version = module.qzeros.data, module.qzero_format()
    if module.format == FORMAT.GPTQ and version == 1:  # a module packed for `gptq_v2` says version 1 as well
        module.qzeros.data = stored.clone()
        convert_gptq_v1_to_v2_format_module(module, bits=module.bits, pack_dtype=module.pack_dtype)
    weight: torch.Tensor = type(module).dequantize_weight(module).T
    module.qzeros.data = stored
    module.qzero_format(format=version)
    return weight


def _amend(quantized: list[str], ignored: list[str]) -> Any:
    """What transformers must know where not every Linear of a block is packed: the names of those that are."""

    def change(settings: dict[str, Any]) -> None:
        in_blocks = [name for name in ignored if any(character.isdigit() for character in name)]
        if in_blocks:
            settings["modules_in_block_to_quantize"] = [quantized]

    return change
