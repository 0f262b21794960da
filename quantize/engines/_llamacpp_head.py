"""The output head of a GGUF file: the matrix that llama.cpp applies to final hidden states, read from the file."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.engines.transformers import _scale_and_cap
from quantize.errors import QuantizeError
from quantize.gguf_file import gguf_reader
from quantize.handed import HeadParameters

if TYPE_CHECKING:
    import torch

__all__ = ["Head"]

#: How far two ways to the same logits may lie apart: a few times what the dtype of the arithmetic rounds to.
_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}

#: Names of the output matrix in Hugging Face checkpoints, and of the embedding that it may be tied to.
_OUTPUTS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
    "gpt_neox.embed_in.weight",
    "model.decoder.embed_tokens.weight",
    "backbone.embeddings.weight",
)


class Head:
    """`checkpoint` is a GGUF checkpoint's directory: scale and cap stand in its `config.json`."""

    def __init__(self, checkpoint: Path, vocabulary: int) -> None:
        from transformers import AutoConfig

        self._checkpoint = checkpoint
        config: Any = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        multiply, cap = _scale_and_cap(config)
        self.parameters = HeadParameters((*_OUTPUTS, *_EMBEDDINGS), (), multiply, cap, "float32", vocabulary=vocabulary)

    @cached_property
    def _weight(self) -> torch.Tensor:
        """Float32 (vocabulary, hidden)."""
        import torch
        from gguf.quants import dequantize

        path = self._checkpoint / "model.gguf"
        tensors = {tensor.name: tensor for tensor in gguf_reader(path).tensors}
        tensor = tensors.get("output.weight") or tensors.get("token_embd.weight")
        if tensor is None or "output.bias" in tensors:
            raise QuantizeError(
                "the output head of the GGUF file is not a matrix alone.",
                where=str(path),
                fix="Leave the text eval out for this architecture.",
            )
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))

    def logits(self, hidden: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Float32 logits (positions, columns) of final hidden states (positions, hidden)."""
        import torch

        with torch.inference_mode():
            logits = torch.nn.functional.linear(hidden.float(), self._weight[start:stop]) * self.parameters.multiply
            cap = self.parameters.cap
            return torch.tanh(logits / cap) * cap if cap else logits

    def check(self, hidden: torch.Tensor, logits: torch.Tensor, arithmetic: str) -> None:
        """Raise QuantizeError unless this head makes of `hidden` the `logits` that llama.cpp made."""
        import torch

        tolerance = _TOLERANCE[arithmetic]
        # A logit sums as many products as there are hidden values; what they round to grows with their spread.
        spread = tolerance * max(1.0, float(logits.std()) if math.isfinite(float(logits.std())) else 1.0)
        if not torch.allclose(self.logits(hidden), logits, rtol=tolerance, atol=spread, equal_nan=True):
            raise QuantizeError(
                "llama.cpp's output head does more than a matrix, a scale and a soft cap.",
                where=str(self._checkpoint),
                fix="Leave the text eval out for this architecture.",
            )
