"""What extensions are handed: jobs, sessions, the rows they write. `protocols.py` has the extensions themselves.

Token ids are int64, logits float32. "Checkpoint" is a Hugging Face directory with safetensors weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch

__all__ = [
    "WITHOUT_DEVICE",
    "Drawn",
    "EvaluateJob",
    "HeadParameters",
    "Host",
    "Parts",
    "Progress",
    "QuantizeJob",
    "Row",
    "Session",
    "StageSpec",
    "Stop",
    "Top",
    "TopSession",
    "Uncovered",
    "WholeSession",
    "silent",
]

#: Called with (what is going on, done, total); total None where it is not known.
Progress = Callable[[str, float, float | None], None]


def silent(_what: str, _done: float, _total: float | None) -> None:
    """A `Progress` that nobody looks at."""


#: What becomes of experts that too few calibration tokens reach: every expert sees all tokens; or each sees what the
#: router sends it, and where that is too little the method stops, or leaves the experts of that layer as they are.
Uncovered = Literal["calibrate_all", "refuse", "leave"]

#: Kinds of stages that use no device: they copy files and read numbers.
WITHOUT_DEVICE = ("fetch", "judge")

#: One row of `rows.parquet`: a value, or None, by column.
Row = dict[str, Any]

#: Why an arm goes no further, and the gate that says so.
Stop = tuple[Literal["pass", "fail", "futile"], str]


@dataclass(frozen=True, slots=True)
class Host:
    """What a stage's process has around it.

    `interpreters` maps environments to their Python, for every one that the stage may call; children write their
    output into files in the folder `log`; `threads` are the CPU threads that a child may use (None: all cores).
    """

    interpreters: Mapping[str, Path]
    log: Path
    threads: int | None = None


def _untold(facts: dict[str, Any]) -> None:
    """Nobody asks."""


def _no_reference(checkpoint: Path) -> None:
    raise ValueError(f"nobody was given to read a reference of {checkpoint}")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a calibrator makes: `rows` of int64 ids, none of them padded, so that their lengths may differ.

    `documents` are the texts that rows were drawn from, for the check against eval items; `facts` is what became of
    them, as JSON: the packing, how many were read, cut and empty, and what each part of a mixture gave.
    """

    rows: tuple[torch.Tensor, ...]
    documents: tuple[str, ...]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """What a method is given. `tokens` (rows of int64 ids, of any length) is None where no calibration is needed.

    The method calls `witness(model)` once with the quantized model in memory, before it is saved: the witness writes
    down the next-token distributions that `prove` compares the reloaded checkpoint with. One that has no model in
    memory calls `refer(checkpoint)` on what it wrote instead: a reference is read from the files. For GGUF, `full` is
    the model as an unquantized GGUF file and `importance` an importance matrix of the calibration tokens, where one is
    asked for.

    `uncovered` says what becomes of experts that the router sends fewer than `least_tokens` calibration tokens; what
    became of them goes through `tell` into the stage's summary.
    """

    checkpoint: Path
    out: Path
    scheme: Scheme
    ignore: tuple[str, ...]
    tokens: Sequence[torch.Tensor] | None
    device: str
    seed: int
    witness: Callable[[Any], None]
    progress: Progress
    host: Host
    full: Path | None = None
    importance: Path | None = None
    refer: Callable[[Path], None] = _no_reference
    uncovered: Uncovered = "calibrate_all"
    least_tokens: int = 1
    tell: Callable[[dict[str, Any]], None] = _untold


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


@dataclass(frozen=True, slots=True)
class Top:
    """What an engine says of a text of n tokens: of the n - 1 that follow another, float64 log-probabilities.

    `true` (n - 1) of the token that comes; `log_probabilities` (n - 1, k) of the likeliest tokens `ids`, best first.
    """

    true: torch.Tensor
    ids: torch.Tensor
    log_probabilities: torch.Tensor


class Session(Protocol):
    """A loaded artifact. Close it to give the memory back.

    With `distributions` "full" it is a `WholeSession`, which gives whole distributions; with "top" a `TopSession`,
    which gives the likeliest tokens only.
    """

    @property
    def device(self) -> str:
        """Device class and name, as recorded with the measurements."""
        ...

    @property
    def arithmetic(self) -> str:
        """The dtype of computation, as far as it is known: `float32`, `bfloat16`, `float16`."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many tokens a distribution is over."""
        ...

    @property
    def distributions(self) -> Literal["full", "top"]: ...

    def lm(self) -> Any:
        """The artifact as a `lm_eval.api.model.LM`; its `finite` turns False when an answer came of NaN logits."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without special tokens, by the checkpoint's tokenizer."""
        ...

    def log_probabilities(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Float64 log-probabilities (positions, k) of the tokens `kept` (positions, k) after the prompt `ids` (tokens).

        At its last `positions` positions; NaN where the engine does not say, and wherever a logit is not finite.
        """
        ...

    def tokenize(self, text: str) -> list[int]:
        """The ids that the engine itself makes of a prompt."""
        ...

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids that the engine makes of a conversation by its chat template, up to where its answer begins."""
        ...

    def stops(self, ids: list[int], token: int) -> bool:
        """Whether the engine ends its answer to `ids` where the model says `token`, which it is made to say."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` where known, and the `peak` of the process that holds them (resident, or on the GPU)."""
        ...

    def close(self) -> None: ...


class WholeSession(Session, Protocol):
    """A session of an engine that gives whole distributions."""

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


class TopSession(Session, Protocol):
    """A session of an engine that gives the likeliest tokens only."""

    def top(self, windows: Sequence[torch.Tensor], k: int) -> list[Top]:
        """The `k` likeliest tokens at every position of every window of ids (tokens)."""
        ...


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
    `baseline` the baseline's checkpoint directory. `engine` and `device` are written down with the measurements. `kept`
    is a folder for what a scorer has paid for, so that no stage pays for it twice (None: nothing is kept).
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
    kept: Path | None = None


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage as an executor gets it. `inputs` maps input names to committed artifact directories.

    `libraries` are the distributions whose versions are written into the manifest. `interpreters` maps the environments
    that the stage calls to their Python; it runs in that of `environment` itself (None: the program's own). `alone` is
    a stage that measures time: nothing else may use the device meanwhile. `online` is one that may ask the hub.

    Where stages run side by side, `gpus` are those of the driver's GPUs that are the stage's (None: all of them);
    `threads` are its CPU threads (None: all cores). On other machines it gets `gpus_wanted` and `memory_wanted` (bytes
    of the host; None: not known), on a device of `device_class`. None of these is part of a key.
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
    interpreters: dict[str, Path] = field(default_factory=dict)
    environment: str | None = None
    alone: bool = False
    online: bool = False
    gpus: tuple[int, ...] | None = None
    threads: int | None = None
    gpus_wanted: int = 0
    memory_wanted: float | None = None
    device_class: str = ""
