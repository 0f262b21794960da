"""Smaller and slower, or smaller and faster: the table's columns on it, and the first thing a report says.

A variant is called slower, or faster, in a time where the whole interval of its ratio says so, over six blocks or more,
and lies beyond that of the baseline beside itself. One time to each: of
tokens that follow (TPOT) and of the first (TTFT); of several those that a gate looks at, else TPOT p50 of the first
load and TTFT p95 of the last one that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantize.benchmark.config import LEAST_BLOCKS
from quantize.evidence import Comparison, Evidence, Measurement
from quantize.report.grid import Column
from quantize.report.load_metrics import limits_of, named, quantity_of, shown_value, split, under_load
from quantize.report.numbers import times
from quantize.run import RunRecord, VariantRecord
from quantize.verdict import Finding

__all__ = ["Speed", "headline", "headlines", "share_of_bytes", "size_word", "speed_of"]

Pace = Literal["slower", "faster", "mixed", "unclear"]

_CELLS: dict[Pace, str] = {
    "slower": "but slower",
    "faster": "and faster",
    "mixed": "mixed speed",
    "unclear": "speed unclear",
}
#: In the order in which a reader should meet them.
_PACES: tuple[Pace, ...] = ("slower", "mixed", "faster", "unclear")


@dataclass(frozen=True, slots=True)
class Speed:
    """The times that a run's table shows: names of metrics, each None where nobody measured it."""

    tpot: str | None
    ttft: str | None

    def metrics(self) -> list[str]:
        """Those that there are."""
        return [metric for metric in (self.tpot, self.ttft) if metric is not None]

    def columns(self) -> tuple[Column, ...]:
        """What it is in all, and one ratio each."""
        if not self.metrics():
            return ()
        ratios = [Column(f"{quantity_of(metric)}\n{split(metric)[1]}", "load") for metric in self.metrics()]
        return (Column("under\nload", "load"), *ratios)

    def of_baseline(self, known: dict[str, Measurement], noise: dict[str, Comparison]) -> tuple[str, ...]:
        """The baseline's times, from its own benchmark where there is one."""
        if not self.metrics():
            return ()
        values = {name: noise[name].baseline if name in noise else known[name].value for name in {*known, *noise}}
        return ("", *(shown_value(m, values[m]) if m in values else "" for m in self.metrics()))

    def of_noise(self, noise: dict[str, Comparison]) -> tuple[str, ...]:
        """The baseline beside itself."""
        return ("", *(_cell(noise.get(m), ()) for m in self.metrics())) if self.metrics() else ()

    def of_variant(self, variant: VariantRecord) -> tuple[str, ...]:
        """A variant beside the baseline: the word, and the ratios with their intervals below."""
        if not self.metrics():
            return ()
        found = _comparisons(variant.evidence)
        pace = self.pace(variant)
        word = f"{size_word(variant.evidence)}\n{_CELLS[pace]}" if pace is not None else ""
        return (word, *(_cell(found.get(m), variant.verdict.findings) for m in self.metrics()))

    def pace(self, variant: VariantRecord) -> Pace | None:
        """Slower, faster, one in one time and one in the other, or not to be told; None without a benchmark."""
        found = _comparisons(variant.evidence)
        noise = {c.metric: c for c in variant.evidence.noise} if variant.evidence is not None else {}
        ways = {_way(found[m], noise.get(m), variant.verdict.findings) for m in self.metrics() if m in found}
        if not ways:
            return None
        shown = ways - {None}
        if len(shown) == 1:
            return "slower" if "slower" in shown else "faster"
        return "mixed" if shown else "unclear"


