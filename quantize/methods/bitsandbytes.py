"""bitsandbytes: weights in blocks of 4-bit values, or rows of 8-bit integers, found while loading and without data.

NF4 (Dettmers et al. 2023, arXiv:2305.14314) and FP4 store each weight as one of 16 values times its block's largest
magnitude, blocks of 64; `double_quant` stores those magnitudes in 8 bits too (4.13 bits a weight instead of 4.5). INT8
(Dettmers et al. 2022, arXiv:2208.07339) rounds each row of the weight, and each token's activations, except for the
input channels in which an activation is larger than `threshold`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems
from quantize.patterns import matching
from quantize.record import Record
from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = ["Bitsandbytes"]


class Bitsandbytes(Record):
    """bitsandbytes by transformers; the fields are those of its BitsAndBytesConfig."""

    kind: Literal["bitsandbytes"] = "bitsandbytes"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = ()
    double_quant: Annotated[
        bool, Field(description="NF4 and FP4: the blocks' largest magnitudes are themselves stored in 8 bits.")
    ] = True
    threshold: Annotated[
        float, Field(ge=0, description="INT8: channels with a larger activation are not rounded; 0 rounds all.")
    ] = 6.0

    @property
    def format(self) -> Literal["bitsandbytes"]:
        """The container on disk."""
        return "bitsandbytes"

    @property
    def calibrated(self) -> bool:
        """Never."""
        return False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        return ("bitsandbytes", "torch", "transformers")

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """Its own schemes only; blocks run over the ends of rows, so that they fit every model."""
        return family_problems("bitsandbytes", scheme, "bitsandbytes")

    def refusal(self, device: str) -> str | None:
        """None: runs on every device."""
        return None

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from quantize.methods._modules import linears, skeleton

        job.progress("loading", 0, None)
        torch.manual_seed(job.seed)
        saved_dtype = AutoConfig.from_pretrained(job.checkpoint).dtype or torch.float32
        on_cpu = job.device == "cpu"
        bare = skeleton(job.checkpoint)
        skipped = matching(linears(bare), job.ignore)
        _refuse_the_head(bare, skipped)
        model = AutoModelForCausalLM.from_pretrained(
            job.checkpoint,
            dtype=torch.float32 if on_cpu else saved_dtype,
            device_map="cpu" if on_cpu else "auto",
            quantization_config=self._config(job.scheme, skipped, saved_dtype),
        ).eval()
        for tensor in _unquantized(model):  # the witness answers with the numbers that are written
            tensor.data = tensor.data.to(saved_dtype).to(tensor.dtype)
        _compute_in_own_dtype(model)
        job.witness(model)
        job.progress("saving", 0, None)
        _save(model, saved_dtype, job)

    def _config(self, scheme: Scheme, skipped: list[str], compute_dtype: torch.dtype) -> Any:
        """The BitsAndBytesConfig of `scheme`; `compute_dtype` is what other programs will compute in."""
        from transformers import BitsAndBytesConfig

        if scheme.name == "INT8":
            return BitsAndBytesConfig(
                load_in_8bit=True, llm_int8_threshold=self.threshold, llm_int8_skip_modules=skipped
            )
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=scheme.name.lower(),
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=skipped,
        )


def _refuse_the_head(bare: Any, skipped: list[str]) -> None:
    """The output head is read row by row where texts are scored, and stays as it is."""
    head = bare.get_output_embeddings()
    name = next((name for name, module in bare.named_modules() if module is head), None)
    if name is not None and name not in skipped:
        raise QuantizeError(
            f"bitsandbytes would quantize the output head {name}.", fix=f"Put {name} into the variant's `ignore`."
        )


def _unquantized(model: Any) -> list[torch.Tensor]:
    """The tensors that are saved in the checkpoint's dtype: all but quantized weights and what belongs to them."""
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    quantized = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, kinds))
    return [
        tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and (name.endswith(".bias") or not name.startswith(quantized))
    ]


def _compute_in_own_dtype(model: Any) -> None:
    """Let 4-bit Linears compute in the model's dtype, as the engine lets them.

    The kernel for CPUs with AVX512-BF16 is left out: it computes in bfloat16 whatever it is asked for, and repacks the
    weights in place, nested scales unnested, so that what is saved afterwards is not what was found.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = model.dtype
            module.support_avx512bf16_for_cpu = False


def _save(model: Any, dtype: torch.dtype, job: QuantizeJob) -> None:
    """Cast what is not quantized to `dtype`, write the checkpoint."""
    from transformers import GenerationConfig

    from quantize.methods._text_files import copy_text_files

    for tensor in _unquantized(model):
        tensor.data = tensor.data.to(dtype)
    # transformers refuses to save generation settings that contradict each other; the file is copied as it is instead.
    model.generation_config = GenerationConfig()
    model.save_pretrained(job.out)
    copy_text_files(job.checkpoint, job.out)
