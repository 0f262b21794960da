"""The transformers engine: an artifact in this process, on a GPU or the CPU."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from quantize.errors import EngineLost, QuantizeError
from quantize.experts import linear_experts, quantized_by_llmcompressor
from quantize.handed import HeadParameters, Host
from quantize.loading import auto_class, stored_names
from quantize.record import Record

if TYPE_CHECKING:
    import torch

    from quantize.engines._timing import Greedy
    from quantize.engines._transformers_service import TransformersService
    from quantize.served import Timed

__all__ = ["Transformers", "TransformersSession"]

#: How far two ways to the same logits may lie apart: a few times what the dtype of the arithmetic rounds to.
_HEAD_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}


#: Tokens of a forward pass beyond which more of them make it no cheaper by the token. On one CPU core a 135M model
#: takes 5 % longer with each window of 200 tokens alone, and 15 % longer in batches of 8192.
_ENOUGH = 1024


class Transformers(Record):
    """`dtype` of computation: `auto` is float32 on CPUs (few have fast bfloat16) and the checkpoint's own on GPUs.

    `max_batch_tokens` bounds the tokens of one forward pass. In the environment `gptqmodel` it loads the formats `gptq`
    and `awq`, whose kernels live there; the whole stage then runs in that interpreter. For traffic it has a server of
    ours, which is waited for `load_seconds`.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["transformers"] = "transformers"
    form: ClassVar[Literal["checkpoint", "gguf"]] = "checkpoint"
    runs_in: Annotated[Literal["gptqmodel"] | None, Field(alias="environment")] = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_batch_tokens: Annotated[int, Field(gt=0)] = 8192
    load_seconds: Annotated[float, Field(gt=0)] = 600

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version may change a logit."""
        formats = (
            ("bitsandbytes", "compressed-tensors", "llmcompressor")
            if self.runs_in is None
            else ("gptqmodel", "optimum")
        )
        return ("torch", "transformers", *formats)

    @property
    def hosted(self) -> bool:
        """See `protocols.Engine`."""
        return self.runs_in is not None

    def environment(self, device: str) -> str | None:
        """See `protocols.Engine`."""
        return self.runs_in

    def open(self, checkpoint: Path, device: str, host: Host | None = None) -> TransformersSession:
        """Load a checkpoint. compressed-tensors weights are expanded; their activations stay quantized in forward.

        So are `gptq` and `awq` weights on a CPU (`_quantized`); bitsandbytes computes on its own.

        Raises QuantizeError when it does not load or lacks weights, which transformers would make up at random.
        """
        import torch
        from transformers import AutoTokenizer

        from quantize.engines._quantized import loading_config, settle

        dtype: Any = self.dtype if self.dtype != "auto" else "auto" if device != "cpu" else "float32"
        try:
            kind = auto_class(checkpoint)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
            with linear_experts(checkpoint) if quantized_by_llmcompressor(checkpoint) else nullcontext():
                model, found = kind.from_pretrained(
                    checkpoint,
                    dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    # On GPUs layer by layer onto as many of the visible ones as it takes, never whole through memory.
                    device_map="cpu" if device == "cpu" else "auto",
                    **loading_config(checkpoint, device),
                )
        except QuantizeError:  # a stop on request arrives as one, anywhere
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EngineLost(
                f"there is not enough memory to load the checkpoint ({error}).",
                where=str(checkpoint),
                fix="See what `quantize plan` estimates, or use a device with more memory.",
            ) from error
        except Exception as error:  # every library in between has errors of its own
            raise QuantizeError(
                f"the checkpoint does not load in transformers: {type(error).__name__}: {error}", where=str(checkpoint)
            ) from error
        missing = sorted(found["missing_keys"])
        if missing:
            raise QuantizeError(
                f"the checkpoint lacks {len(missing)} weights, {missing[0]} first.", where=str(checkpoint)
            )
        settle(model, None if dtype == "auto" else getattr(torch, dtype))
        return TransformersSession(model.eval(), tokenizer, self.max_batch_tokens)

    def room(self, trained: int | None) -> int | None:
        """See `protocols.Engine`."""
        return trained

    def serve(self, checkpoint: Path, device: str, host: Host, draft: Path | None = None) -> TransformersService:
        """Start a small streaming server of ours, which answers one request at a time, and wait until it answers.

        No production engine. Raises QuantizeError where the checkpoint does not load or a `draft` is named, EngineLost
        where the server is killed or not ready within `load_seconds`.
        """
        from quantize.engines._transformers_service import TransformersService

        if draft is not None:
            raise QuantizeError(
                "the server over transformers does not let a draft guess ahead.",
                where=str(draft),
                fix="Benchmark drafts in llamacpp or vllm, which serve with them, or leave `benchmark.draft` out.",
            )
        return TransformersService(self, checkpoint, device, host)

    def in_other_batches(self) -> Transformers:
        """See `protocols.Engine`: a sixteenth of the tokens, which also on CPUs is less than a batch has otherwise."""
        return self.model_copy(update={"max_batch_tokens": max(1, self.max_batch_tokens // 16)})


class TransformersSession:
    """A loaded model. See `handed.Session`."""

    def __init__(self, model: Any, tokenizer: Any, max_batch_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._max_batch_tokens = max_batch_tokens
        self._lm: Any = None
        self._greedy: Greedy | None = None

    @property
    def device(self) -> str:
        """Device class and name."""
        import torch

        if self.model.device.type == "cuda":
            return f"cuda {torch.cuda.get_device_name(self.model.device)}"
        return f"{self.model.device.type} {platform.processor() or platform.machine()}"

    @property
    def arithmetic(self) -> str:
        """The dtype of computation."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""
        return len(self.model.get_output_embeddings().weight)

    @property
    def distributions(self) -> Literal["full"]:
        """All logits are here."""
        return "full"

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

    def log_probabilities(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """See `handed.Session`. Normalised in float64: in float32 that would be the largest error."""
        import torch

        logits = self.logits(ids[None])[0, -len(kept) :].double()
        logits[~logits.isfinite().all(1)] = torch.nan
        return logits.log_softmax(1).gather(1, kept)

    def tokenize(self, text: str) -> list[int]:
        """See `handed.Session`: with the special tokens that the tokenizer puts around a text."""
        return list(self.tokenizer(text)["input_ids"])

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """See `handed.Session`. Raises QuantizeError where the template is absent or refuses the conversation."""
        try:
            return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        except Exception as error:  # a template raises what it likes
            raise QuantizeError(f"the chat template does not take the conversation: {error}") from error

    def stops(self, ids: list[int], token: int) -> bool:
        """See `handed.Session`, by `generate` and the checkpoint's own generation settings."""
        import torch

        def say(seen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Make `token` the only choice, as the first of the answer."""
            if seen.shape[1] > len(ids):
                return scores
            return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token], device=scores.device), 0.0)

        prompt = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            answer = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                logits_processor=[say],
                max_new_tokens=2,
                min_new_tokens=None,
                do_sample=False,
                num_beams=1,
                # the settings of sampling, which a checkpoint may have, are warned of where nothing is sampled
                temperature=None,
                top_p=None,
                top_k=None,
            )
        return int(answer.shape[1]) == len(ids) + 1

    def greedy(self) -> Greedy:
        """The model as it answers greedily; on a GPU the steps that were captured stay with it."""
        if self._greedy is None:
            from quantize.engines._timing import Greedy

            self._greedy = Greedy(self.model)
        return self._greedy

    def timed(self, ids: torch.Tensor, new_tokens: int) -> Timed:
        """See `served.TimedSession`. The end of a text ends no answer. Raises DataError where a prompt is too long."""
        from quantize.engines._timing import answer

        return answer(self.greedy(), ids, new_tokens)[0]

    def facts(self) -> dict[str, str]:
        """What times depend on: dtype of the arithmetic, attention, threads on CPUs, graphs on GPUs."""
        import torch

        found = {"dtype": self.arithmetic, "attention": getattr(self.model.config, "_attn_implementation", "unknown")}
        if self.model.device.type == "cpu":
            return {**found, "threads": str(torch.get_num_threads()), "graphs": "eager"}
        return {**found, "graphs": self.greedy().graphs}

    def work(self) -> dict[str, int]:
        """See `served.TimedSession`."""
        from quantize.engines._timing import kv_bytes
        from quantize.roofline import work_of

        done = work_of(self.model)
        return {"parameters": done.parameters, "read": done.weight_bytes, "kv_token": kv_bytes(self.model)}

    def memory(self) -> dict[str, int]:
        """See `handed.Session`: resident on CPUs, allocated by torch on GPUs."""
        import resource

        import torch

        tensors = (*self.model.parameters(), *self.model.buffers())
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.model.device.type == "cuda":
            peak = sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        return {"weights": weights, "peak": peak}

    def hidden(self, windows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `handed.Session`. Shorter windows are padded on the right, which a causal model does not see."""
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
        """See `handed.Session`: output matrix, then logit scale, then soft cap, as the config has them."""
        import torch

        head = self.model.get_output_embeddings()
        multiply, cap = _scale_and_cap(self.model.config)
        bias = head.bias[start:stop] if head.bias is not None else None
        with torch.inference_mode():
            states = hidden.to(device=head.weight.device, dtype=head.weight.dtype)
            logits = torch.nn.functional.linear(states, head.weight[start:stop], bias).float() * multiply
            return torch.tanh(logits / cap) * cap if cap else logits

    def head_parameters(self) -> HeadParameters:
        """See `handed.Session`."""
        names = {id(module): name for name, module in self.model.named_modules()}
        modules = (self.model.get_output_embeddings(), self.model.get_input_embeddings())
        own = [names[id(module)] for module in modules]
        stored = stored_names(self.model, own)
        places = tuple(dict.fromkeys(stored.get(name, name) for name in own))
        multiply, cap = _scale_and_cap(self.model.config)
        bias = (f"{places[0]}.bias",) if modules[0].bias is not None else ()
        dtype = str(modules[0].weight.dtype).removeprefix("torch.")
        names_of_weights = tuple(f"{place}.weight" for place in places)
        return HeadParameters(names_of_weights, bias, multiply, cap, dtype, vocabulary=len(modules[0].weight))

    def close(self) -> None:
        """Give the memory back."""
        import gc

        import torch

        self._lm = self._greedy = None
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
    config = config.get_text_config()
    multiply = float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return multiply, float(cap) if cap else None
