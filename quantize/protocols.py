"""The whole extension API on one page.

Every extension is a frozen pydantic model with a `kind` literal that satisfies one of these protocols and is listed in
its package's union (`methods.MethodConfig`, `engines.EngineConfig`, ...). Adding one is one file and one line. The leaf
packages never import each other: what one needs from another is handed to it by `stages.py`.

    Source     model as named in a recipe   -> a checkpoint directory
    Calibrator the baseline                 -> token ids
    Method     checkpoint + token ids       -> a quantized checkpoint
    Engine     checkpoint                   -> a session that answers
    Metric     session, look by look        -> rows and measurements; two arms' rows -> pairs and comparisons
    Traffic    server or session, requests  -> when each was sent and each token came
    Gate       evidence and pairs           -> finding
    Executor   stage                        -> a process that commits it
    Registry   decisions                    -> versions and aliases that consumers load

Token ids are int64, logits float32. "Checkpoint" is a Hugging Face directory with safetensors weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantize.artifact import ModelFacts
from quantize.evidence import ArmMeasurements, Comparison, Evidence, Spending
from quantize.handed import (
    EvaluateJob,
    Host,
    JournalLine,
    Progress,
    QuantizeJob,
    Row,
    Session,
    StageSpec,
    TargetRule,
    Trade,
    VersionState,
)
from quantize.scheme import Scheme
from quantize.served import Arrivals, Request, Sent, Service, TimedSession
from quantize.verdict import Decision, Finding

if TYPE_CHECKING:
    import torch

    from quantize.stats.pairs import Pairs

__all__ = [
    "MANIFEST_FILE",
    "Calibrator",
    "Engine",
    "Executor",
    "Gate",
    "Method",
    "Metric",
    "Registry",
    "Sender",
    "Source",
    "Traffic",
]

#: The list of a version's files with their sha256, logged beside them.
MANIFEST_FILE = "quantize-manifest.json"


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

    @property
    def allow_overlap(self) -> bool:
        """True where the recipe says that eval items may be among the texts."""
        ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the config and the digests of the files it reads."""
        ...

    def texts(self) -> list[str]:
        """The documents that tokens are drawn from; empty where the model writes them itself."""
        ...

    def tokens(self, checkpoint: Path, device: str, progress: Progress) -> "torch.Tensor":
        """Int64 token ids of shape (samples, tokens), every row full: no padding."""
        ...


class Method(Protocol):
    """How a scheme's numbers are found."""

    @property
    def kind(self) -> str: ...

    @property
    def format(self) -> str:
        """The container on disk: `compressed-tensors`, `bitsandbytes`, `gptq`, `awq`, `gguf`."""
        ...

    @property
    def environment(self) -> str | None:
        """The environment whose interpreter runs the stage; None: the program's own."""
        ...

    @property
    def tools(self) -> tuple[str, ...]:
        """Environments whose interpreters it calls."""
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

    def refusal(self, device: str) -> str | None:
        """Why it cannot run on `cpu` or `cuda` at all, with what would do; None where it can."""
        ...

    def quantize(self, job: QuantizeJob) -> None:
        """Write the quantized checkpoint into `job.out`, tokenizer and generation config included."""
        ...


class Engine(Protocol):
    """What runs an artifact."""

    @property
    def kind(self) -> str: ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version may change a logit."""
        ...

    @property
    def form(self) -> Literal["checkpoint", "gguf"]:
        """What it loads."""
        ...

    @property
    def hosted(self) -> bool:
        """True where the stage itself runs in the engine's environment; False where it calls a process there."""
        ...

    def environment(self, device: str) -> str | None:
        """The environment that it needs on `cpu` or `cuda`; None: the program's own."""
        ...

    def open(self, checkpoint: Path, device: str, host: Host) -> Session:
        """Load `checkpoint` on `device` (`cpu`, `cuda`, `cuda:1`). Raises QuantizeError when it does not load."""
        ...

    def serve(self, checkpoint: Path, device: str, host: Host, draft: Path | None = None) -> Service:
        """Start a server on `checkpoint` and wait until it answers. `draft` guesses ahead for it, where it can.

        Raises QuantizeError when it does not load, EngineLost when it is killed or not ready in time.
        """
        ...

    def room(self, trained: int | None) -> int | None:
        """Tokens of a request that it takes, answer included, of a model trained on `trained`; None: not known."""
        ...

    def in_other_batches(self) -> "Engine":
        """The same engine with another batch size: what it answers differently is noise."""
        ...


