"""Finished runs for tests of the page: real artifacts in a real store, real comparisons and gates; only the rows are
made up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report_load import TPOT, judged, ratio
from report_runs import decision, verdict

from quantize.artifact import Provenance
from quantize.benchmark.blockfile import REQUESTS_FILE, BlockRecord
from quantize.benchmark.keeping import CurvePart, LoadRecord, write_artifact
from quantize.evidence import ITEM_ROWS, TOKEN_ROWS, ArmMeasurements, Comparison, Evidence, Measurement, Spending
from quantize.gates import NonInferiority
from quantize.metrics import Items
from quantize.metrics._rows import item_measurements, write_rows
from quantize.record import digest
from quantize.report.page import Sources, page, read_sources
from quantize.run import RESOLVED, RunRecord, VariantRecord
from quantize.store import Store

#: What an eval item, a model's answer or a log may hold.
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;<!-- ]]> "
    "\x00\x1b[31m \u202eevil\u202c \ud800 ☃"
)
SLICES = ("dates", "names", "sums")
WINDOW = 65
#: As many as the ratios in `report_load` are of.
BLOCKS = 10


def answers(count: int, lost: float, seed: int, **texts: str) -> list[dict[str, Any]]:
    """Rows of items of which the share `lost` is wrong; `texts` replace what stands in every row."""
    chance = random.Random(seed)
    found = []
    for place in range(count):
        wrong = chance.random() < lost
        found.append(
            {
                "place": place,
                "look": place // 16,
                "item_id": f"item-{place:05}",
                "filter": "none",
                "prompt_sha256": str(place),
                "slice": SLICES[place % 3],
                "cluster": None,
                "score": float(not wrong),
                "parsed": None,
                "tokens": None,
                "answer": f"wrong {place}" if wrong else f"right {place}",
                "target": f"right {place}",
                "prompt": f"What is number {place}?",
                **texts,
            }
        )
    return found


@dataclass
class PageWorld:
    """A store with one run. `record` is what `run.json` would hold; `folder` is the run's."""

    root: Path
    evals: tuple[str, ...] = ("facts",)
    items: int = 120
    texts: tuple[str, ...] = ("prose",)
    told: str = ""

    def __post_init__(self) -> None:
        self.store = Store(self.root)
        self.folder = self.root / "runs" / "demo-1"
        self.folder.mkdir(parents=True)
        self.variants: list[VariantRecord] = []
        self.baseline: dict[str, str] = {"fetch": self.commit("fetch", "", lambda out: None)}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        shown = {"prompt": self.told, "answer": self.told} if self.told else {}
        for name in self.evals:
            self.rows[name] = answers(self.items, 0.1, seed=7, **shown)
            self.baseline[f"evaluate.{name}"] = self._evaluated("baseline", name, self.rows[name])

    def commit(self, kind: str, name: str, write: Callable[[Path], object]) -> str:
        """Commit an artifact; returns its key."""
        key = digest([kind, name])
        draft = self.store.draft(kind, key)
        write(draft)
        (draft / "kept").write_text(name, encoding="utf-8", errors="replace")
        provenance = Provenance(
            created="2026-01-01T00:00:00+00:00",
            host="host-a",
            seconds=3.0,
            peak_memory_bytes=500_000_000,
            python="3.11.7",
            libraries={"torch": "2.13.0"},
        )
        self.store.commit(draft, kind=kind, name=name, key=key, inputs={}, summary={}, provenance=provenance)
        return key

    def add(self, name: str, lost: float = 0.15, kld: float = 0.01, *, load: float | None = None, **texts: str) -> None:
        """Measure and judge a variant that loses so much. `load` is the ratio of its times to the baseline's."""
        shown = {"prompt": self.told, "answer": f"{self.told} {name}"} if self.told else {}
        comparisons: list[Comparison] = [weights(0.4)]
        measurements = [Measurement(name="weights.bytes", value=4e8, unit="bytes", n=1, direction="lower")]
        findings, stages = [], {"quantize": self.commit("quantize", name, lambda out: None)}
        for eval_name in self.evals:
            rows = answers(self.items, lost, seed=11, **(shown | texts))
            stages[f"evaluate.{eval_name}"] = self._evaluated(name, eval_name, rows)
            metric, gate = Items(name=eval_name, path="-"), NonInferiority(metric=f"{eval_name}.accuracy", margin=0.1)
            folders = [
                self.store.path("evaluate", key)
                for key in (self.baseline[f"evaluate.{eval_name}"], stages[f"evaluate.{eval_name}"])
            ]
            comparisons += metric.compare(*folders, 0.2)
            measurements += item_measurements(eval_name, rows)
            judged_on = self.evidence(name, [], [])
            findings.append(gate.judge(judged_on, metric.pairs(self.rows[eval_name], rows)))
        for text in self.texts:
            stages[f"evaluate.{text}"] = self.commit("evaluate", f"{name} {text}", lambda out: tokens(out, kld))
        if load is not None:
            low, high = load * 0.96, load * 1.05
            logs = [float(log) for log in np.log(np.linspace(load * 0.97, load * 1.03, BLOCKS))]
            comparisons.append(ratio(TPOT, 0.02, load, low, high, logs=logs))
            outcome = "fail" if load > 1.1 else "pass"
            findings.append(judged(TPOT, "latency", outcome, lower=low, upper=high, at_most=0.05))
            stages["benchmark"] = self.commit("benchmark", name, lambda out: requests(out, load))
        evidence = self.evidence(name, comparisons, measurements)
        self.variants.append(
            VariantRecord(
                name=name,
                verdict=verdict(name, findings).model_copy(update={"artifact_digest": "a" * 64}),
                evidence=evidence,
                decision=decision(name, findings),
                stages=stages,
                engine="transformers",
            )
        )

    def evidence(self, name: str, comparisons: list[Comparison], measurements: list[Measurement]) -> Evidence:
        """The evidence on a variant. The baseline has a gigabyte of weights, and differs a little from itself."""
        own = [Measurement(name="weights.bytes", value=1e9, unit="bytes", n=1, direction="lower")]
        noise = [
            c.model_copy(update={"difference": 0.0, "low": -0.01, "high": 0.01})
            for c in comparisons
            if c.unit == "share"
        ]
        if any(c.metric == TPOT for c in comparisons):
            noise.append(ratio(TPOT, 0.02, 1.0, 0.98, 1.03))
        return Evidence(
            variant=name,
            artifact_digest="a" * 64,
            baseline_digest="b" * 64,
            measurements=measurements,
            baseline_measurements=own,
            comparisons=comparisons,
            hard_stops=[],
            noise=noise,
            spending=Spending(early=0.2),
        )

    def record(self, **changes: Any) -> RunRecord:
        """The record of the run."""
        fields: dict[str, Any] = {
            "run": "demo-1",
            "recipe": "demo",
            "recipe_digest": "c" * 64,
            "program": "quantize 0.1.0",
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 60.0,
            "device": "a CPU",
            "actor": "nightly",
            "baseline_stages": self.baseline,
            "variants": self.variants,
            "ran": ["fetch"],
            "reused": ["evaluate baseline facts"],
        }
        return RunRecord(**{**fields, **changes})

    def sources(self, **changes: Any) -> Sources:
        """What the page is made from, read from the store."""
        import json

        recipe = {
            "variants": [
                {"name": v.name, "scheme": "W4A16", "method": {"kind": "gptq", "seed": 5}} for v in self.variants
            ],
            "evals": [{"kind": "text", "name": name, "window": WINDOW} for name in self.texts],
            "seed": 3,
            "model": {"kind": "directory", "path": "/models/demo"},
        }
        (self.folder / RESOLVED).write_text(json.dumps(recipe), encoding="utf-8")
        (self.folder / "recipe.yaml").write_text(f"name: demo\n# {self.told}\n", encoding="utf-8", errors="replace")
        return read_sources(self.record(**changes), self.folder, self.store)

    def page(self, **changes: Any) -> str:
        """The page of the run."""
        return page(self.sources(**changes))

    def _evaluated(self, arm: str, eval_name: str, rows: Sequence[dict[str, Any]]) -> str:
        def write(out: Path) -> None:
            write_rows(
                [{**row, **{k: clean(v) for k, v in row.items() if isinstance(v, str)}} for row in rows], ITEM_ROWS, out
            )
            measured = ArmMeasurements(
                eval=eval_name,
                arm=arm,
                dataset_digest="d",
                engine="transformers",
                device="cpu",
                measurements=[],
                hard_stops=[],
            )
            (out / "measurements.json").write_text(measured.model_dump_json(), encoding="utf-8")

        return self.commit("evaluate", f"{arm} {eval_name}", write)


