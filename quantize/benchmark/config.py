"""What a recipe says of a benchmark: which requests, how they arrive, how often it is repeated, what counts as good."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quantize.benchmark.requests import RequestsConfig, Synthetic
from quantize.evidence import LOAD
from quantize.record import Record
from quantize.traffic import GuideLLM, TrafficConfig

__all__ = [
    "GOODPUT",
    "LEAST_BLOCKS",
    "OF_THE_ARM",
    "QUANTITIES",
    "Benchmark",
    "Concurrent",
    "LoadConfig",
    "Open",
    "Price",
    "Slo",
    "Sweep",
    "Synchronous",
    "least_requests",
]

#: Fewer valid blocks say nothing: the interval of a mean needs some to know how far they scatter.
LEAST_BLOCKS = 6

#: Requests one after the other in each stream of a curve's point, at least: its first and last are no steady state.
_EACH_STREAM = 4

#: Of a load: seconds by percentile, rates a second, the share of requests that failed.
TIMES = ("ttft", "tpot", "itl", "e2e")
PERCENTILES = (50, 90, 95, 99)
GOODPUT = "goodput"
QUANTITIES = (
    *(f"{time}_p{percentile}" for time in TIMES for percentile in PERCENTILES),
    "output_tokens_per_second",
    "requests_per_second",
    GOODPUT,
    "failures",
)
#: Of an arm, whatever its load: bytes, and how many of the longest requests fit into its memory.
OF_THE_ARM = ("memory_peak", "memory_kv", "concurrency")


def least_requests(quantity: str) -> int:
    """How many requests a block must have for a quantity of its own: one beyond a percentile, so 20 for the 95th."""
    percentile = quantity.rpartition("_p")[2]
    beyond = 100 - int(percentile) if percentile.isdecimal() else 100
    return -(-100 // beyond)


LoadName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


class Synchronous(Record):
    """One request after another."""

    kind: Literal["synchronous"] = "synchronous"
    name: LoadName
    requests: Annotated[int, Field(ge=4, description="Measured requests in every block.")] = 16

    @property
    def streams(self) -> int:
        """How many requests are under way at the same time."""
        return 1


class Concurrent(Record):
    """A closed loop: `streams` requests are under way at any time."""

    kind: Literal["concurrent"] = "concurrent"
    name: LoadName
    streams: Annotated[int, Field(ge=1)]
    requests: Annotated[int, Field(ge=4, description="Measured requests in every block.")] = 32


class Open(Record):
    """An open loop: requests arrive whether those before are answered or not, at even intervals or as by chance.

    At `rate` a second, or at the share `of_knee` of what the baseline can keep up with: one absolute rate for all arms.
    """

    kind: Literal["constant", "poisson"]
    name: LoadName
    rate: Annotated[float | None, Field(gt=0, description="Requests a second.")] = None
    of_knee: Annotated[float, Field(gt=0, le=1.5, description="Share of the baseline's knee.")] = 0.7
    requests: Annotated[int, Field(ge=4, description="Measured requests in every block.")] = 64


class Sweep(Record):
    """Open loops at several shares of the baseline's knee, from little to nearly too much: a load of its own each."""

    kind: Literal["sweep"] = "sweep"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,27}$")]
    arrivals: Literal["constant", "poisson"] = "constant"
    of_knee: Annotated[tuple[Annotated[float, Field(gt=0, le=1.5)], ...], Field(min_length=2)] = (0.25, 0.5, 0.75, 0.9)
    requests: Annotated[int, Field(ge=4, description="Measured requests at each rate in every block.")] = 32

    def loads(self) -> list[Open]:
        """One load a rate, named by its share in percent: `sweep-75`."""
        return [
            Open(kind=self.arrivals, name=f"{self.name}-{round(100 * share)}", of_knee=share, requests=self.requests)
            for share in self.of_knee
        ]


#: What is sent, and what a recipe may write.
LoadConfig = Synchronous | Concurrent | Open
WrittenLoad = Annotated[LoadConfig | Sweep, Field(discriminator="kind")]


def _usual_loads() -> list[WrittenLoad]:
    return [Synchronous(name="single"), Open(kind="poisson", name="traffic")]


class Slo(Record):
    """What a request must keep to count as good, in seconds; what is not named does not count."""

    ttft: Annotated[float | None, Field(gt=0)] = None
    tpot: Annotated[float | None, Field(gt=0)] = None
    e2e: Annotated[float | None, Field(gt=0)] = None

    @model_validator(mode="after")
    def _names_something(self) -> Slo:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise ValueError("name at least one of ttft, tpot and e2e, in seconds")
        return self