class Metric(Protocol):
    """One eval: measures an arm, then compares two arms' rows."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it measures, as gates name it after the eval's name."""
        ...

    @property
    def paired(self) -> tuple[str, ...]:
        """Those quantities that are bounded scores of items, which non-inferiority can be tested on."""
        ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the config and the digests of the files it reads. Raises DataError for bad ones."""
        ...

    def dataset(self) -> str:
        """The digest of what is asked, whatever it is called, in which order and how: attempts are counted on it."""
        ...

    def cluster_sizes(self, slice_name: str | None = None, quantity: str = "accuracy") -> list[int]:
        """Items in each cluster, of all or of one slice, that a quantity is measured on.

        Empty where only the running task knows.
        """
        ...

    def slices(self) -> tuple[str, ...]:
        """The slices that the items name."""
        ...

    def texts(self) -> list[str]:
        """What the model is asked, as far as it is known before running: for the check against calibration data."""
        ...

    def measure(self, job: EvaluateJob) -> ArmMeasurements:
        """Answer the items, write `rows.parquet` into `job.out`, return the measurements."""
        ...

    def pairs(self, baseline: list[Row], variant: list[Row]) -> "dict[str, Pairs]":
        """The paired scores by metric name, slices too; empty for a text. Raises DataError naming the first mismatch.

        The variant may have answered only the first looks; what it did not answer is known from the baseline's rows.
        """
        ...

    def compare(self, baseline: Path, variant: Path, early: float) -> list[Comparison]:
        """Join two `evaluate` artifacts and compare. `early` is the share of alpha that stopping early has used."""
        ...


class Traffic(Protocol):
    """Who asks, and how the answers are timed."""

    @property
    def kind(self) -> str: ...

    @property
    def served(self) -> bool:
        """True where a server is asked (`Service`); False where the model is timed in this process (`TimedSession`)."""
        ...

    @property
    def environment(self) -> str | None:
        """The environment whose interpreter sends; None: the program's own."""
        ...

    def open(self, tokenizer: Path, host: Host) -> "Sender":
        """Get ready to send. `tokenizer` is a checkpoint's directory."""
        ...


class Sender(Protocol):
    """Sends one load after another. Close it when done."""

    def send(
        self, target: Service | TimedSession, arrivals: Arrivals, requests: Sequence[Request], seconds: float
    ) -> list[Sent]:
        """Send every request once, in their order, and say what became of each. `seconds` is one request's deadline.

        A failed request is a `Sent` with its error. Raises QuantizeError where the sender itself fails, ClockMoved
        where its clock was.
        """
        ...

    def close(self) -> None: ...


class Gate(Protocol):
    """A rule of the recipe: evidence in, finding out, nothing else read."""

    @property
    def kind(self) -> str: ...

    @property
    def metric(self) -> str:
        """`<eval>.<quantity>`, as comparisons name it."""
        ...

    @property
    def advisory(self) -> bool:
        """True where its finding never blocks."""
        ...

    def judge(self, evidence: Evidence, pairs: "Mapping[str, Pairs]") -> Finding: ...

    def look(self, pairs: "Pairs | None", spending: Spending) -> Literal["pass", "fail", "futile"] | None:
        """What is already certain of a sample that is still growing; None where more items are needed to say."""
        ...


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

    @property
    def trade(self) -> "Trade | None":
        """How much quality a smaller candidate may cost the champion that it replaces; None: no more than a gate."""
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

    def set_alias(self, alias: str, version: str | None) -> None:
        """Move an alias and read it back; None removes it. Raises RegistryError when the read-back differs."""
        ...

    def tag(self, version: str, tags: dict[str, str]) -> None:
        """Set tags (without prefix) on a version."""
        ...

    def prepare(self) -> None:
        """Create the registered model and its journal where they are not there yet; several processes may at once."""
        ...

    def append(self, text: str, digest: str) -> int:
        """Add an entry to the journal, whole or not at all; returns its number, which nobody else gets.

        Where the answer was lost and the question asked again, there may be two of it.
        """
        ...

    def entries(self, after: int) -> list[JournalLine]:
        """The journal's entries with a greater number, in their order; none where there is no journal."""
        ...

    def renew(self, number: int, value: str) -> None:
        """Set what changes about an entry."""
        ...

    def head(self) -> str:
        """What `set_head` wrote into the model's own tag; "" where nobody has."""
        ...

    def set_head(self, mark: str) -> None:
        """Write down, outside the journal, how far it went."""
        ...

    def listing(self, version: str) -> str:
        """The text of a version's MANIFEST_FILE. Raises RegistryError where it has none."""
        ...

    @property
    def lock_file(self) -> Path | None:
        """A file whose `flock` all users of this registry share; None where they are on several machines."""
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

    def fetch(self, run_id: str, path: str, out: Path) -> Path:
        """Fetch one logged file of a run, or a folder of them, into the folder `out`; returns where it lies.

        Raises DataError where the run holds no such thing, RegistryError where nobody answers.
        """
        ...

    def download(self, version: str, out: Path) -> None:
        """Fetch exactly the files of a version into `out`."""
        ...
