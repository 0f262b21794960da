"""What the pages of a registered model tell: of a version how it was decided, and of the model what its aliases mean.

A description ends in a mark with the digest of what stands before it. So one that a person wrote or changed is known,
and is left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from quantize.errors import RegistryError
from quantize.evidence import Comparison, Evidence
from quantize.promotion import BASELINE
from quantize.record import digest
from quantize.registry import Registry, VersionState
from quantize.run_record import RunRecord, VariantRecord
from quantize.verdict import Finding

__all__ = ["EVALUATION", "baseline_story", "evaluation", "retell", "variant_story"]

#: The page beside the serving files that tells what was measured: the model card was written before that.
EVALUATION = "EVALUATION.md"

#: Databases of MLflow hold so many characters of a description.
_LENGTH = 4900
_SENTENCE, _ROWS = 1200, 12
_RULE = "\n\n---\n\n"
_MARK = re.compile(r"\n\n<!-- quantize ([0-9a-f]{16}) -->\Z")
#: What MLflow shows of a model that an earlier release of this program made.
_EARLIER = "Managed by quantize: move aliases with it only."

_STATES = {
    BASELINE: "**The model as given.** Every variant is measured beside it.",
    "registered": "**Not decided yet.** Do not serve it.",
    "passed": "**Passed**, and not promoted.",
    "superseded": "**Superseded.** Another version is the champion now.",
    "rejected": "**Rejected.** Do not serve it.",
    "inconclusive": "**Held.** Neither shown to be within its margins nor to be beyond them.",
    "error": "**In error.** Do not serve it.",
    "rolled_back": "**Rolled back.** No run promotes it again; `quantize promote --force` does.",
}


def retell(
    registry: Registry,
    note: Callable[[str], None],
    bodies: Mapping[str, str] | None = None,
    signed: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Bring the descriptions up to date with states and aliases, and write new `bodies` by version.

    `signed` are tags that the versions are about to get. A page is worth no decision: what cannot be written is told
    to `note`, and the next decision writes it.
    """
    told = bodies or {}
    try:
        for version in registry.versions():
            known = _unsealed(version.description)
            if known is None or (not known and version.version not in told):
                continue
            body = told.get(version.version) or known.partition(_RULE)[2]
            new = (signed or {}).get(version.version, {})
            text = _sealed(_head(replace(version, tags={**version.tags, **new}), registry.name), body)
            if text != version.description:
                registry.describe(version.version, text)
        described = registry.description()
        if not registry.targets and _unsealed(described):
            return  # a command knows the model's name alone: what targets mean, a run has written
        text = _sealed(_of_model(registry), "")
        if text != described and (described == _EARLIER or _unsealed(described) is not None):
            registry.describe(None, text)
    except RegistryError as error:
        note(f"the descriptions of {registry.name} are not up to date ({error.what}); the next decision writes them")


def baseline_story(record: RunRecord) -> str:
    """What version 1 says beneath its state."""
    return f"Registered by the run `{record.run}` of the recipe `{record.recipe}`, before anything was compressed."


def variant_story(record: RunRecord, variant: VariantRecord, version: VersionState, model: str) -> str:
    """What a variant's version says beneath its state: differences, how to serve it, how to go back, where it is from.

    Markdown.
    """
    serving = " `DIR/serving` says how to start engines with them." if variant.verdict.outcome == "pass" else ""
    evidence = "verdict, rows and numbers are in the source run, the page `report.html` in its parent, "
    parts = [
        _table(variant),
        f"**Serve:** `quantize pull {model}@{version.version} DIR` fetches the bytes that were judged.{serving}",
        f"**Evidence:** {evidence}`{record.run}`. `quantize verify {record.run}` recomputes them from bytes.",
        f"Recipe `{record.recipe}`, {_escaped(record.device)}, {record.program}.",
    ]
    return "\n\n".join(part for part in parts if part)