class Price(Record):
    """What one device costs, in the recipe's own currency."""

    per_device_hour: Annotated[float, Field(gt=0)]
    currency: str = "USD"


class Benchmark(Record):
    """Latency under load: variants that passed their evals, each in pairs with the baseline, in interleaved blocks.

    Every block starts both arms' servers anew, in random order, and sends each load to each. `curve` are the closed
    loops, by requests under way, by which the baseline's knee is found and capacity is counted. A block is invalid when
    an arm's halves differ in their median by more than `drift`, the device's clocks were throttled, or something else
    used it (of a CPU: more than the share `foreign`). It is kept on record, and run again while `reruns` are left.
    """

    requests: RequestsConfig = Synthetic()
    traffic: TrafficConfig = GuideLLM()
    loads: Annotated[list[WrittenLoad], Field(min_length=1)] = Field(default_factory=_usual_loads)
    blocks: Annotated[int, Field(ge=LEAST_BLOCKS, le=100)] = 10
    reruns: Annotated[int, Field(ge=0, le=100)] = 5
    warmup: Annotated[int, Field(ge=0, description="Requests before each load that are not counted.")] = 2
    drift: Annotated[float, Field(gt=0, lt=1)] = 0.05
    foreign: Annotated[
        float, Field(gt=0, le=1, description="Share of the machine's CPU time that others may use meanwhile.")
    ] = 0.05
    curve: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    curve_requests: Annotated[
        int, Field(ge=4, description="Measured requests at each point of the curve, four to each under way at least.")
    ] = 20
    request_seconds: Annotated[float, Field(gt=0, description="A request that takes longer has failed.")] = 300
    slo: Slo | None = None
    price: Price | None = None
    alone: Annotated[
        bool, Field(description="The baseline does not fit the device: variants are measured without it.")
    ] = False
    draft: Annotated[
        str | None, Field(description="A variant that guesses ahead for the baseline: an arm of its own.")
    ] = None

    @property
    def sent(self) -> list[LoadConfig]:
        """The loads that every block sends, a sweep's one by one."""
        return [one for load in self.loads for one in (load.loads() if isinstance(load, Sweep) else [load])]

    def at_point(self, streams: int) -> int:
        """How many requests a point of the curve has: enough that its beginning and its end weigh little."""
        return max(self.curve_requests, _EACH_STREAM * streams)

    def before(self, streams: int) -> int:
        """How many requests warm a load up. In process a batch of its size: what meets a size first prepares for it."""
        return self.warmup if self.traffic.served or not self.warmup else max(self.warmup, streams)

    def identity(self) -> dict[str, Any]:
        """What goes into the key: all that a time depends on. What counts as good and what it costs is for later."""
        own = self.model_dump(mode="json", exclude={"requests", "slo", "price", "draft"})
        return {**own, "requests": self.requests.identity()}

    def of_blocks(self) -> dict[str, Any]:
        """The same for the parts of a benchmark: a block does not depend on how many there are going to be."""
        return {key: value for key, value in self.identity().items() if key not in ("blocks", "reruns")}

    def metrics(self) -> tuple[str, ...]:
        """What is measured, as gates name it."""
        under_load = [name for name in QUANTITIES if name != GOODPUT or self.slo is not None]
        loads = [f"{LOAD}.{name}/{load.name}" for load in self.sent for name in under_load]
        return (*loads, *(f"{LOAD}.{name}" for name in OF_THE_ARM))

    @field_validator("curve")
    @classmethod
    def _rises(cls, curve: tuple[int, ...]) -> tuple[int, ...]:
        if list(curve) != sorted(set(curve)):
            raise ValueError("the curve's points must rise")
        return curve

    @model_validator(mode="after")
    def _loads_are_named_once(self) -> Benchmark:
        names = [load.name for load in self.sent]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two loads have the name {twice[0]!r}")
        return self

    @model_validator(mode="after")
    def _in_process_has_no_queue(self) -> Benchmark:
        waiting = [load.name for load in self.sent if isinstance(load, Open)]
        if not self.traffic.served and waiting:
            raise ValueError(
                f"the load {waiting[0]!r} needs a server that requests can wait for: take `traffic: {{kind: guidellm}}`"
                ", or loads of kind synchronous and concurrent"
            )
        if not self.traffic.served and self.draft is not None:
            raise ValueError("a draft guesses ahead in a server: take `traffic: {kind: guidellm}`")
        if self.alone and self.draft is not None:
            raise ValueError("a draft guesses ahead for the baseline, which `alone` leaves out")
        return self
