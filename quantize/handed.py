"""What extensions are handed: jobs, sessions, the rows they write. `protocols.py` has the extensions themselves.

Token ids are int64, logits float32. "Checkpoint" is a Hugging Face directory with safetensors weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = [
    "EvaluateJob",
    "HeadParameters",
    "Parts",
    "Progress",
    "QuantizeJob",
    "Row",
    "Session",
    "StageSpec",
    "Stop",
]

#: Called with (what is going on, done, total); total None where it is not known.
Progress = Callable[[str, float, float | None], None]

#: One row of `rows.parquet`: a value, or None, by column.
Row = dict[str, Any]

#: Why an arm goes no further, and the gate that says so.
Stop = tuple[Literal["pass", "fail", "futile"], str]


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """What a method is given. `tokens` (samples, tokens) is None for methods that need no calibration.

    The method calls `witness(model)` once with the quantized model in memory, before it is saved: the witness writes
    down the next-token distributions that `prove` compares the reloaded checkpoint with.
    """

    checkpoint: Path
    out: Path
    scheme: Scheme
    ignore: tuple[str, ...]
    tokens: torch.Tensor | None
    device: str
    seed: int
    witness: Callable[[Any], None]
    progress: Progress


@dataclass(frozen=True, slots=True)
class HeadParameters:
    """How final hidden states become logits: cap * tanh((multiply * (weight @ hidden + bias)) / cap).

    `weights` and `biases` are tensor names under which a checkpoint may hold the matrix, the likeliest first (a tied
    head is stored under the embedding's name); `cap` None means no soft cap; `dtype` is the one that computes;
    `vocabulary` counts the logits.
    """

    weights: tuple[str, ...]
    biases: tuple[str, ...]
    multiply: float
    cap: float | None
    dtype: str
    vocabulary: int


class Session(Protocol):
    """A loaded artifact. Close it to give the memory back."""

    @property
    def device(self) -> str:
        """Device class and name, as recorded with the measurements."""
        ...

    def lm(self) -> Any:
        """The artifact as a `lm_eval.api.model.LM`."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without special tokens."""
        ...

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Float32 next-token logits (rows, tokens, vocabulary) for ids (rows, tokens)."""
        ...

    def hidden(self, windows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the output head is given, after the last norm: (tokens, hidden) for ids (tokens) of every window.

        In the dtype of computation, on the device. The session batches windows within its own budget of tokens.
        """
        ...

    def head(self, hidden: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Float32 logits from final hidden states, of the vocabulary's entries `start` to `stop`.

        Logit scale and soft cap are applied.
        """
        ...

    def head_parameters(self) -> HeadParameters:
        """What is needed to apply this head again without the model."""
        ...

    def close(self) -> None: ...


class Parts(Protocol):
    """The parts of a long stage that are kept as they come, so that a killed one goes on where it was."""

    def find(self, number: int) -> Path | None:
        """The directory of a part that was kept, by this process or one before it."""
        ...

    def keep(self, number: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a part's empty directory, commit it, and return where it lies now."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What a metric is given to measure one arm.

    `session` loads the model at its first call, so that what was kept is used without it. Items are answered in the
    order of `seed`, in looks of `look` items; after each look `stop` is asked with all rows so far (always None for
    the baseline). `reference` is the baseline's own `evaluate` artifact of this metric (None for the baseline itself),
    `baseline` the baseline's checkpoint directory. `engine` and `device` are written down with the measurements.
    """

    arm: str
    out: Path
    engine: str
    device: str
    session: Callable[[], Session]
    seed: int
    look: int
    parts: Parts
    stop: Callable[[list[Row]], Stop | None]
    reference: Path | None
    baseline: Path | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage as an executor gets it. `inputs` maps input names to committed artifact directories.

    `libraries` are the distributions whose versions are written into the manifest.
    """

    kind: str
    name: str
    key: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Path]
    input_keys: dict[str, str]
    libraries: tuple[str, ...]
    device: str
