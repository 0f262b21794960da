"""The first thing on a page: of each variant what became of it, a sentence, and its difference beside the margin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantize.evidence import Comparison, Look
from quantize.report.numbers import size
from quantize.report.page.checklist import checklist
from quantize.report.page.forest import Cell, scale_of, strip
from quantize.report.page.known import (
    MARKS,
    WORDS,
    compared,
    evidences,
    points_cell,
    qualities,
    size_of,
)
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.plot import (
    Scale,
    figure,
    label,
    line,
    linear,
    polyline,
    short,
    sign,
    signed,
    spaced,
    with_numbers,
)
from quantize.report.page.reading import Sources
from quantize.report.page.tables import clipped, grid_of, table
from quantize.report.sections import Path, Section
from quantize.report.speed import Speed, headline, share_of_bytes, size_word, speed_of
from quantize.report.summary import done_word, verdict_word
from quantize.run import RunRecord, VariantRecord
from quantize.verdict import Finding

__all__ = ["lead", "verdicts"]

_STRIP, _STRIP_HEIGHT = 300.0, 34.0
#: Of a log, of one finding's sentence: so many characters are shown.
_DETAIL, _SENTENCE = 4_000, 1_200
#: So many variants have an entry, and so many bytes does the evidence on all of them take.
_ENTRIES, _ROOM = 80, 400_000
#: In this order the kinds of findings tell why a variant came to its verdict.
_DECIDING = ("noninferiority", "limit", "latency", "slo", "benefit", "stage", "proof")


def lead(record: RunRecord) -> str:
    """The run in a sentence: how many passed, and what points at what now."""
    number = len(record.variants)
    counts = {o: sum(variant.verdict.outcome == o for variant in record.variants) for o in WORDS}
    told = [f"{counts['pass']} of {number} variant{'' if number == 1 else 's'} passed"]
    told += [f"{counts[outcome]} {word}" for outcome, word in WORDS.items() if outcome != "pass" and counts[outcome]]
    serves = [
        f"alias {alias} points at {v.name}"
        for v in record.variants
        if v.decision is not None
        for alias in v.decision.aliases
        if alias not in (v.name, f"{v.name}-candidate", f"{v.name}-previous")
    ]
    if not any(v.decision is not None for v in record.variants):
        moved = "Nothing was decided anew."
    else:
        moved = f"{'; '.join(serves)}." if serves else "No deployment target points at one of them."
    return f"{', '.join(told)}. {moved[:1].upper()}{moved[1:]}"


def verdicts(sources: Sources) -> Markup:
    """The list of verdicts, each with its evidence folded away, and the table of all arms."""
    record = sources.record
    made = {told["name"]: told for told in sources.resolved.get("variants", ()) if "name" in told}
    metric = next((m for m in qualities(record) if _in_points(record, m)), "")
    cells = {v.name: points_cell(found[metric], v.verdict.findings) for v, found in _shown(record, metric)}
    scale = scale_of(list(cells.values()), log=False)(18, _STRIP - 18) if cells else None
    speed = speed_of(record)
    sections = {section.name: section for section in sources.summary.sections}
    entries, room = [], _ROOM
    for variant in record.variants[:_ENTRIES]:
        section = sections[variant.name]
        evidence = _evidence(variant, section)
        room -= len(evidence.encode())
        if room < 0:
            evidence = element("p", f"quantize report {record.run} shows it: there is too much for a page.")
        drawn = _Drawn(cells.get(variant.name), scale, evidence)
        entries.append(_entry(variant, drawn, speed, made.get(variant.name, {}), section.decision))
    more = len(record.variants) - _ENTRIES
    axis = _axis(metric, scale) if scale is not None else None
    return joined(
        element("div", axis, class_="axis-row") if axis else None,
        element("ol", entries, class_="verdicts"),
        element("p", f"{more} more variants stand in the table alone.", class_="note") if more > 0 else None,
        table(sources.summary.table, "All arms"),
        [element("p", note, class_="note") for note in sources.summary.notes],
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A variant's difference, the scale that it is drawn on, and all else that is known of it."""

    cell: Cell | None
    scale: Scale | None
    evidence: Markup