def clean(text: str) -> str:
    """As Parquet can hold it."""
    return text.encode("utf-8", "replace").decode()


def weights(share: float) -> Comparison:
    """The share of the baseline's bytes."""
    return Comparison(
        metric="weights.bytes",
        unit="share of the baseline",
        baseline=1e9,
        variant=share * 1e9,
        difference=share,
        low=None,
        high=None,
        level=None,
        n=1,
        method="file sizes",
        extra={},
    )


def tokens(out: Path, kld: float, documents: int = 4) -> None:
    """Rows of a text: of each document three windows, divergences that grow with the context."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    each = 3 * (WINDOW - 1)
    context = np.tile(np.arange(1, WINDOW), 3 * documents)
    n = each * documents
    columns: dict[str, Any] = {
        "document": np.repeat(np.arange(documents), each),
        "position": np.arange(n),
        "token": np.zeros(n),
        "nll": np.ones(n),
        "kld": kld * context / WINDOW,
        "top1_agrees": np.ones(n, dtype=bool),
        "delta_p": np.zeros(n),
        "kld_at_least": pa.nulls(n, pa.float64()),
    }
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in TOKEN_ROWS.items()])
    arrays = [pa.array(column).cast(schema.field(name).type) for name, column in columns.items()]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), out / "rows.parquet")


def requests(out: Path, load: float, blocks: int = BLOCKS, count: int = 20) -> None:
    """A benchmark's artifact: in each block both arms answer some requests, the variant `load` times as slowly."""
    chance = random.Random(1)
    parts = []
    for number in range(1, blocks + 1):
        rows = []
        for arm, factor in (("baseline", 1.0), ("variant", load)):
            for place in range(count):
                first, gap = factor * chance.uniform(0.05, 0.2), factor * chance.uniform(0.01, 0.03)
                times = [place + first + gap * i for i in range(8)]
                rows.append(
                    {
                        "block": number,
                        "attempt": 0,
                        "arm": arm,
                        "load": "single",
                        "place": place,
                        "warmup": False,
                        "request": f"r{place}",
                        "scheduled": float(place),
                        "dispatched": float(place),
                        "tokens": times,
                        "end": times[-1],
                        "gen_ai.usage.input_tokens": 8,
                        "gen_ai.usage.output_tokens": 8,
                        "error.type": None,
                    }
                )
        block = BlockRecord(
            block=number,
            attempt=0,
            order=["baseline", "variant"],
            valid=True,
            reasons=[],
            starts={},
            memory={},
            facts={},
            machine={},
        )
        parts.append((block, rows))
    (out / REQUESTS_FILE).write_text(
        '{"id": "r0", "prompt": "a", "input_tokens": 8, "output_tokens": 8}\n', encoding="utf-8"
    )
    loads = LoadRecord(rates={}, knee=None, warning=None, left_out={}, reasons={})
    write_artifact(out, (CurvePart(arms=[]), []), parts, loads, {"cpu": "one of a kind"})
