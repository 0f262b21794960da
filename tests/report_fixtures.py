"""The variant that most tests of the report look at."""

from __future__ import annotations

from typing import Any

import pytest
from report_runs import ITEMS, decision, rows, text_comparisons, verdict

from quantize.evidence import ITEM_ROWS, Evidence, Measurement, Progressed, Spending
from quantize.gates import NonInferiority
from quantize.metrics import Items
from quantize.metrics._rows import item_measurements, write_rows
from quantize.run import VariantRecord
from quantize.verdict import Finding


@pytest.fixture
def variant(tmp_path):
    """A variant that lost some answers, measured on `evals`, judged by a real gate on each."""

    def made(
        name: str, lost: float, *, evals: tuple[str, ...] = ("facts",), answered: int = ITEMS, stopped: Any = None
    ) -> VariantRecord:
        spending = Spending(early=0.2, attempt=2, choices=2)
        comparisons, noise = text_comparisons("prose", lost / 10), text_comparisons("prose", 1e-6)
        measurements: list[Measurement] = [
            Measurement(name="weights.bytes", value=2.2e8, unit="bytes", n=1, direction="lower"),
            Measurement(name="prose.kl_divergence", value=lost / 10, unit="nats", n=4000, direction="lower"),
            Measurement(name="prose.kl_divergence/p99", value=0.0421, unit="nats", n=4000, direction="lower"),
        ]
        baselines = [measurements[0].model_copy(update={"value": 5.4e8})]
        findings: list[Finding] = []
        progressed = {}
        for eval_name in evals:
            metric = Items(name=eval_name, path="-")
            before, after = rows(0.0), rows(lost, answered=answered)
            folders = [tmp_path / name / eval_name / arm for arm in ("before", "after")]
            for folder, held in zip(folders, (before, after), strict=True):
                folder.mkdir(parents=True)
                write_rows(held, ITEM_ROWS, folder)
            comparisons += metric.compare(folders[0], folders[1], spending.early)
            noise += metric.compare(folders[0], folders[0], 0.0)
            measurements += item_measurements(eval_name, after)
            baselines += item_measurements(eval_name, before)
            gate = NonInferiority(metric=f"{eval_name}.accuracy", margin=0.1)
            evidence = Evidence(
                variant=name,
                artifact_digest="a",
                baseline_digest="b",
                measurements=[],
                baseline_measurements=[],
                comparisons=[],
                hard_stops=[],
                spending=spending,
            )
            findings.append(gate.judge(evidence, metric.pairs(before, after)))
            looks = (answered + 15) // 16
            progressed[eval_name] = Progressed(
                items=ITEMS, answered=answered, looks=looks, stopped=stopped, gate=gate.metric if stopped else None
            )
        evidence = evidence.model_copy(
            update={
                "measurements": measurements,
                "baseline_measurements": baselines,
                "comparisons": comparisons,
                "noise": noise,
                "progressed": progressed,
            }
        )
        return VariantRecord(
            name=name, verdict=verdict(name, findings), evidence=evidence, decision=decision(name, findings), stages={}
        )

    return made
