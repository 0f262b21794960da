"""The whole extension API on one page.

Every extension is a frozen pydantic model with a `kind` literal that satisfies one of these protocols and is listed in
its package's union (`methods.MethodConfig`, `engines.EngineConfig`, ...). Adding one is one file and one line. The leaf
packages never import each other: what one needs from another is handed to it by `stages.py`.

    Source     model as named in a recipe   -> a checkpoint directory
    Calibrator the baseline                 -> token ids
    Method     checkpoint + token ids       -> a quantized checkpoint
    Engine     checkpoint                   -> a session that answers
    Metric     session                      -> rows and measurements; two arms' rows -> comparisons
    Gate       evidence                     -> finding
    Executor   stage                        -> a process that commits it
    Registry   decisions                    -> versions and aliases that consumers load

Token ids are int64, logits float32. "Checkpoint" is a Hugging Face directory with safetensors weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantize.artifact import ModelFacts
from quantize.evidence import ArmMeasurements, Comparison, Evidence
from quantize.scheme import Scheme
from quantize.verdict import Decision, Finding

if TYPE_CHECKING:
    import torch

__all__ = [
    "MANIFEST_FILE",
    "Calibrator",
    "Engine",
    "Executor",
    "Gate",
    "HeadParameters",
    "Method",
    "Metric",
    "Progress",
    "QuantizeJob",
    "Registry",
    "Session",
    "Source",
    "StageSpec",
    "TargetRule",
    "VersionState",
]

#: The list of a version's files with their sha256, logged beside them.
MANIFEST_FILE = "quantize-manifest.json"

#: Called with (what is going on, done, total); total None where it is not known.
Progress = Callable[[str, float, float | None], None]


class Source(Protocol):
    """Where the model comes from."""

    @property
    def kind(self) -> str: ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: a commit or digests, never a path. May ask the hub, once; raises SourceError."""
        ...

    def facts(self) -> ModelFacts:
        """Shapes and sizes as far as they can be known before fetching, from `config.json` and file stats."""
        ...

    def fetch(self, out: Path, progress: Progress) -> None:
        """Put a complete, checked checkpoint (no pickle, no NaN, nothing truncated) into the empty `out`."""
        ...


class Calibrator(Protocol):
    """Where calibration tokens come from."""

    @property
    def kind(self) -> str: ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the config and the digests of the files it reads."""
        ...

    def tokens(self, checkpoint: Path, device: str, progress: Progress) -> "torch.Tensor":
        """Int64 token ids of shape (samples, tokens), every row full: no padding."""
        ...


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
    tokens: "torch.Tensor | None"
    device: str
    seed: int
    witness: Callable[[Any], None]
    progress: Progress


class Method(Protocol):
    """How a scheme's numbers are found."""

    @property
    def kind(self) -> str: ...

    @property
    def format(self) -> str:
        """The container on disk: `compressed-tensors`, ..."""
        ...

    @property
    def calibrated(self) -> bool:
        """True where `quantize` needs tokens."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        ...

    def problems(self, scheme: Scheme, facts: ModelFacts) -> list[str]:
        """What makes scheme and model impossible for this method, each with what would do; empty when nothing does."""
        ...

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`, tokenizer and generation config included."""
        ...


