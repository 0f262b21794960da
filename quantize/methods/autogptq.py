"""GPTQ by AutoGPTQ, which introduced the format `gptq`. CUDA devices only.

AutoGPTQ is unmaintained and its successor, GPTQModel, writes the same format: method `gptqmodel` is the one to take.
This one is here for those who must repeat what AutoGPTQ did. It refuses to load a model where there is no CUDA device,
and works with libraries of its time only, in an environment of its own.

Those libraries read the configuration files of their time. What newer ones call by other names (the rotary settings,
the dtype) is therefore given to them under the old names as well, in a copy of config.json: a name that they do not
know they would pass over in silence, and compute with a default.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
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

__all__ = ["Autogptq"]

#: Widths that divide a word; the library packs 3 bits too, across words.
BITS = (2, 4, 8)


class Autogptq(Record):
    """GPTQ by AutoGPTQ; the fields are those of its BaseQuantizeConfig."""

    kind: Literal["autogptq"] = "autogptq"
    environment: ClassVar[str | None] = "autogptq"
    tools: ClassVar[tuple[str, ...]] = ()
    desc_act: Annotated[bool, Field(description="Round the columns with the largest activations first.")] = False
    static_groups: Annotated[
        bool, Field(description="Find all groups' scales before rounding: with desc_act, groups stay in order.")
    ] = False
    damp_percent: Annotated[
        float, Field(gt=0, lt=1, description="Added to the Hessian's diagonal, as a fraction of its mean.")
    ] = 0.01

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
        return ("auto-gptq", "torch", "transformers")

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """Symmetric integer weights only, whole groups, channels in blocks of 32."""
        first = (
            family_problems("autogptq", scheme, "compressed-tensors")
            or integer_problems("autogptq", scheme)
            or weight_only_problems("autogptq", scheme, BITS)
        )
        if first:
            return first
        if not scheme.symmetric:
            # It stores zero points less one; one of 0 becomes all ones and overwrites the rest of its word.
            return [f"autogptq packs zero points of 0 wrongly, which {scheme.name} has. Take W4A16, or gptqmodel."]
        return [*group_size_problems(scheme, facts), *packing_problems("autogptq", facts, inputs=32, outputs=32)]

    def refusal(self, device: str) -> str | None:
        """Why it cannot run on a CPU."""
        if device != "cpu":
            return None
        return "autogptq quantizes on CUDA devices only. Take method gptqmodel, its successor: the format is the same."

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`. Raises QuantizeError where it cannot leave a Linear alone."""
        import torch
        from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

        _know_new_tokenizers()
        with _for_old_libraries(job) as old:
            torch.manual_seed(job.seed)
            _, saved_dtype = dtypes(old)
            job.progress("loading", 0, None)
            wrapped = AutoGPTQForCausalLM.from_pretrained(
                str(old.checkpoint),
                BaseQuantizeConfig(
                    bits=job.scheme.weight_bits,
                    group_size=job.scheme.group_size or -1,
                    sym=job.scheme.symmetric,
                    desc_act=self.desc_act,
                    static_groups=self.static_groups,
                    damp_percent=self.damp_percent,
                    model_file_base_name="model",  # the name that transformers looks for
                ),
                torch_dtype=torch.float16,  # the dtype that its kernels, and the format's scales, have
                trust_remote_code=False,
            )
            _refuse_ignored_in_layers(wrapped, job)
            job.progress("quantizing", 0, None)
            rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in examples(job)]
            wrapped.quantize(rows, batch_size=1)
            settle_and_witness(old, wrapped.model, _dequantize, saved_dtype)
            job.progress("saving", 0, None)
            wrapped.save_quantized(str(job.out), use_safetensors=True)
        finish(job, lambda path: path.name == "quantize_config.json", _drop_places)
        place = job.out / "quantize_config.json"
        settings = json.loads(place.read_text(encoding="utf-8"))
        _drop_places(settings)
        place.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _know_new_tokenizers() -> None:
    """Let old releases of transformers load what newer ones saved: they know the class by another name."""
    import transformers

    if not hasattr(transformers, "TokenizersBackend"):
        transformers.TokenizersBackend = transformers.PreTrainedTokenizerFast


@contextmanager
def _for_old_libraries(job: QuantizeJob) -> Iterator[QuantizeJob]:
    """The job with a copy of its checkpoint, of links and a config.json that libraries of 2024 understand."""
    config = json.loads((job.checkpoint / "config.json").read_text(encoding="utf-8"))
    rotary = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rotary:
        config["rope_theta"] = rotary.pop("rope_theta")
    if rotary.get("rope_type", "default") != "default":
        config["rope_scaling"] = rotary
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    with tempfile.TemporaryDirectory() as folder:
        for path in job.checkpoint.iterdir():
            (Path(folder) / path.name).symlink_to(path.resolve())
        (Path(folder) / "config.json").unlink()
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield replace(job, checkpoint=Path(folder))


def _refuse_ignored_in_layers(wrapped: Any, job: QuantizeJob) -> None:
    """AutoGPTQ quantizes every Linear of a layer, and nothing else."""
    from quantize.methods._modules import linears

    inside = f"{wrapped.layers_block_name}."
    refused = [name for name in matching(linears(wrapped.model), job.ignore) if name.startswith(inside)]
    if refused:
        raise QuantizeError(
            f"AutoGPTQ cannot leave {refused[0]} alone: it quantizes every Linear of a layer.",
            fix="Take it out of the variant's `ignore`, or take method gptqmodel.",
        )


def _dequantize(module: Any) -> torch.Tensor:
    """The weight (out, in) of a packed Linear in its scales' dtype; the library has kernels only.

    Zero points are stored less one. `g_idx` is the group of each input channel.
    """
    import torch

    bits = module.bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=module.qweight.device)
    mask = 2**bits - 1
    integers = ((module.qweight[:, None, :] >> shifts[None, :, None]) & mask).flatten(0, 1)
    zeros = (((module.qzeros[:, :, None] >> shifts) & mask).flatten(1) + 1) & mask
    groups = module.g_idx.long()
    weight: torch.Tensor = (integers - zeros[groups]).to(module.scales.dtype) * module.scales[groups]
    return weight.T


def _drop_places(settings: dict[str, Any]) -> None:
    """Leave out where the files lay while they were written, and say which packing it is."""
    settings.pop("model_name_or_path", None)
    settings.pop("model_file_base_name", None)
    settings["quant_method"] = "gptq"
    settings["checkpoint_format"] = "gptq"
