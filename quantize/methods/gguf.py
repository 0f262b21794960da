"""gguf: llama.cpp's own types, written by llama.cpp's own quantizer, for llama.cpp to serve.

A file type such as `Q4_K_M` is a mix: most matrices in Q4_K, those that matter most in Q6_K. K types search scale and
minimum of every block of 32 (or 16) weights in super-blocks of 256, IQ types take them from code books, legacy types
(`Q4_0`...) round to nearest. Where a row's length is no multiple of the block, llama.cpp takes the next larger type
that fits, so what was stored is read back from the file (`gguf_contents`).

The file is made from the unquantized GGUF file of the model and keeps its metadata: tokenizer, chat template, rope.
With an importance matrix (`imatrix: true`) rounding errors count as much as the inputs they are multiplied with.

`lm_head` in `ignore` has no meaning here: types of the output matrix and the embedding are the mix's, or those of
`output_type` and `token_embedding_type`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError
from quantize.handed import QuantizeJob
from quantize.methods._constraints import family_problems
from quantize.methods._gguf_call import ENVIRONMENT
from quantize.methods._gguf_convert import MODEL_FILE, card_of_variant, copy_beside, quantize_file
from quantize.methods._gguf_types import (
    NEED_IMPORTANCE,
    UNUSED_IMPORTANCE,
    TensorType,
    check_types,
    misfits,
    tensor_types,
)
from quantize.record import Record
from quantize.scheme import Scheme

__all__ = ["Gguf"]

_HEAD = "lm_head"
_UNREADABLE = "Report it with the model's name: transformers has no reader for this architecture's GGUF files."


class Gguf(Record):
    """GGUF by `llama_model_quantize`."""

    kind: Literal["gguf"] = "gguf"
    environment: ClassVar[str | None] = None
    tools: ClassVar[tuple[str, ...]] = (ENVIRONMENT,)
    imatrix: Annotated[
        bool, Field(description="Weigh rounding errors by an importance matrix of the calibration tokens.")
    ] = False
    tensor_types: dict[str, TensorType] = Field(
        default_factory=dict,
        description="Regular expression, found in a tensor's name (`blk\\.0\\.ffn_down`) -> that tensor's type.",
    )
    output_type: Annotated[TensorType | None, Field(description="Type of the output matrix.")] = None
    token_embedding_type: Annotated[TensorType | None, Field(description="Type of the token embedding.")] = None
    pure: Annotated[bool, Field(description="The one type for every matrix, no mix.")] = False

    @field_validator("tensor_types")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
        return value

    @property
    def format(self) -> Literal["gguf"]:
        """The container on disk."""
        return "gguf"

    @property
    def calibrated(self) -> bool:
        """With an importance matrix."""
        return self.imatrix

    @property
    def libraries(self) -> tuple[str, ...]:
        """None of the program's own: llama.cpp's build is the environment's."""
        return ()

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """GGUF types only; an importance matrix where llama.cpp asks for one, and not where it has no use for it."""
        found = family_problems("gguf", scheme, "gguf")
        if found:
            return found
        asked = [scheme.name, *self.tensor_types.values(), self.output_type, self.token_embedding_type]
        needing = sorted({name for name in asked if name in NEED_IMPORTANCE})
        if needing and not self.imatrix:
            found.append(
                f"{', '.join(needing)} cannot be found without an importance matrix: its rounding is too coarse to "
                "choose by the weights alone. Set method.imatrix: true and give calibration."
            )
        if self.imatrix and all(name in UNUSED_IMPORTANCE for name in asked if name is not None):
            found.append(f"{scheme.name} makes no use of an importance matrix. Leave method.imatrix out.")
        if self.pure and self.tensor_types:
            found.append("pure stores every matrix in one type, and tensor_types names others. Leave one of them out.")
        return found

    def notes(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """What is worth knowing before the run: shapes that the scheme's blocks do not fit, and what is stored."""
        return misfits(scheme, facts)

    def refusal(self, device: str) -> str | None:
        """None: quantizing runs on the CPU, beside whatever device there is."""
        return None

    def quantize(self, job: QuantizeJob) -> None:
        """Write `job.out`/model.gguf and the baseline's text files; the witness is the file's own weights, dequantized.

        llama.cpp has no quantized model in memory before it writes one. So the reference is an independent reading of
        the file: the Python package `gguf` expands it to float32, and transformers computes it.
        """
        from transformers import AutoConfig

        from quantize.gguf_file import read_gguf
        from quantize.gguf_model import dequantized

        if set(job.ignore) - {_HEAD}:
            raise QuantizeError(
                f"a GGUF file cannot leave out modules by name (ignore: {', '.join(job.ignore)}).",
                fix="Name tensors and their types in method.tensor_types, F16 for unquantized ones.",
            )
        if job.full is None:
            raise ValueError("the gguf method was given no unquantized GGUF file")
        with tempfile.TemporaryDirectory() as folder:
            types = tensor_types(self.tensor_types, job.full)
            options = self._options(job, types, Path(folder))
            written = job.out / MODEL_FILE
            quantize_file(job.full, written, job.scheme.name, Path(folder), job.host, job.progress, options=options)
        check_types(types, written)
        copy_beside(job.checkpoint, job.out)
        job.progress("expanding what was written", 0, None)
        config = AutoConfig.from_pretrained(job.checkpoint)
        job.witness(dequantized(read_gguf(written), config=config, fix=_UNREADABLE).eval())

    def _options(self, job: QuantizeJob, types: dict[str, str], folder: Path) -> dict[str, Any]:
        """What `quantize_file` is told beside the type; the importance matrix is laid out in `folder`."""
        import numpy as np

        from quantize.methods._gguf_imatrix import read_imatrix

        importance = None
        if self.imatrix:
            if job.importance is None:
                raise ValueError("the gguf method was given no importance matrix")
            importance = folder / "importance.npz"
            np.savez(importance, **read_imatrix(job.importance))  # type: ignore[arg-type]
        if job.full is None:
            raise ValueError("the gguf method was given no unquantized GGUF file")
        return {
            "output": self.output_type,
            "token_embedding": self.token_embedding_type,
            "pure": self.pure,
            "tensor_types": {f"^{re.escape(name)}$": kind for name, kind in types.items()},
            "metadata": card_of_variant(job.full, importance=importance is not None),
            "importance": None if importance is None else str(importance),
        }
