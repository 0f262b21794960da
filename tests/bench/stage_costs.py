"""What the stages of a large model take on H100s, on paper: the formulas and rates of docs/scale.md.

Nothing here was measured on a GPU. Every rate says where it is from; docs/scale.md has titles and addresses. Bytes,
seconds, tokens and parameters throughout; a gigabyte is 1e9 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantize import coverage
from quantize.artifact import ModelFacts
from quantize.benchmark import effort
from quantize.plan import Plan, Stage
from quantize.recipe import Variant
from quantize.sources import config_facts

#: NVIDIA's H100 SXM: dense operations a second with 16 and 8 bits, bytes a second of its memory, bytes of it.
PEAK = {16: 989e12, 8: 1979e12}
HBM, GPU_MEMORY = 3.35e12, 80e9
#: Share of the peak that large products reach, all included: Llama 3 was trained at 38 to 43 %.
UTILISED = 0.4
#: Share of its memory's bandwidth at which an answer is decoded: 77 % were measured for an 8B model in vLLM.
READ_UTILISED = 0.77
#: Share of n times one GPU's speed that n GPUs in tensor parallel have. An assumption, and a kind one beyond a node.
PARALLEL = 0.8
#: Host memory a GPU: 2 TiB for eight in a p5.48xlarge.
HOST_MEMORY = 2048 * 2**30 / 8
#: Bytes a second from the hub by one Python process ("beyond ~500MB/s" is what its faster clients are for).
HUB = 0.5e9
#: The same from a bucket in the same region over 100 Gb/s: 8,003 MB/s were measured.
BUCKET = 8.0e9
#: One NVMe drive for data centers (PM9A3, U.2): sequential bytes a second.
DISK_READ, DISK_WRITE = 6.5e9, 3.5e9
#: Bytes a second that one process of vLLM loads: 16 GB in 18 s from a warm cache.
LOADER = 16e9 / 18
#: Seconds of a server's start beside its weights, caches of compiled code warm: 10 + 13 + 7 + 34.
SERVER_START = 64.0
#: Bytes of sha256 a CPU second, on one core with SHA instructions; measured here (docs/scale.md has the line).
HASH = 1.47e9
#: Seconds of work a parameter: GPTQ of an 8B model takes 745 s, of one with 175B four hours on an A100 (82e-9).
GPTQ = 745 / 8.03e9
#: Others beside GPTQ by llm-compressor's page of runtimes: 30 minutes where GPTQ takes 30; scales alone 20, or 1.
BESIDE_GPTQ = {"gptq": 1.0, "awq": 1.0, "smoothquant": 20 / 30, "rtn": 1 / 30}
#: A process starts, imports and ends; a judge reads rows and writes a verdict.
PROCESS, JUDGE = 10.0, 5.0
#: Tokens that one arm is asked to score in each eval: ten thousand items of 500, and a text.
EVAL_TOKENS = {"items": 5_000_000, "text": 300_000}
#: Requests under way and tokens of each that an engine keeps room for (`max_num_seqs`, `max_model_len`).
SEQUENCES, CONTEXT = 16, 4096
#: Bytes that an engine needs on every GPU for activations and captured graphs. An assumption.
WORKSPACE = 4e9


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's config times and bytes depend on. `total` and `active` are parameters, the others bytes."""

    total: int
    active: int
    cache_per_token: int
    largest_layer: int
    hessians: int

    @classmethod
    def of(cls, config: dict[str, int], facts: ModelFacts) -> Shape:
        """From a `config.json` and what the planner makes of it."""
        per_layer: dict[str, list[tuple[int, int]]] = {}
        idle, experts, chosen = 0, config.get("num_experts", 0), config.get("num_experts_per_tok", 0)
        for name, shape in facts.modules.items():
            out, columns = map(int, shape.split("x"))
            per_layer.setdefault(name.split(".")[2], []).append((out, columns))
            if ".experts." in name and int(name.split(".")[5]) >= chosen:
                idle += out * columns
        assert facts.parameters is not None and (not experts or idle)
        return cls(
            total=facts.parameters,
            active=facts.parameters - idle,
            cache_per_token=4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"],
            largest_layer=max(sum(2 * out * columns for out, columns in layer) for layer in per_layer.values()),
            hessians=max(sum(4 * columns**2 for _, columns in layer) for layer in per_layer.values()),
        )

    @property
    def weights(self) -> float:
        """Bytes in bfloat16."""
        return 2.0 * self.total


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage; peak bytes on its GPUs together and in the host; bytes on disk and over the network."""

    seconds: float
    gpu: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    network: float = 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """Costs of a plan's stages, all of whose arms run in one engine over `parallel` GPUs.

    `kept` are the bytes of each variant's weights by its name, `network` the bytes a second that fetching has.
    """

    plan: Plan
    shape: Shape
    kept: Mapping[str, float]
    parallel: int
    network: float = HUB

    @classmethod
    def of(cls, plan: Plan, config: dict[str, int], parallel: int, network: float = HUB) -> Model:
        """Of a plan whose model has this `config.json`."""
        facts = config_facts(config)
        kept = {way.variant.name: coverage.weight_bytes(way.variant, facts, 2) or 0.0 for way in plan.variants}
        return cls(plan, Shape.of(config, facts), kept, parallel, network)

    def cost(self, stage: Stage) -> StageCost:
        """What one stage of the plan takes."""
        if stage.kind == "fetch":
            weights = self.shape.weights
            looked_at = weights / DISK_READ + weights / HASH  # every tensor for NaN, every file's digest
            return StageCost(weights / self.network + looked_at, 0.0, 2e9, weights, weights)
        if stage.kind == "judge":
            return StageCost(JUDGE, host=0.5e9)
        if stage.kind == "calibrate":
            return StageCost(PROCESS + 20, gpu=1e9, host=2e9)
        return {"quantize": self._quantize, "benchmark": self._benchmark}.get(stage.kind, self._asked)(stage)

    def _quantize(self, stage: Stage) -> StageCost:
        """The model in the host, layers through a GPU, the witness on all of them, files written and hashed."""
        variant = self._variant(stage)
        kept = self._weights(variant)
        method = GPTQ * self.shape.total * BESIDE_GPTQ[variant.method.kind]
        seconds = PROCESS + self.shape.weights / LOADER + method + kept / DISK_WRITE + kept / HASH
        layer = self.shape.hessians if variant.method.kind == "gptq" else 0
        return StageCost(seconds, self.shape.weights + layer + WORKSPACE, self.shape.weights, kept)

    def _asked(self, stage: Stage) -> StageCost:
        """A proof or an eval: an engine loads an arm and scores tokens."""
        variant = self._variant(stage)
        bits, kept = self._computed(variant), self._weights(variant)
        tokens = 20_000 if stage.kind == "prove" else EVAL_TOKENS[stage.config["metric"]["kind"]]
        rate = PEAK[bits] * UTILISED * self._speed
        seconds = PROCESS + self._start(kept) + 2.0 * self.shape.active * tokens / rate
        if stage.kind == "prove":  # the fingerprint of every weight reads the files once more
            seconds += kept / DISK_READ
        return StageCost(seconds, self._served(kept), 10e9)

    def _benchmark(self, stage: Stage) -> StageCost:
        """Servers that start again for every block, and the requests between."""
        benchmark = self.plan.recipe.benchmark
        assert benchmark is not None
        arms = [self._weights(None), self._weights(self._variant(stage))]
        work = effort.effort(benchmark, 2)
        rate, bandwidth = PEAK[16] * UTILISED * self._speed, HBM * READ_UTILISED * self._speed
        sent = effort.seconds(replace(work, starts=0), benchmark, self.shape.active, rate, bandwidth, 2)
        seconds = PROCESS + work.starts * sum(map(self._start, arms)) / 2 + sent
        return StageCost(seconds, self._served(max(arms)), 10e9, 50e6)

    def _weights(self, variant: Variant | None) -> float:
        """Bytes of an arm's weights: the baseline's for None."""
        return self.shape.weights if variant is None else self.kept[variant.name]

    @property
    def _speed(self) -> float:
        return self.parallel * PARALLEL if self.parallel > 1 else 1.0

    def _start(self, weights: float) -> float:
        """Seconds until an engine answers: each GPU's process loads its share, the drive is shared."""
        return SERVER_START + weights / min(LOADER * self.parallel, DISK_READ)

    def _served(self, weights: float) -> float:
        return weights + SEQUENCES * CONTEXT * self.shape.cache_per_token + WORKSPACE * self.parallel

    def _computed(self, variant: Variant | None) -> int:
        """Bits of the products: 8 where activations have 8 too, else 16."""
        return 8 if variant is not None and variant.resolved_scheme().activation_bits == 8 else 16

    def _variant(self, stage: Stage) -> Variant | None:
        return next((way.variant for way in self.plan.variants if way.variant.name in stage.name.split()), None)
