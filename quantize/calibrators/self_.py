"""The baseline writes its own calibration text, so that a recipe needs no data at all.

Every row starts with what the tokenizer puts before a text (a BOS token, often nothing), then one token drawn uniformly
from the ordinary vocabulary, and goes on by sampling from the model. The random first token is the usual choice for
data-free calibration (LLM-QAT, Liu et al. 2023, arXiv:2305.17888): it makes the rows differ from each other far more
than a lone BOS token does, after which an instruction-tuned model makes the same few openings. A row that ends its text
goes on with whatever the model says after an end, so that every row is full and nothing is padded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.handed import Drawn, Progress
from quantize.loading import auto_class
from quantize.record import Record

if TYPE_CHECKING:
    import torch

__all__ = ["Self"]


class Self(Record):
    """`samples` rows of `tokens` tokens, sampled `batch` rows at a time, which changes last bits: it is in the key."""

    kind: Literal["self"] = "self"
    even: ClassVar[bool] = True
    online: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    samples: Annotated[int, Field(gt=0, description="Rows.")] = 16
    tokens_per_sample: int = Field(default=256, alias="tokens", gt=1, description="Tokens of a row.")
    seed: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(gt=0, description="1 samples from the model as it is.")] = 1.0
    batch: Annotated[int, Field(gt=0, description="Rows that are sampled together.")] = 16

    def identity(self) -> dict[str, Any]:
        """The config: no file is read."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def allow_overlap(self) -> bool:
        """What the model writes itself is nobody's eval set."""
        return False

    def pinned(self) -> Self:
        """Itself: there is no revision."""
        return self

    def texts(self) -> list[str]:
        """The model writes its text itself."""
        return []

    def chats(self) -> bool:
        """Never: what it writes is text."""
        return False

    def draw(self, checkpoint: Path, device: str, progress: Progress) -> Drawn:
        """Rows of `tokens` tokens each, the same on every run on one machine.

        Arithmetic is float32 on a CPU, where bfloat16 is slow, and the checkpoint's dtype elsewhere; probabilities are
        float32 and drawn on the CPU, so that a GPU's own generator plays no part.
        """
        import torch
        from transformers import AutoTokenizer

        progress("loading", 0, None)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        dtype = torch.float32 if device == "cpu" else "auto"
        model = auto_class(checkpoint).from_pretrained(checkpoint, dtype=dtype).to(device).eval()
        generator = torch.Generator().manual_seed(self.seed)
        starts = _starts(tokenizer, model.config.get_text_config().vocab_size, self.samples, generator)
        total = self.samples * self.tokens_per_sample
        done = 0

        def report(rows: int) -> None:
            nonlocal done
            done += rows
            progress("sampling", done, total)

        with torch.inference_mode():
            batches = [self._sample(model, rows, generator, report) for rows in torch.split(starts, self.batch)]
        # a copy, because tensors made in inference mode may not be used outside it
        return Drawn(tuple(torch.cat(batches).clone()), (), {})

    def _sample(self, model: Any, rows: torch.Tensor, generator: torch.Generator, report: Any) -> torch.Tensor:
        """Continue `rows` (batch, start) to (batch, tokens) with a key-value cache."""
        import torch
        from transformers import DynamicCache

        ids = rows[:, : self.tokens_per_sample]
        report(ids.numel())
        cache = DynamicCache(config=model.config)
        fresh = ids
        while ids.shape[1] < self.tokens_per_sample:
            answer = model(input_ids=fresh.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            probabilities = (answer.logits[:, -1].float() / self.temperature).softmax(-1).cpu()
            fresh = torch.multinomial(probabilities, 1, generator=generator)
            ids = torch.cat([ids, fresh], dim=1)
            report(len(fresh))
        return ids


def _starts(tokenizer: Any, vocabulary: int, samples: int, generator: torch.Generator) -> torch.Tensor:
    """(samples, prefix + 1): the tokenizer's own prefix, then an ordinary token; all different while they last."""
    import torch

    prefix = []
    for token in tokenizer("").input_ids:
        if token == tokenizer.eos_token_id and token != tokenizer.bos_token_id:
            break
        prefix.append(token)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ordinary = torch.tensor([i for i in range(min(vocabulary, len(tokenizer))) if i not in special])
    order = torch.cat([torch.randperm(len(ordinary), generator=generator) for _ in range(-(-samples // len(ordinary)))])
    first = ordinary[order[:samples]][:, None]
    return torch.cat([torch.tensor([prefix] * samples, dtype=torch.int64).reshape(samples, -1), first], dim=1)