def speed_of(record: RunRecord) -> Speed:
    """The times that tell a run's variants apart."""
    evidences = [variant.evidence for variant in record.variants if variant.evidence is not None]
    measured = [c.metric for evidence in evidences for c in evidence.comparisons if under_load(c.metric)]
    judged = {f.metric for v in record.variants for f in v.verdict.findings if f.kind == "latency" and not f.advisory}
    names = list(dict.fromkeys(measured))
    tpot = _first(names, judged, ("tpot_p50",), "tpot_")
    return Speed(tpot=tpot, ttft=_first(names[::-1], judged, ("ttft_p95", "ttft_p50"), "ttft_"))


def headlines(record: RunRecord, speed: Speed) -> tuple[str, ...]:
    """One sentence on each benchmarked variant, those that are slower first."""
    told: dict[Pace, list[str]] = {pace: [] for pace in _PACES}
    for variant in record.variants:
        pace = speed.pace(variant)
        if pace is not None:
            told[pace].append(headline(variant, speed, pace))
    return tuple(sentence for pace in _PACES for sentence in told[pace])


def headline(variant: VariantRecord, speed: Speed, pace: Pace) -> str:
    """One sentence on a benchmarked variant: smaller but slower, and by how much."""
    found = _comparisons(variant.evidence)
    small = size_word(variant.evidence)
    word = {
        "slower": f"{small} but slower" if small == "smaller" else f"{small} and slower",
        "faster": f"{small} and faster" if small != "larger" else "larger but faster",
        "mixed": f"{small}, and faster in one time but slower in another",
        "unclear": f"{small}; that it is faster or slower is not shown",
    }[pace]
    share = share_of_bytes(variant.evidence)
    parts = [f"{share:.2f} of the bytes"] if share is not None else []
    for metric in speed.metrics():
        if metric in found:
            limits = limits_of(found[metric], variant.verdict.findings)
            parts.append(f"{named(metric)} {times(found[metric].difference, *limits)}")
    return f"{variant.name} is {word}: {', '.join(parts)}."


def _first(names: Sequence[str], judged: set[str], preferred: tuple[str, ...], prefix: str) -> str | None:
    """The metric to show: judged ones first, then those of a preferred percentile, in the order given."""
    own = [name for name in names if split(name)[0].startswith(prefix)]
    usual = [name for quantity in preferred for name in own if split(name)[0] == quantity]
    return next((name for name in (*(n for n in own if n in judged), *usual, *own)), None)


def _way(
    comparison: Comparison, own: Comparison | None, findings: Sequence[Finding]
) -> Literal["slower", "faster"] | None:
    """Where enough blocks say so, and more than the baseline differs from itself; `own` is its own comparison."""
    low, high = limits_of(comparison, findings)
    if comparison.n < LEAST_BLOCKS or low is None or high is None or own is None or own.low is None or own.high is None:
        return None
    if low > max(1.0, own.high):
        return "slower"
    return "faster" if high < min(1.0, own.low) else None


def _cell(comparison: Comparison | None, findings: Sequence[Finding]) -> str:
    if comparison is None:
        return ""
    low, high = limits_of(comparison, findings)
    around = f"\n({low:.2f}, {high:.2f})" if low is not None and high is not None else ""
    return f"×{comparison.difference:.2f}{around}"


def _comparisons(evidence: Evidence | None) -> dict[str, Comparison]:
    return {c.metric: c for c in evidence.comparisons} if evidence is not None else {}


def share_of_bytes(evidence: Evidence | None) -> float | None:
    """The bytes of the weights by those of the baseline's."""
    if evidence is None:
        return None
    if (compared := _comparisons(evidence).get("weights.bytes")) is not None:
        return compared.difference
    own, baseline = (
        next((m.value for m in arm if m.name == "weights.bytes"), None)
        for arm in (evidence.measurements, evidence.baseline_measurements)
    )
    return own / baseline if own is not None and baseline else None


def size_word(evidence: Evidence | None) -> str:
    """Smaller, larger or no smaller than the baseline."""
    share = share_of_bytes(evidence)
    if share is None:
        return "size unknown"
    return "smaller" if share < 1 else "larger" if share > 1 else "no smaller"
