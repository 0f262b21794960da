"""From two arms' artifacts to evidence, and from evidence to a verdict.

`collect` reads; `decide` is pure. A hard stop (non-finite logits, a failed proof, items without a row, arms that did
not answer the same questions, calibration data that holds eval items, an instrument that disagrees with itself) is a
finding of its own and outranks every number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantize import __version__
from quantize.artifact import Manifest
from quantize.attempts import basis
from quantize.benchmark.config import Slo
from quantize.errors import DataError
from quantize.evidence import LOAD, ArmMeasurements, Comparison, Evidence, Measurement, Progressed, Spending
from quantize.leakage import overlaps
from quantize.proof import Proof
from quantize.protocols import Gate, Metric
from quantize.record import Record, file_sha256
from quantize.store import MANIFEST
from quantize.verdict import Finding, Outcome, Verdict, combine

if TYPE_CHECKING:
    from quantize.stats import Pairs

__all__ = ["Collected", "Rules", "collect", "decide"]


class Rules(Record):
    """What a verdict is reached by, beside the gates themselves.

    `rules_digest` covers gates and evals; `counted` are the datasets, by eval, on which attempts are counted.
    `skipped` are evals that were not run because nothing could save the variant any more, and `load` where there was no
    benchmark for that reason. `slo` is what a request must keep to count as good.
    """

    variant: str
    rules_digest: str
    counted: dict[str, str]
    spending: Spending
    skipped: tuple[str, ...] = ()
    allow_overlap: bool = False
    slo: Slo | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """Evidence, the paired scores and the proof behind it, and what makes it unusable.

    `unusable` are sentences by kind of finding: `join`, `overlap`. `rows` are the digests of the files that were read.
    """

    evidence: Evidence
    pairs: Mapping[str, Pairs]
    proof: Proof
    unusable: tuple[tuple[str, str], ...]
    rows: dict[str, str]


def collect(rules: Rules, metrics: Sequence[Metric], inputs: dict[str, Path]) -> Collected:
    """Gather all arms' measurements and compare their rows.

    `inputs` holds `model`, `quantized`, `proof` and, per eval, `baseline.<eval>`, `variant.<eval>` and, where the noise
    floor is measured, `noise.<eval>`; `tokens` where the variant was calibrated; `proof.baseline` where the baseline
    was proven in the variant's engine too. `benchmark` holds the variant's pairs with the baseline under load, and
    `benchmark.baseline` the baseline's with itself. What is missing was not run.
    """
    model = Manifest.model_validate_json((inputs["model"] / MANIFEST).read_text(encoding="utf-8"))
    quantized = Manifest.model_validate_json((inputs["quantized"] / MANIFEST).read_text(encoding="utf-8"))
    proof = Proof.model_validate_json((inputs["proof"] / "proof.json").read_text(encoding="utf-8"))
    read = _Reading(rules, inputs)
    for metric in metrics:
        if f"variant.{metric.name}" in inputs:
            read.metric(metric)
    read.check_overlap()
    read.load()
    evidence = Evidence(
        variant=rules.variant,
        artifact_digest=quantized.checkpoint_digest(),
        baseline_digest=model.checkpoint_digest(),
        measurements=_size(quantized, model) + read.measured["variant"],
        baseline_measurements=_size(model, model) + read.measured["baseline"],
        comparisons=[_bytes(model, quantized), *read.comparisons],
        hard_stops=read.hard_stops,
        noise=read.noise,
        progressed=read.progressed,
        spending=rules.spending,
        notes=[*(quantized.summary.get("experts") or {}).get("sentences", ()), *read.notes],
        format=str(quantized.summary.get("format", "")),
    )
    return Collected(evidence, read.pairs, proof, tuple(read.unusable), read.rows)


def decide(collected: Collected, gates: Sequence[Gate], rules: Rules) -> Verdict:
    """All findings, and the worst of them as the outcome."""
    evidence = collected.evidence
    findings = [_proven(collected.proof)]
    findings += [_stop("hard-stop", "fail", sentence) for sentence in evidence.hard_stops]
    findings += [_stop(kind, "error", sentence) for kind, sentence in collected.unusable]
    findings += [_stop("note", "inconclusive", sentence, advisory=True) for sentence in evidence.notes]
    if collected.proof.outcome == "pass" and not evidence.hard_stops and not collected.unusable:
        findings += [finding for gate in gates for finding in _judged(gate, collected, rules)]
    return Verdict(
        variant=evidence.variant,
        outcome=combine(findings),
        findings=findings,
        artifact_digest=evidence.artifact_digest,
        baseline_digest=evidence.baseline_digest,
        recipe_digest=rules.rules_digest,
        rows=collected.rows,
        program=f"quantize {__version__}",
        attempt=rules.spending.attempt,
        bases=[
            basis(evidence.baseline_digest, dataset, evidence.variant)
            for name, dataset in sorted(rules.counted.items())
            if f"variant.{name}" in collected.rows
        ],
    )


class _Reading:
    """What has been read of the evals so far."""

    def __init__(self, rules: Rules, inputs: dict[str, Path]) -> None:
        self.measured: dict[str, list[Measurement]] = {"baseline": [], "variant": []}
        self.comparisons: list[Comparison] = []
        self.noise: list[Comparison] = []
        self.pairs: dict[str, Pairs] = {}
        self.progressed: dict[str, Progressed] = {}
        self.hard_stops: list[str] = []
        self.notes: list[str] = []
        self.unusable: list[tuple[str, str]] = []
        self.rows: dict[str, str] = {}
        self._rules = rules
        self._inputs = inputs
        self._asked: list[tuple[str, str]] = []

    def metric(self, metric: Metric) -> None:
        """Read all arms of one eval and compare them."""
        paths = {
            arm: self._inputs[f"{arm}.{metric.name}"]
            for arm in ("baseline", "variant", "noise")
            if f"{arm}.{metric.name}" in self._inputs
        }
        digests = set()
        for arm, path in paths.items():
            measured = ArmMeasurements.model_validate_json((path / "measurements.json").read_text(encoding="utf-8"))
            digests.add(measured.dataset_digest)
            self.hard_stops += [f"{metric.name}, {_ARMS[arm]}: {stop}" for stop in measured.hard_stops]
            self.rows[f"{arm}.{metric.name}"] = file_sha256(path / "rows.parquet")
            if arm in self.measured:
                self.measured[arm] += measured.measurements
            if arm == "variant" and measured.progressed is not None:
                self.progressed[metric.name] = measured.progressed
        if len(digests) > 1:
            self.unusable.append(("join", f"{metric.name}: the arms answered different eval sets. Run again."))
        elif not self.hard_stops:
            try:
                self._compare(metric, paths)
            except DataError as error:
                self.unusable.append(("join", f"{metric.name}: {error}"))

    def _compare(self, metric: Metric, paths: dict[str, Path]) -> None:
        from quantize.metrics import read_rows

        early = self._rules.spending.early
        self.comparisons += metric.compare(paths["baseline"], paths["variant"], early)
        if "noise" in paths:
            self.noise += metric.compare(paths["baseline"], paths["noise"], 0.0)
        if metric.paired:
            rows = read_rows(paths["baseline"])
            self.pairs |= metric.pairs(rows, read_rows(paths["variant"]))
            self._asked += [(f"{metric.name} {row['item_id']}", str(row["prompt"])) for row in rows]

    def load(self) -> None:
        """Read what both arms did under load, and what the baseline does beside itself."""
        from quantize.benchmark import read

        if "benchmark" not in self._inputs:
            return
        try:
            paired = read(self._inputs["benchmark"])
            own = read(self._inputs["benchmark.baseline"]) if "benchmark.baseline" in self._inputs else None
        except DataError as error:
            self.unusable.append((LOAD, str(error)))
            return
        slo = self._rules.slo
        self.measured["variant"] += paired.measurements("variant", slo)
        if own is not None:
            self.measured["baseline"] += paired.measurements("baseline", slo)
            self.comparisons += paired.comparisons(slo)
            self.noise += own.comparisons(slo)
        for label in ("benchmark", "benchmark.baseline"):
            if label in self._inputs:
                self.rows[label] = file_sha256(self._inputs[label] / "requests.parquet")

    def check_overlap(self) -> None:
        """Look for eval items in what the variant was calibrated on."""
        if "tokens" not in self._inputs:
            return
        seen = json.loads((self._inputs["tokens"] / "seen.json").read_text(encoding="utf-8"))
        found = overlaps(self._asked, seen)
        if found:
            sentence = (
                f"the calibration data holds {len(found)} of {len(self._asked)} eval items, {found[0]} first: "
                f"the variant has seen the examination."
            )
            if self._rules.allow_overlap:
                self.notes.append(f"{sentence} The recipe allows it.")
            else:
                mend = "Take them out of one of the two, or set calibration.allow_overlap: true and say so."
                self.unusable.append(("overlap", f"{sentence} {mend}"))


_ARMS = {"baseline": "baseline", "variant": "variant", "noise": "baseline measured again"}


def _judged(gate: Gate, collected: Collected, rules: Rules) -> Iterator[Finding]:
    """A gate's finding, and what the noise floor says about it."""
    if gate.metric.partition(".")[0] in rules.skipped:
        sentence = f"{gate.metric} was not measured: the variant had been stopped before."
        yield _stop("skipped", "inconclusive", sentence, advisory=gate.advisory, metric=gate.metric)
        return
    yield gate.judge(collected.evidence, collected.pairs)
    noise = next((c for c in collected.evidence.noise if c.metric == gate.metric), None)
    margin = getattr(gate, "margin", None)
    if noise is not None and margin is not None and noise.low is not None and noise.high is not None:
        finding = _noise(gate, noise, margin / 2)
        if finding is not None:
            yield finding