def _shown(record: RunRecord, metric: str) -> Iterator[tuple[VariantRecord, Mapping[str, Comparison]]]:
    for variant, evidence in evidences(record):
        found = compared(evidence)
        if metric in found:
            yield variant, found


def _in_points(record: RunRecord, metric: str) -> bool:
    return any(found[metric].unit == "share" for _, found in _shown(record, metric))


def _axis(metric: str, scale: Scale) -> Markup:
    parts: list[Markup] = [label(scale.start, 11, f"{short(metric, 28)}, points", "head")]
    parts.append(label(scale.end, 11, "dashed: margin", "tick", "end"))
    numbered = spaced(scale, 30, 0.0)
    for value in scale.ticks:
        x = scale.at(value)
        parts.append(line(x, 30, x, 34, "axis"))
        if value in numbered:
            parts.append(label(x, 27, signed(value), "tick", "middle"))
    told = "The dashed line is the margin: an interval that reaches beyond it does not pass."
    return figure("verdict-axis", f"Scale of the differences in {metric}", told, (_STRIP, 34), *parts, small=True)


def _entry(variant: VariantRecord, drawn: _Drawn, speed: Speed, made: Mapping[str, Any], decision: str) -> Markup:
    outcome = variant.verdict.outcome
    plot: Child = None
    if drawn.cell is not None and drawn.scale is not None:
        title = f"{variant.name} beside the baseline"
        plot = strip(f"strip-{variant.name}", title, drawn.cell, drawn.scale, (_STRIP, _STRIP_HEIGHT))
    reason = _reason(variant)
    return element(
        "li",
        element(
            "div",
            sign(outcome),
            element("h3", variant.name),
            element(
                "span",
                element("span", f"{MARKS[outcome]} {verdict_word(variant.verdict)}", class_=f"word {outcome}"),
                f" · {done_word(variant)}",
            ),
            element("span", _made(variant, made), class_="made"),
            class_="who",
        ),
        element("div", plot, class_="plot"),
        element(
            "div",
            element(
                "p",
                element("strong", _smaller(variant, speed)),
                f" {_unhurried(variant, speed)}{decision}",
                class_="sentence",
            ),
            element("p", clipped(reason, _SENTENCE), class_="reason") if reason else None,
            class_="told",
        ),
        element("details", element("summary", f"Evidence on {variant.name}"), drawn.evidence),
        id=f"variant-{variant.name}",
        class_=outcome,
    )


def _made(variant: VariantRecord, made: Mapping[str, Any]) -> str:
    """Scheme, method and engine in a line."""
    scheme = made.get("scheme")
    told = scheme if isinstance(scheme, str) else "its own scheme" if scheme else ""
    method = made.get("method", {}).get("kind", "") if isinstance(made.get("method"), dict) else ""
    return " · ".join(part for part in (told, method, variant.engine) if part)


def _smaller(variant: VariantRecord, speed: Speed) -> str:
    """What it is beside the baseline, in a sentence: smaller but slower."""
    pace = speed.pace(variant)
    if pace is not None:
        told = headline(variant, speed, pace).removeprefix(f"{variant.name} is ")
        return told[:1].upper() + told[1:]
    share = share_of_bytes(variant.evidence)
    if share is None or variant.evidence is None:
        return "It was not measured."
    own, baseline = size_of(variant.evidence), size_of(variant.evidence, baseline=True)
    sizes = f" ({size(own)} of {size(baseline)})" if own is not None and baseline is not None else ""
    word = size_word(variant.evidence)
    return f"{word[:1].upper()}{word[1:]}: {share:.2f} of the bytes{sizes}."


def _unhurried(variant: VariantRecord, speed: Speed) -> str:
    """Size alone says nothing of speed, and must not be read as if it did."""
    return "Its speed was not measured. " if variant.evidence is not None and speed.pace(variant) is None else ""