def evaluation(variant: VariantRecord, model: str, version: str, run: str) -> str:
    """What was measured of a version, as Markdown that may stand beside its model card, or in it.

    It names the bytes that it is true of: the digest of the list that `quantize pull` verifies.
    """
    verdict = variant.verdict
    table = _table(variant).replace("&emsp;", "").removesuffix("---").strip()
    findings = [f"- {f.outcome}{' (advisory)' if f.advisory else ''}: {_escaped(f.sentence)}" for f in verdict.findings]
    digests = {"artifact": verdict.artifact_digest, "baseline": verdict.baseline_digest, "verdict": verdict.digest()}
    digests |= {f"rows of {name}": rows for name, rows in verdict.rows.items()}
    parts = [
        f"# What was measured of {model}@{version} ({variant.name})",
        f"Each answer was paired with the base model's, in {variant.engine}. The verdict is **{verdict.outcome}**.",
        table,
        "\n".join(findings),
        "It is true of these bytes, by sha256, and of no others:",
        "\n".join(f"- {name}: `{value}`" for name, value in digests.items()),
        f"Run `{run}`, by {verdict.program}; `quantize verify {run}` recomputes it from the rows.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(version: VersionState, model: str) -> str:
    """What became of a version, where it serves and how to go back, from its tags and aliases."""
    champion = f"**Champion of `{version.variant}`.**" if version.variant in version.aliases else "**Promoted.**"
    serving = [alias for alias in version.aliases if not alias.endswith(("-previous", "-candidate"))]
    state = _STATES.get(version.state, f"**{version.state}**")
    if version.state == "passed" and serving:
        state = "**Passed**, and promoted by hand."
    told = [champion if version.state == "promoted" else state]
    if version.aliases:
        told.append(f"Aliases: {', '.join(f'`{alias}`' for alias in version.aliases)}.")
    sentence = version.tags.get("sentence", "")
    signed = ", ".join(part for part in (version.tags.get("decided_at"), version.tags.get("actor")) if part)
    # A target before a variant's own alias: it is what consumers load.
    alias = next((name for name in serving if name != version.variant), version.variant)
    lines = [" ".join(told), f"> {_escaped(_cut(sentence))}" if sentence else "", _escaped(signed)]
    lines += [f"**Go back:** `quantize rollback {model} --alias {alias} --reason …`"] if serving else []
    return "\n\n".join(line for line in lines if line)


def _table(variant: VariantRecord) -> str:
    """What the gates looked at, beside the baseline; empty where nothing was measured."""
    if variant.evidence is None:
        return ""
    rows = list(_rows(variant.evidence, variant.verdict.findings))
    heads = ("quantity", "baseline", variant.name, "difference", "interval", "gate")
    lines = [heads, (":--", *["--:"] * 4, ":--"), *rows[:_ROWS]]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in ([_cell(cell) for cell in row] for row in lines))
    more = len(rows) - _ROWS
    return f"{text}\n\n{f'{more} more are in `report.html`.' if more > 0 else '---'}"


def _cell(text: str) -> str:
    """A cell with room behind it: MLflow's pages set tables without any."""
    return text if text in (":--", "--:") else f"{_escaped(text).replace('|', chr(92) + '|')}&emsp;"


def _rows(evidence: Evidence, findings: list[Finding]) -> Iterator[tuple[str, ...]]:
    held = {c.metric: c for c in evidence.comparisons}
    if (weights := held.get("weights.bytes")) is not None:
        before, after = (f"{value / 1e6:,.1f} MB" for value in (weights.baseline, weights.variant))
        yield "weights", before, after, f"×{weights.difference:.2f}", "", ""
    judged: dict[str, list[Finding]] = {}
    for finding in findings:
        judged.setdefault(finding.metric, []).append(finding)
    for metric, found in judged.items():
        if (comparison := held.get(metric)) is not None and metric != "weights.bytes":
            outcomes = ", ".join(f"{f.kind} {f.outcome}{' (advisory)' if f.advisory else ''}" for f in found)
            yield (*_told(comparison, found), outcomes)


def _told(comparison: Comparison, findings: list[Finding]) -> tuple[str, ...]:
    """A comparison in its own unit, with the interval that decided."""
    low, high = comparison.low, comparison.high
    for finding in findings:
        lower, upper = finding.numbers.get("lower"), finding.numbers.get("upper")
        judged = finding.kind in ("noninferiority", "latency")
        if judged and isinstance(lower, float) and isinstance(upper, float):
            low, high = lower, upper
            break
    ends = " to ".join(_change(end, comparison.unit) for end in (low, high)).replace(" points", "")
    around = ends if None not in (low, high) else ""
    values = (_value(comparison.baseline, comparison.unit), _value(comparison.variant, comparison.unit))
    return comparison.metric, *values, _change(comparison.difference, comparison.unit), around


def _value(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{100 * value:.1f} %" if unit.startswith("share") else f"{value:.4g}"


def _change(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "share":
        return f"{100 * value:+.1f} points".replace("-", "−")
    if unit == "ln ratio":
        return f"×{math.exp(value):.3f}"
    return f"×{value:.3f}" if unit == "ratio" else f"{value:.3g}".replace("-", "−")


def _of_model(registry: Registry) -> str:
    """What the page of the registered model says."""
    lines = [
        f"- `{name}`: what consumers load, `models:/{registry.name}@{name}`; the best champion of "
        f"{', '.join(f'`{variant}`' for variant in rule.from_)}, by {rule.prefer}"
        for name, rule in registry.targets.items()
    ]
    lines += [
        "- `VARIANT`: the champion of that variant; `VARIANT-candidate`: the last one that passed",
        "- `…-previous`: what an alias pointed at before, where `quantize rollback` goes",
    ]
    before = "Variants of one model, each measured item by item beside the baseline, version 1, before it may serve."
    after = "Move aliases with quantize only. Every move, who made it and why, also one that was made past it: "
    return "\n\n".join([before, "\n".join(lines), f"{after}`quantize history {registry.name}`."])


def _sealed(head: str, body: str) -> str:
    text = f"{head}{_RULE}{body}" if body else head
    text = text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"
    return f"{text}\n\n<!-- quantize {digest(text)[:16]} -->"


def _unsealed(description: str) -> str | None:
    """The text that this program wrote, "" where there is none; None for one that a person wrote or changed."""
    if not description:
        return ""
    mark = _MARK.search(description)
    text = description[: mark.start()] if mark else ""
    return text if mark and digest(text)[:16] == mark[1] else None


def _cut(text: str) -> str:
    return text if len(text) <= _SENTENCE else f"{text[: _SENTENCE - 1]}…"


def _escaped(text: str) -> str:
    """Text within Markdown, on one line."""
    return re.sub(r"([\\*<\[\]])", r"\\\1", " ".join(text.split()))
