"""The transformers engine: an artifact in this process, on a GPU or the CPU."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from quantize.errors import QuantizeError
from quantize.protocols import HeadParameters
from quantize.record import Record

if TYPE_CHECKING:
    import torch

__all__ = ["Transformers", "TransformersSession"]

#: How far two ways to the same logits may lie apart: a few times what the dtype of the arithmetic rounds to.
_HEAD_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}


#: Tokens of a forward pass beyond which more of them make it no cheaper by the token. On one CPU core a 135M model
#: takes 5 % longer with each window of 200 tokens alone, and 15 % longer in batches of 8192.
_ENOUGH = 1024


class Transformers(Record):
    """`dtype` of computation: `auto` is float32 on CPUs (few have fast bfloat16) and the checkpoint's own on GPUs.

    `max_batch_tokens` bounds the tokens of one forward pass.
    """

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_batch_tokens: Annotated[int, Field(gt=0)] = 8192

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version may change a logit."""
        return ("torch", "transformers", "compressed-tensors")

    def open(self, checkpoint: Path, device: str) -> TransformersSession:
        """Load a checkpoint. compressed-tensors weights are expanded; their activations stay quantized in forward.

        Raises QuantizeError when it does not load or lacks weights, which transformers would make up at random.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype: Any = self.dtype if self.dtype != "auto" else "auto" if device != "cpu" else "float32"
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
            model, found = AutoModelForCausalLM.from_pretrained(
                checkpoint,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                # On GPUs layer by layer onto as many of the visible ones as it takes, never whole through main memory.
                device_map="cpu" if device == "cpu" else "auto",
            )
        except QuantizeError:  # a stop on request arrives as one, anywhere
            raise
        except Exception as error:  # every library in between has errors of its own
            raise QuantizeError(
                f"the checkpoint does not load in transformers: {type(error).__name__}: {error}", where=str(checkpoint)
            ) from error
        missing = sorted(found["missing_keys"])
        if missing:
            raise QuantizeError(
                f"the checkpoint lacks {len(missing)} weights, {missing[0]} first.", where=str(checkpoint)
            )
        return TransformersSession(model.eval(), tokenizer, self.max_batch_tokens)

    def in_other_batches(self) -> Transformers:
        """See `protocols.Engine`: a sixteenth of the tokens, which also on CPUs is less than a batch has otherwise."""
        return self.model_copy(update={"max_batch_tokens": max(1, self.max_batch_tokens // 16)})


class TransformersSession:
    """A loaded model. See `protocols.Session`."""

    def __init__(self, model: Any, tokenizer: Any, max_batch_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._max_batch_tokens = max_batch_tokens
        self._lm: Any = None

    @property
    def device(self) -> str:
        """Device class and name."""
        import torch

        if self.model.device.type == "cuda":
            return f"cuda {torch.cuda.get_device_name(self.model.device)}"
        return f"{self.model.device.type} {platform.processor() or platform.machine()}"

    def lm(self) -> Any:
        """The model as lm-eval sees it; choices that share a prompt pay for it once."""
        if self._lm is None:  # once: it proves itself against plain passes before it packs
            from quantize.engines._shared_prefix import SharedPrefixLM

            self._lm = SharedPrefixLM(self.model, self.tokenizer, self._max_batch_tokens)
        return self._lm

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Float32 logits (rows, tokens, vocabulary) on the CPU."""
        import torch

        with torch.inference_mode():
            logits: torch.Tensor = self.model(batch.to(self.model.device), use_cache=False).logits.float().cpu()
            return logits

    def hidden(self, windows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `protocols.Session`. Shorter windows are padded on the right, which a causal model does not see."""
        import torch

        on_cpu = self.model.device.type == "cpu"
        budget = min(self._max_batch_tokens, _ENOUGH) if on_cpu else self._max_batch_tokens
        found: dict[int, torch.Tensor] = {}
        for batch in _batches([len(ids) for ids in windows], budget):
            ids = torch.nn.utils.rnn.pad_sequence([windows[number] for number in batch], batch_first=True)
            for row, number in zip(self._hidden(ids), batch, strict=True):
                found[number] = row[: len(windows[number])]
        return [found[number] for number in range(len(windows))]

    def _hidden(self, batch: torch.Tensor) -> torch.Tensor:
        """Input of the output head (rows, tokens, hidden). The head itself is let see one position, as a check."""
        import torch

        seen: list[torch.Tensor] = []

        def catch(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            seen.append(inputs[0])
            return (inputs[0][:1, -1:], *inputs[1:])

        hook = self.model.get_output_embeddings().register_forward_pre_hook(catch)
        try:
            with torch.inference_mode():
                logits = self.model(batch.to(self.model.device), use_cache=False).logits[0].float().cpu()
        finally:
            hook.remove()
        hidden = seen[-1]
        again = self.head(hidden[0, -1:]).cpu()
        tolerance = _HEAD_TOLERANCE[str(hidden.dtype).removeprefix("torch.")]
        if not torch.allclose(again, logits, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise QuantizeError(
                f"the output head of {type(self.model).__name__} does more than a matrix, a scale and a soft cap.",
                fix="Leave the text eval out for this architecture.",
            )
        return hidden

    def head(self, hidden: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """See `protocols.Session`: output matrix, then logit scale, then soft cap, as the config has them."""
        import torch

        head = self.model.get_output_embeddings()
        multiply, cap = _scale_and_cap(self.model.config)
        bias = head.bias[start:stop] if head.bias is not None else None
        with torch.inference_mode():
            states = hidden.to(device=head.weight.device, dtype=head.weight.dtype)
            logits = torch.nn.functional.linear(states, head.weight[start:stop], bias).float() * multiply
            return torch.tanh(logits / cap) * cap if cap else logits

    def head_parameters(self) -> HeadParameters:
        """See `protocols.Session`."""
        names = {id(module): name for name, module in self.model.named_modules()}
        modules = (self.model.get_output_embeddings(), self.model.get_input_embeddings())
        places = tuple(names[id(module)] for module in modules)
        multiply, cap = _scale_and_cap(self.model.config)
        bias = (f"{places[0]}.bias",) if modules[0].bias is not None else ()
        dtype = str(modules[0].weight.dtype).removeprefix("torch.")
        names_of_weights = tuple(f"{place}.weight" for place in places)
        return HeadParameters(names_of_weights, bias, multiply, cap, dtype, vocabulary=len(modules[0].weight))

    def close(self) -> None:
        """Give the memory back."""
        import gc

        import torch

        self._lm = None
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Numbers of windows to put through the model together, the longest first.

    `budget` bounds rows x longest. Once a batch has `_ENOUGH` tokens, a window that would be a quarter padding waits
    for the next: padding costs what any token costs.
    """
    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        tokens = len(batch) * longest
        if batch and (tokens + longest > budget or (tokens >= _ENOUGH and 4 * lengths[number] < 3 * longest)):
            yield batch
            batch = []
        longest = longest if batch else lengths[number]
        batch.append(number)
    if batch:
        yield batch


def _scale_and_cap(config: Any) -> tuple[float, float | None]:
    """What multiplies the logits and what caps them, by the names that transformers configs use.

    `logit_scale` multiplies (Cohere), `logits_scaling` divides (Granite), `final_logit_softcapping` caps (Gemma 2).
    """
    multiply = float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return multiply, float(cap) if cap else None
