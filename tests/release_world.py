"""A store with small checkpoints and finished runs over them, for tests of what comes after the verdicts.

Everything is real but the measuring: checkpoints are committed to a `Store`, the recipe is a `Recipe`, the runner a
`Runner`, the registry an MLflow database, the rows those of an eval; only the verdicts, and which items an arm gets
right, are written by hand.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from program import TINY

from quantize.artifact import Provenance
from quantize.attempts import Ledger, basis, note
from quantize.device import Device
from quantize.evidence import ITEM_ROWS, Comparison, Evidence, Measurement
from quantize.executors import Local
from quantize.handed import Row
from quantize.metrics._rows import write_rows
from quantize.plan import Baseline, Measured, Plan, Stage, VariantPlan
from quantize.recipe import LoadedRecipe, Recipe
from quantize.record import file_sha256
from quantize.registries import Mlflow
from quantize.release import release_run
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.store import Store
from quantize.verdict import Finding, Outcome, Verdict
from quantize.watcher import Watcher

PROVENANCE = Provenance(
    created="2026-01-01T00:00:00+00:00", host="h", seconds=1.0, peak_memory_bytes=1, python="3", libraries={}
)


ITEMS, LOOK = 300, 30


@dataclass(frozen=True)
class Result:
    """One variant of a run: its checkpoint's bytes, what it answered, and how it was judged.

    It gets wrong what the baseline does (every fifth item), and in addition those in `lost`, by place. It answered the
    first `looks` of ten. `p_value` is that of its gate, whose alpha is 0.05. `attempt` is the one that it is judged at;
    None: the one that store and registry tell. `lower` and `difference` are its gate's too; None is half a point above.
    """

    variant: str
    weights: bytes
    outcome: Outcome = "pass"
    lower: float = -0.01
    difference: float | None = None
    note: str = ""
    lost: range = range(0)
    looks: int = 10
    attempt: int | None = None
    p_value: float = 1e-6


def answers(eval_set: str, lost: range = range(0), looks: int = ITEMS // LOOK, *, extra: int = 0) -> list[Row]:
    """Rows of an arm on an eval set of that name: every fifth item wrong, and those in `lost`.

    `extra` items more are scattered among the 300, so that an arm of the smaller set has answered in another order.
    """
    names = [f"{eval_set}-{number}" for number in range(ITEMS)]
    for number in range(extra):
        names.insert(3 * number, f"{eval_set}-more-{number}")
    return [
        {
            "place": place,
            "look": place // LOOK,
            "item_id": name,
            "filter": "none",
            "prompt_sha256": hashlib.sha256(name.encode()).hexdigest(),
            "slice": None,
            "cluster": None,
            "score": float(place % 5 > 0 and place not in lost),
            "parsed": None,
            "tokens": None,
            "answer": "",
            "target": "",
            "prompt": name,
        }
        for place, name in enumerate(names[: looks * LOOK + extra])
    ]


def _reports(record: RunRecord) -> dict[str, str]:
    return {f"report.{kind}": f"report of {record.run}\n" for kind in ("md", "html")}


@dataclass
class World:
    """A folder with a store, and the registry that its runs release to.

    New runs are measured on `eval_set`, with `extra` items more. With `confirmation`, the recipe has another eval that
    only passing variants are shown, and none of these is. `releasing` is the section `release` of the recipe, `weights`
    its `registry.weights`.
    """

    folder: Path
    uri: str
    targets: dict[str, Any] = field(default_factory=lambda: {"production": {"from": ["fp8", "int4"]}})
    baseline: bytes = b"baseline" * 100
    model: str = "tiny"
    trade: dict[str, float] | None = None
    eval_set: str = "items"
    extra: int = 0
    confirmation: bool = False
    releasing: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def registry(self) -> Mlflow:
        return Mlflow.model_validate(
            {
                "name": self.model,
                "uri": self.uri,
                "artifacts": str(self.folder / "mlartifacts"),
                "targets": self.targets,
                "trade": self.trade,
                "weights": self.weights,
            }
        )

    def commit(self, kind: str, name: str, weights: bytes) -> Stage:
        """A committed stage whose checkpoint holds `weights`."""
        key = hashlib.sha256(kind.encode() + weights).hexdigest()
        with self.store.lease(kind, key, lambda _owner: None):
            if self.store.find(kind, key) is None:
                draft = self.store.draft(kind, key)
                (draft / "checkpoint" / "extra").mkdir(parents=True)
                (draft / "checkpoint" / "model.safetensors").write_bytes(weights)
                shutil.copyfile(TINY / "checkpoint" / "config.json", draft / "checkpoint" / "config.json")
                (draft / "checkpoint" / "extra" / "tokenizer.json").write_text("{}", encoding="utf-8")
                (draft / "beside.txt").write_text("not part of the checkpoint", encoding="utf-8")
                self.store.commit(draft, kind=kind, name=name, key=key, inputs={}, summary={}, provenance=PROVENANCE)
        return Stage(kind, name, key, 1, {}, {}, (), "cpu")

    def run(self, *results: Result) -> tuple[Runner, RunRecord]:
        """A run that has measured and judged `results`, and released nothing."""
        names = [result.variant for result in results]
        targets = {
            alias: {**rule, "from": [name for name in rule["from"] if name in names]}
            for alias, rule in self.targets.items()
            if set(rule["from"]) & set(names)
        }
        evals = ["facts", "fresh"] if self.confirmation else ["facts"]
        recipe = Recipe.model_validate(
            {
                "version": 1,
                "name": "tiny",
                "model": {"kind": "directory", "path": str(self.folder / "model")},
                "variants": [{"name": name, "scheme": "W8A8", "method": {"kind": "rtn"}} for name in names],
                "evals": [{"kind": "items", "name": name, "path": str(self.folder / "items.jsonl")} for name in evals],
                "gates": [{"kind": "noninferiority", "metric": f"{name}.accuracy", "margin": 0.05} for name in evals],
                "confirmation": "fresh" if self.confirmation else None,
                "registry": {"kind": "mlflow", "name": "tiny", "targets": targets},
                "release": self.releasing,
            }
        )
        fetch = self.commit("fetch", "", self.baseline)
        dataset = hashlib.sha256(f"{self.eval_set} {self.extra}".encode()).hexdigest()
        ground = Baseline(recipe.engine, "", None, None, {}, {})
        ways, records = [], []
        for result, variant in zip(results, recipe.variants, strict=True):
            stage = self.commit("quantize", result.variant, result.weights)
            key = self._keep("prove", {"proof.json": result.weights}, {"outcome": "pass"})
            proof = Stage("prove", result.variant, key, 1, {}, {}, (), "cpu")
            ways.append(VariantPlan(variant, ground, None, (), stage, proof, lambda _attempt: Measured({}, ())))
            records.append(self._record(result, fetch, stage, proof, dataset))
        plan = Plan(recipe, Device("cpu", "a CPU", None), fetch, (ground,), tuple(ways), {evals[-1]: dataset})
        loaded = LoadedRecipe(recipe, Path("recipe.yaml"), "name: tiny\n", "d" * 64, ())
        runner = Runner(loaded, plan, self.store, Local(), Watcher())
        everything = self._rows(answers(self.eval_set, extra=self.extra))
        runner.directory.mkdir(parents=True)
        (runner.directory / "recipe.yaml").write_text(loaded.text, encoding="utf-8")
        record = RunRecord(
            run=runner.name,
            recipe="tiny",
            recipe_digest=loaded.digest,
            program="quantize",
            started="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            device="a CPU",
            actor="nightly",
            baseline_stages={"fetch": fetch.key, "evaluate.facts": everything},
            variants=records,
            ran=[],
            reused=[],
        )
        runner.write(record)
        return runner, record

    def release(self, *results: Result) -> RunRecord:
        """Run and release."""
        return release_run(self.registry, *self.run(*results), _reports)

    def _record(self, result: Result, fetch: Stage, stage: Stage, proved: Stage, dataset: str) -> VariantRecord:
        baseline, artifact = self.store.find("fetch", fetch.key), self.store.find("quantize", stage.key)
        assert baseline is not None
        assert artifact is not None
        accuracy = Measurement(
            name="facts.accuracy", value=0.8, unit="share", n=100, direction="higher", low=0.7, high=0.9
        )
        compared = Comparison(
            metric="facts.accuracy/slice ü",
            unit="share",
            baseline=0.8,
            variant=0.79,
            difference=-0.01,
            low=result.lower,
            high=0.01,
            level=0.9,
            n=100,
            method="tango",
            extra={},
        )
        itself = {"metric": "facts.accuracy", "variant": 0.8, "difference": 0.0, "low": -0.005, "high": 0.005}
        evidence = Evidence(
            variant=result.variant,
            artifact_digest=artifact.checkpoint_digest(),
            baseline_digest=baseline.checkpoint_digest(),
            measurements=[accuracy.model_copy(update={"value": 0.79})],
            baseline_measurements=[accuracy],
            comparisons=[compared],
            hard_stops=[],
            noise=[compared.model_copy(update=itself)],
        )
        proof = Finding(
            gate="the saved checkpoint answers as it did in memory",
            kind="proof",
            metric="proof",
            outcome="pass",
            sentence="it answers as it did in memory",
            numbers={},
        )
        finding = Finding(
            gate="not worse",
            kind="noninferiority",
            metric="facts.accuracy",
            outcome=result.outcome,
            sentence=f"facts.accuracy of {result.variant} is what it is{result.note}.",
            numbers={
                "lower": result.lower,
                "difference": result.lower + 0.005 if result.difference is None else result.difference,
                "p_value": result.p_value,
                "alpha": 0.05,
            },
        )
        # A variant that is shown no confirmation is no attempt.
        bases = [] if self.confirmation else [basis(evidence.baseline_digest, dataset, result.variant)]
        ledger = Ledger.of(self.store, self.registry.versions())
        rows = self._rows(answers(self.eval_set, result.lost, result.looks, extra=self.extra))
        verdict = Verdict(
            variant=result.variant,
            outcome=result.outcome,
            findings=[proof, finding],
            artifact_digest=evidence.artifact_digest,
            baseline_digest=evidence.baseline_digest,
            recipe_digest="d" * 64,
            rows={"variant.facts": file_sha256(self.store.path("evaluate", rows) / "rows.parquet")},
            program="quantize",
            attempt=result.attempt or ledger.attempt(bases, evidence.artifact_digest),
            bases=bases,
        )
        note(self.store, bases, verdict.artifact_digest, verdict.attempt)
        stages = {"quantize": stage.key, "prove": proved.key, "evaluate.facts": rows}
        made = VariantRecord(name=result.variant, verdict=verdict, evidence=evidence, decision=None, stages=stages)
        return self.judged(made, verdict)

    def judged(self, variant: VariantRecord, verdict: Verdict) -> VariantRecord:
        """A variant with another verdict, which is kept as a run's is."""
        assert variant.evidence is not None
        papers = {"verdict.json": verdict.model_dump_json(), "evidence.json": variant.evidence.model_dump_json()}
        judge = self._keep("judge", {name: text.encode() for name, text in papers.items()})
        return variant.model_copy(update={"verdict": verdict, "stages": {**variant.stages, "judge": judge}})

    def _rows(self, rows: list[Row]) -> str:
        """Commit the rows of an arm; returns the key."""
        with tempfile.TemporaryDirectory() as scratch:
            write_rows(rows, ITEM_ROWS, Path(scratch))
            return self._keep("evaluate", {"rows.parquet": (Path(scratch) / "rows.parquet").read_bytes()})

    def _keep(self, kind: str, files: dict[str, bytes], summary: dict[str, Any] | None = None) -> str:
        """Commit a stage of `files`; returns its key."""
        key = hashlib.sha256(kind.encode() + b"".join(files.values())).hexdigest()
        with self.store.lease(kind, key, lambda _owner: None):
            if self.store.find(kind, key) is None:
                draft = self.store.draft(kind, key)
                for name, data in files.items():
                    (draft / name).write_bytes(data)
                self.store.commit(
                    draft, kind=kind, name="", key=key, inputs={}, summary=summary or {}, provenance=PROVENANCE
                )
        return key