@dataclass(frozen=True, slots=True)
class HeadParameters:
    """How final hidden states become logits: cap * tanh((multiply * (weight @ hidden + bias)) / cap).

    `weights` and `biases` are tensor names under which a checkpoint may hold the matrix, the likeliest first (a tied
    head is stored under the embedding's name); `cap` None means no soft cap; `dtype` is the one that computes.
    """

    weights: tuple[str, ...]
    biases: tuple[str, ...]
    multiply: float
    cap: float | None
    dtype: str


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

    def logits(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Float32 next-token logits (rows, tokens, vocabulary) for ids (rows, tokens)."""
        ...

    def hidden(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Float32 final hidden states (rows, tokens, hidden): what the output head is given, after the last norm."""
        ...

    def head(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Float32 logits from final hidden states, logit scale and soft cap applied."""
        ...

    def head_parameters(self) -> HeadParameters:
        """What is needed to apply this head again without the model."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """What runs an artifact."""

    @property
    def kind(self) -> str: ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version may change a logit."""
        ...

    def open(self, checkpoint: Path, device: str) -> Session:
        """Load `checkpoint` on `device` (`cpu`, `cuda`, `cuda:1`). Raises QuantizeError when it does not load."""
        ...


class Metric(Protocol):
    """One eval: measures an arm, then compares two arms' rows."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def needs_reference(self) -> bool:
        """True where a variant's measurement reads the baseline's `evaluate` artifact and head."""
        ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the config and the digests of the files it reads. Raises DataError for bad ones."""
        ...

    def items(self, slice_name: str | None = None) -> int:
        """How many items one arm answers, in all or of one slice; 0 where only the running task knows."""
        ...

    def measure(
        self, session: Session, arm: str, out: Path, reference: Path | None, baseline: Path | None, progress: Progress
    ) -> ArmMeasurements:
        """Answer every item, write `rows.parquet` into `out`, return the measurements.

        `reference` is the baseline's own `evaluate` artifact of this metric (None for the baseline itself), `baseline`
        the baseline's checkpoint directory.
        """
        ...

    def compare(self, baseline: Path, variant: Path) -> list[Comparison]:
        """Join two `evaluate` artifacts on item ids and compare. Raises DataError naming the first mismatch."""
        ...


class Gate(Protocol):
    """A rule of the recipe: evidence in, finding out, nothing else read."""

    @property
    def kind(self) -> str: ...

    @property
    def metric(self) -> str:
        """`<eval>.<quantity>`, as comparisons name it."""
        ...

    def judge(self, evidence: Evidence) -> Finding: ...


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


class Executor(Protocol):
    """Runs one stage's command with its resources."""

    @property
    def kind(self) -> str: ...

    def run(self, spec: StageSpec, store: Path, log: Path, progress: Progress, lease: int) -> None:
        """Return when the stage is committed. Raises StageFailed with the log's tail, or Interrupted.

        `lease` is the file descriptor of the stage's lock; the process inherits it, so that the lock outlives the
        driver.
        """
        ...


@dataclass(frozen=True, slots=True)
class VersionState:
    """A model version as the registry holds it: `tags` without the `quantize.` prefix, `aliases` pointing at it."""

    version: str
    variant: str
    state: str
    artifact_digest: str
    run_id: str | None
    created: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


class TargetRule(Protocol):
    """Which variants an alias that consumers load may draw from, and which of them it prefers."""

    @property
    def from_(self) -> list[str]: ...

    @property
    def prefer(self) -> str:
        """`bytes`: the fewest; `quality`: the highest lower limit of the first non-inferiority finding."""
        ...


class Registry(Protocol):
    """Versions, aliases and the record of runs: primitives only; `release.py` decides what to do with them."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> Mapping[str, TargetRule]:
        """Deployment targets by alias."""
        ...

    def versions(self) -> list[VersionState]:
        """All versions of the registered model, oldest first; empty where it does not exist yet."""
        ...

    def aliases(self) -> dict[str, str]:
        """Alias -> version."""
        ...

    def publish(self, checkpoint: Path, manifest: str, variant: str, run_id: str, tags: dict[str, str]) -> VersionState:
        """Create a version from a checkpoint's files and, beside them, `manifest` as MANIFEST_FILE."""
        ...

    def set_alias(self, alias: str, version: str) -> None:
        """Move an alias and read it back. Raises RegistryError when the read-back differs."""
        ...

    def tag(self, version: str, tags: dict[str, str]) -> None:
        """Set tags (without prefix) on a version."""
        ...

    def start_run(self, name: str, parent: str | None, tags: dict[str, str]) -> str:
        """Open a run in the base model's experiment; returns its id."""
        ...

    def log(
        self, run_id: str, params: dict[str, str], metrics: dict[str, float], files: Mapping[str, Sequence[Path]]
    ) -> None:
        """Log to a run. `files` maps a directory of the run's artifacts to the files that go there."""
        ...

    def log_decision(self, run_id: str, decision: Decision) -> None:
        """Log `decision.json` and the tags that reviewers filter by."""
        ...

    def end_run(self, run_id: str, status: str) -> None:
        """Close a run: `FINISHED` or `FAILED`."""
        ...

    def download(self, version: str, out: Path) -> None:
        """Fetch exactly the files of a version into `out`."""
        ...