def _noise(gate: Gate, noise: Comparison, limit: float) -> Finding | None:
    """An error where the baseline is shown to differ from itself by more than `limit`; a warning where it may."""
    low, high = noise.low or 0.0, noise.high or 0.0
    if -limit < low and high < limit:
        return None
    measured = (
        f"{gate.metric} of the baseline, measured twice, differs from itself by {100 * noise.difference:+.1f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f}, {noise.extra['losses']} lost, {noise.extra['gains']} gained)"
    )
    if high < -limit or low > limit:
        sentence = f"{measured}: the instrument is too noisy to judge a margin of {200 * limit:g} points."
        return _stop("noise", "error", sentence, metric=gate.metric, advisory=gate.advisory)
    sentence = f"{measured}: a noise of half the margin is not excluded."
    return _stop("noise", "inconclusive", sentence, metric=gate.metric, advisory=True)


def _proven(proof: Proof) -> Finding:
    return Finding(
        gate="the saved checkpoint answers as it did in memory",
        kind="proof",
        metric="proof",
        outcome=proof.outcome,
        sentence=" ".join(proof.sentences),
        numbers=dict(proof.numbers),
        detail=proof.tail,
    )


def _stop(kind: str, outcome: Outcome, sentence: str, *, advisory: bool = False, metric: str | None = None) -> Finding:
    return Finding(
        gate=kind,
        kind=kind,
        metric=metric or kind,
        outcome=outcome,
        sentence=sentence,
        numbers={},
        advisory=advisory,
    )


def _parameters(model: Manifest) -> int | None:
    value = model.summary["facts"]["parameters"]
    return int(value) if value is not None else None


def _size(manifest: Manifest, model: Manifest) -> list[Measurement]:
    held = manifest.weight_bytes()
    sizes = [Measurement(name="weights.bytes", value=held, unit="bytes", n=1, direction="lower")]
    parameters = _parameters(model)
    if parameters:
        # All bytes over all of the model's parameters, embeddings and head too: what a user downloads for each.
        bits = 8 * held / parameters
        sizes.append(Measurement(name="weights.bits_per_weight", value=bits, unit="bits", n=1, direction="lower"))
    return sizes


def _bytes(model: Manifest, quantized: Manifest) -> Comparison:
    before, after = model.weight_bytes(), quantized.weight_bytes()
    return Comparison(
        metric="weights.bytes",
        unit="share of the baseline",
        baseline=before,
        variant=after,
        difference=after / before,
        low=None,
        high=None,
        level=None,
        n=1,
        method="file sizes",
        extra={},
    )