def _reason(variant: VariantRecord) -> str:
    """The finding that the verdict rests on: of those with its outcome, the one of the kind that matters most."""
    verdict = variant.verdict
    decided = [f for f in verdict.findings if f.outcome == verdict.outcome and not f.advisory]
    order = {kind: number for number, kind in enumerate(_DECIDING)}
    chosen = min(decided, key=lambda f: order.get(f.kind, len(order)), default=None)
    if chosen is None:
        return ""
    more = len(decided) - 1
    what = f" ({more} more finding{'' if more == 1 else 's'} below)" if more and verdict.outcome != "pass" else ""
    return f"{chosen.sentence}{what}"


def _evidence(variant: VariantRecord, section: Section) -> Markup:
    """Everything else that a report says of a variant."""
    looked = [finding for finding in section.findings if len(finding.looks) > 1]
    sentences = section.sentences if variant.checklist is None else section.sentences[1:]  # the list sums itself up
    return element(
        "div",
        element("ul", [_finding(f) for f in section.findings], class_="findings"),
        [_path(f"{variant.name}-{n}", *pair) for n, pair in enumerate(zip(looked, section.paths, strict=True))],
        checklist(variant.checklist),
        element("ul", [element("li", sentence) for sentence in sentences]) if sentences else None,
        table(section.table, f"All quantities of {variant.name} beside the baseline's") if section.table else None,
        table(section.load, f"{variant.name} under load") if section.load else None,
        element("ul", [element("li", told) for told in section.load_sentences]) if section.load_sentences else None,
        class_="evidence",
    )


def _finding(finding: Finding) -> Markup:
    advisory = " (advisory)" if finding.advisory else ""
    return element(
        "li",
        element("span", MARKS[finding.outcome], class_=f"word {finding.outcome}", aria_hidden="true"),
        " ",
        element("span", f"{finding.outcome}{advisory}: ", class_=f"word {finding.outcome}"),
        clipped(finding.sentence, _SENTENCE),
        element("pre", clipped(finding.detail[-_DETAIL:], _DETAIL)) if finding.detail else None,
    )


def _path(name: str, finding: Finding, path: Path) -> Markup:
    """A confidence sequence: where the difference lay while the sample grew. The first quarter may leave the scale."""
    looks, width, height = finding.looks, 560.0, 170.0
    xs = linear([0, *(look.items for look in looks)], 44, width - 12)
    margin = finding.numbers.get("margin")
    held = -100 * margin if isinstance(margin, float) else 0.0
    ends = [100 * end for look in looks[len(looks) // 4 :] for end in (look.lower, look.upper)]
    ys = linear([0.0, held, *ends], height - 28, 10)
    lower, upper = ([(xs.at(look.items), ys.at(100 * end(look))) for look in looks] for end in (_lower, _upper))
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*lower, *upper[::-1]])
    parts: list[Child] = [
        element("polygon", points=corners, class_="band"),
        polyline(lower, "limit"),
        polyline(upper, "limit"),
        line(xs.start, ys.at(0), xs.end, ys.at(0), "neutral"),
        line(xs.start, ys.at(held), xs.end, ys.at(held), "margin") if held else None,
        *(label(xs.at(value), height - 14, f"{value:g}", "tick", "middle") for value in xs.ticks),
        *(label(40, ys.at(value) + 4, signed(value), "tick", "end") for value in ys.ticks),
        label(xs.end, height - 1, "items answered", "tick", "end"),
    ]
    title = f"Limits of the difference in {path.metric}, in points, while the sample grew"
    told = f"From {looks[0].items} to {looks[-1].items} items; dashed: the margin."
    grid = grid_of(("items", "lower", "upper"), path.looks)
    drawn = figure(f"path-{name}", title, told, (width, height), *parts)
    return joined(element("p", title, class_="caption"), with_numbers(drawn, table(grid, title, quiet=True), title))


def _lower(look: Look) -> float:
    return look.lower


def _upper(look: Look) -> float:
    return look.upper
