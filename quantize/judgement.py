"""From two arms' artifacts to evidence, and from evidence to a verdict.

`collect` reads; `decide` is pure. A hard stop (non-finite logits, a failed proof, items without a row, arms that did
not answer the same questions) is a finding of its own and outranks every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize import __version__
from quantize.artifact import Manifest
from quantize.errors import DataError
from quantize.evidence import ArmMeasurements, Comparison, Evidence, Measurement
from quantize.proof import Proof
from quantize.protocols import Gate, Metric
from quantize.record import file_sha256
from quantize.store import MANIFEST
from quantize.verdict import Finding, Outcome, Verdict, combine

__all__ = ["Collected", "collect", "decide"]


@dataclass(frozen=True, slots=True)
class Collected:
    """Evidence, what came before it, and the digests of the rows behind it."""

    evidence: Evidence
    proof: Proof
    unusable: tuple[str, ...]
    rows: dict[str, str]


def collect(variant: str, metrics: Sequence[Metric], inputs: dict[str, Path]) -> Collected:
    """Gather both arms' measurements and compare their rows.

    `inputs` holds `model`, `quantized`, `proof` and, per eval, `baseline.<eval>` and `variant.<eval>`; evals that are
    missing were not run (a failed proof stops a variant before any eval).
    """
    model = Manifest.model_validate_json((inputs["model"] / MANIFEST).read_text(encoding="utf-8"))
    quantized = Manifest.model_validate_json((inputs["quantized"] / MANIFEST).read_text(encoding="utf-8"))
    proof = Proof.model_validate_json((inputs["proof"] / "proof.json").read_text(encoding="utf-8"))
    arms: dict[str, list[Measurement]] = {"baseline": _size(model, model), "variant": _size(quantized, model)}
    comparisons = [_bytes(model, quantized)]
    hard_stops: list[str] = []
    unusable: list[str] = []
    rows: dict[str, str] = {}
    for metric in metrics:
        if f"variant.{metric.name}" not in inputs:
            continue
        paths = {arm: inputs[f"{arm}.{metric.name}"] for arm in arms}
        digests = set()
        for arm, path in paths.items():
            measured = ArmMeasurements.model_validate_json((path / "measurements.json").read_text(encoding="utf-8"))
            arms[arm] += measured.measurements
            digests.add(measured.dataset_digest)
            hard_stops += [f"{metric.name}, {arm}: {stop}" for stop in measured.hard_stops]
            rows[f"{arm}.{metric.name}"] = file_sha256(path / "rows.parquet")
        if len(digests) > 1:
            unusable.append(f"{metric.name}: the arms answered different eval sets. Run again.")
            continue
        try:
            comparisons += metric.compare(paths["baseline"], paths["variant"])
        except DataError as error:
            unusable.append(f"{metric.name}: {error}")
    evidence = Evidence(
        variant=variant,
        artifact_digest=quantized.checkpoint_digest(),
        baseline_digest=model.checkpoint_digest(),
        measurements=arms["variant"],
        baseline_measurements=arms["baseline"],
        comparisons=comparisons,
        hard_stops=hard_stops,
    )
    return Collected(evidence, proof, tuple(unusable), rows)


def decide(collected: Collected, gates: Sequence[Gate], rules_digest: str) -> Verdict:
    """All findings, and the worst of them as the outcome."""
    evidence = collected.evidence
    findings = [_proven(collected.proof)]
    findings += [_stop("hard-stop", "fail", sentence) for sentence in evidence.hard_stops]
    findings += [_stop("join", "error", sentence) for sentence in collected.unusable]
    if collected.proof.outcome == "pass" and not evidence.hard_stops and not collected.unusable:
        findings += [gate.judge(evidence) for gate in gates]
    return Verdict(
        variant=evidence.variant,
        outcome=combine(findings),
        findings=findings,
        artifact_digest=evidence.artifact_digest,
        baseline_digest=evidence.baseline_digest,
        recipe_digest=rules_digest,
        rows=collected.rows,
        program=f"quantize {__version__}",
    )


def _proven(proof: Proof) -> Finding:
    return Finding(
        gate="the saved checkpoint answers as it did in memory",
        kind="proof",
        metric="proof",
        outcome=proof.outcome,
        sentence=" ".join(proof.sentences),
        numbers=dict(proof.numbers),
    )


def _stop(kind: str, outcome: Outcome, sentence: str) -> Finding:
    return Finding(gate=kind, kind=kind, metric=kind, outcome=outcome, sentence=sentence, numbers={})


def _parameters(model: Manifest) -> int | None:
    value = model.summary["facts"]["parameters"]
    return int(value) if value is not None else None


def _size(manifest: Manifest, model: Manifest) -> list[Measurement]:
    held = manifest.weight_bytes()
    sizes = [Measurement(name="weights.bytes", value=held, unit="bytes", n=1, direction="lower")]
    parameters = _parameters(model)
    if parameters:
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
