"""Runs with made-up numbers, as a report is given them."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest

from quantize.evidence import Comparison
from quantize.report import print_summary, summarise
from quantize.run import RunRecord, VariantRecord
from quantize.verdict import Decision, Finding, Verdict, combine

ITEMS = 200
MINUS = "\N{MINUS SIGN}"
LONG = "a-variant-with-a-long-name"


class Paper(io.StringIO):
    """A terminal, as far as a report can tell."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def rows(lost: float, *, answered: int = ITEMS, seed: int = 3) -> list[dict[str, Any]]:
    """Rows in three slices of which the share `lost` of the last slice is wrong."""
    chance = random.Random(seed)
    found = []
    for place in range(answered):
        group = ("dates", "names", "sums")[place % 3]
        wrong = chance.random() < (lost if group == "sums" else 0.0)
        found.append(
            {
                "place": place,
                "look": place // 16,
                "item_id": f"item-{place}",
                "filter": "none",
                "prompt_sha256": str(place),
                "slice": group,
                "cluster": None,
                "score": float(not wrong),
                "parsed": 1.0,
                "tokens": 5.0 + (place + answered) % 3,
                "answer": "a",
                "target": "a",
                "prompt": "p",
            }
        )
    return found


def text_comparisons(name: str, kl: float) -> list[Comparison]:
    """What a text measures of a variant, or of the baseline once more."""
    shared = {"level": 0.9, "n": 4000, "method": "bootstrap-t", "extra": {}}
    return [
        Comparison(
            metric=f"{name}.perplexity",
            unit="ln ratio",
            baseline=44.08,
            variant=44.08 * (1 + kl),
            difference=kl,
            low=kl / 2,
            high=2 * kl,
            **shared,
        ),
        Comparison(
            metric=f"{name}.kl_divergence",
            unit="nats",
            baseline=0.0,
            variant=kl,
            difference=kl,
            low=kl / 2,
            high=2 * kl,
            **shared,
        ),
    ]


def verdict(name: str, findings: list[Finding]) -> Verdict:
    return Verdict(
        variant=name,
        outcome=combine(findings),
        findings=findings,
        artifact_digest="a",
        baseline_digest="b",
        recipe_digest="c",
        rows={},
        program="quantize",
    )


def decision(name: str, findings: list[Finding]) -> Decision:
    return Decision(
        variant=name,
        action="hold",
        outcome=combine(findings),
        sentence=f"Held: version 7. {findings[0].sentence} production stays where it is.",
        verdict_digest="v",
        artifact_digest="a",
        model="m",
        model_version="7",
        previous_version=None,
        aliases={},
        decided_at="2026-01-01T00:00:00+00:00",
        actor="nightly",
        run="r",
    )


def record(*variants: VariantRecord) -> RunRecord:
    return RunRecord(
        run="demo-1",
        recipe="demo",
        recipe_digest="c",
        program="quantize",
        started="2026-01-01T00:00:00+00:00",
        seconds=60.0,
        device="a CPU",
        actor="nightly",
        baseline_stages={},
        variants=list(variants),
        ran=[],
        reused=[],
    )


def drawn(run: RunRecord, monkeypatch: pytest.MonkeyPatch, width: int | None, **seconds: float) -> str:
    """The report on a terminal of some width, or on none."""
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    paper = Paper(terminal=width is not None)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    print_summary(summarise(run, seconds), paper)
    return paper.getvalue()
