"""The whole extension API on one page.

Every extension is a frozen pydantic model with a `kind` literal that satisfies one of these protocols and is listed in
its package's union (`methods.MethodConfig`, `engines.EngineConfig`, ...). Adding one is one file and one line. The leaf
packages never import each other: what one needs from another is handed to it by `stages.py`.

    Source     model as named in a recipe   -> a checkpoint directory
    Calibrator the baseline                 -> token ids
    Method     checkpoint + token ids       -> a quantized checkpoint
    Engine     checkpoint                   -> a session that answers
    Metric     session, look by look        -> rows and measurements; two arms' rows -> pairs and comparisons
    Scorer     generated answers            -> scores (`scoring.py`)
    Traffic    server or session, requests  -> when each was sent and each token came
    Gate       evidence and pairs           -> finding
    Executor   stage                        -> a process that commits it
    Notifier   decisions                    -> somebody is told
    Registry   decisions                    -> versions and aliases that consumers load (`registry.py`)

Token ids are int64, logits float32. "Checkpoint" is a Hugging Face directory with safetensors weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantize.artifact import ModelFacts
from quantize.evidence import ArmMeasurements, Comparison, Evidence, Spending
from quantize.handed import Drawn, EvaluateJob, Host, Progress, QuantizeJob, Row, Session, StageSpec
from quantize.leases import Lease
from quantize.scheme import Scheme
from quantize.served import Arrivals, Request, Sent, Service, TimedSession
from quantize.verdict import Finding

if TYPE_CHECKING:
    from quantize.stats.pairs import Pairs

__all__ = [
    "Calibrator",
    "Engine",
    "Executor",
    "Gate",
    "Method",
    "Metric",
    "Notifier",
    "Sender",
    "Source",
    "Traffic",
]


class Source(Protocol):
    """Where the model comes from."""

    @property
    def kind(self) -> str: ...

    @property
    def online(self) -> bool:
        """Whether it asks the hub."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the bytes that come out."""
        ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: a commit or digests, never a path. May ask the hub, once; raises SourceError."""
        ...

    def pinned(self, identity: dict[str, Any]) -> "Source":
        """The same at the commits of its identity: a branch may move between the plan and the fetch."""
        ...

    def problems(self, facts: ModelFacts) -> list[str]:
        """Why the model that these are facts of cannot be a recipe's, each with what would do."""
        ...

    def notes(self, facts: ModelFacts) -> list[str]:
        """What the baseline means, where that is not simply the files as they are."""
        ...

    def facts(self) -> ModelFacts:
        """Shapes and sizes as far as they can be known before fetching, from `config.json` and file stats."""
        ...

    def fetch(self, out: Path, progress: Progress) -> None:
        """Put a complete, checked checkpoint (no pickle, no NaN, nothing truncated) into the empty `out`."""
        ...


class Calibrator(Protocol):
    """Where calibration tokens come from: `samples` rows of `tokens_per_sample` tokens at most."""

    @property
    def kind(self) -> str: ...

    @property
    def samples(self) -> int: ...

    @property
    def tokens_per_sample(self) -> int: ...

    @property
    def even(self) -> bool:
        """True where every row has `tokens_per_sample` tokens."""
        ...

    @property
    def allow_overlap(self) -> bool:
        """True where the recipe says that eval items may be among the texts."""
        ...

    @property
    def online(self) -> bool:
        """True where `draw` asks the hub."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version changes the tokens that come out."""
        ...

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the config, digests of files, commits. May ask the hub, once; raises DataError."""
        ...

    def pinned(self) -> "Calibrator":
        """The same with each revision as the commit that the key was made from."""
        ...

    def texts(self) -> list[str]:
        """The documents that are at hand before anything runs: none where they are written, or fetched, by then."""
        ...

    def chats(self) -> bool:
        """True where a document that is at hand is a conversation, which takes a chat template."""
        ...

    def draw(self, checkpoint: Path, device: str, progress: Progress) -> Drawn:
        """The rows. Raises DataError for what cannot be read, and where it is too little."""
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

    @property
    def remote(self) -> bool:
        """Whether stages run elsewhere: each takes its lease there, and none a share of this machine."""
        ...

    def run(self, spec: StageSpec, store: Path, log: Path, progress: Progress, lease: Lease | None) -> None:
        """Return when the stage is committed. Raises StageFailed with the log's tail, or Interrupted.

        The process inherits the `lease` (None if `remote`). Threads may be in it at once, each with a stage of its own.
        """
        ...

    def stop(self) -> None:
        """End every stage that another thread is at, and return when all have ended; no stage starts any more."""
        ...


class Notifier(Protocol):
    """Who is told what was decided."""

    @property
    def kind(self) -> str: ...

    @property
    def on(self) -> Sequence[str]:
        """What it is told of."""
        ...

    @property
    def shown(self) -> str:
        """How it is spoken of in a log: without what must not be known."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """Texts of its settings that no copy of the recipe may hold."""
        ...

    def send(self, document: str, facts: Mapping[str, str]) -> None:
        """Deliver a JSON document; `facts` are environment variables. Raises QuantizeError, with no secret in it."""
        ...
