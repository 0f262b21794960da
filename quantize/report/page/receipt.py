"""The receipt: what exactly was measured, where and with what, so that it can be checked and repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantize.report.page.calibrated import calibrations
from quantize.report.page.markup import Child, Markup, element, joined
from quantize.report.page.reading import Reached, Sources
from quantize.report.page.tables import clipped, grid_of, table
from quantize.run import VariantRecord

__all__ = ["receipt"]

_HEADS = ("variant", "digest of the artifact", "registered as", "MLflow run")
#: Of the recipe: so many characters.
_RECIPE = 60_000


def receipt(sources: Sources) -> Markup:
    """Identity of the run, digests of each variant, seeds, machine, versions, the recipe, and how to check it all."""
    record = sources.record
    blocks: list[Child] = [
        _list("Run", _run(sources)),
        _list("Seeds", _seeds(sources.resolved)),
        *(_list(f"Calibration: {name}", rows) for name, rows in calibrations(sources.stages)),
        _list("Machine", _machine(sources)),
        _list("Versions of libraries, as the stages found them", _libraries(sources.stages)),
    ]
    rows = [row for variant in record.variants for row in _rows(variant)]
    check = f"quantize verify {record.run}"
    resolved = json.dumps(sources.resolved, indent=1, ensure_ascii=False)
    return joined(
        element(
            "p", "To recompute every digest from bytes and every verdict from stored rows: ", element("code", check)
        ),
        element("div", blocks, class_="lists"),
        table(grid_of(_HEADS, [_identity(v) for v in record.variants], texts=4), "What was judged, and what it became"),
        element("details", element("summary", "Digests of rows and verdicts"), _digests(rows)) if rows else None,
        _text("The recipe as written", sources.recipe),
        _text("The recipe as it was run: overrides applied, defaults spelled out", resolved)
        if sources.resolved
        else None,
        [element("p", told, class_="note") for told in sources.missing],
    )


def _list(title: str, rows: Iterator[tuple[str, str]]) -> Markup | None:
    found = list(rows)
    if not found:
        return None
    pairs = [joined(element("dt", name), element("dd", value)) for name, value in found]
    return element("div", element("h3", title), element("dl", pairs))


def _text(title: str, text: str) -> Markup:
    return element("details", element("summary", title), element("pre", clipped(text, _RECIPE), tabindex="0"))


def _run(sources: Sources) -> Iterator[tuple[str, str]]:
    record = sources.record
    yield "run", record.run
    yield "recipe", record.recipe
    yield "recipe's digest", record.recipe_digest
    yield "program", record.program
    yield "started", record.started
    yield "by", record.actor
    yield "device", record.device
    model = sources.resolved.get("model")
    if isinstance(model, dict):
        yield "model", ", ".join(f"{name} {value}" for name, value in model.items() if value is not None)


def _seeds(resolved: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every setting of the recipe that is called a seed, by its place."""
    yield from _found(resolved, "")


def _found(value: Any, place: str) -> Iterator[tuple[str, str]]:
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [(str(item.get("name", n)) if isinstance(item, dict) else str(n), item) for n, item in enumerate(value)]
    for name, item in pairs:
        where = f"{place}.{name}" if place else name
        if (name == "seed" or name.endswith("_seed")) and item is not None:
            yield where, str(item)
        else:
            yield from _found(item, where)


def _machine(sources: Sources) -> Iterator[tuple[str, str]]:
    """The fingerprint that the benchmarks kept; without one, what the stages know of where they ran."""
    known: dict[str, list[str]] = {}
    for held in sources.requests.values():
        for name, value in held.fingerprint.items():
            known.setdefault(name, []).append(value)
    if not known:
        yield "fingerprint", "not taken: it is part of a benchmark, and none was read"
    for stage in sources.stages:
        if stage.manifest is not None:
            known.setdefault("host", []).append(stage.manifest.provenance.host)
            known.setdefault("python", []).append(stage.manifest.provenance.python)
    for name, values in known.items():
        yield name, " or ".join(dict.fromkeys(values))


def _libraries(stages: Sequence[Reached]) -> Iterator[tuple[str, str]]:
    """Several versions stand where stages ran in several environments."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        for name, version in (stage.manifest.provenance.libraries if stage.manifest is not None else {}).items():
            found.setdefault(name, []).append(version)
    for name in sorted(found, key=str.lower):
        yield name, ", ".join(sorted(set(found[name])))


def _identity(variant: VariantRecord) -> tuple[str, str, str, str]:
    decision = variant.decision
    version = f"{decision.model} version {decision.model_version}" if decision and decision.model_version else "–"
    return variant.name, variant.verdict.artifact_digest or "–", version, decision.run if decision is not None else "–"


def _rows(variant: VariantRecord) -> Iterator[tuple[str, str, str]]:
    """The digests that a verdict rests on, and its own; the baseline's stand with the variant that is beside it."""
    verdict, decision = variant.verdict, variant.decision
    told = {"the baseline's artifact": verdict.baseline_digest}
    told |= {f"rows of {name}": value for name, value in verdict.rows.items()}
    told |= {"verdict": decision.verdict_digest} if decision is not None else {}
    yield from ((variant.name, what, value) for what, value in told.items() if value)


def _digests(rows: Sequence[tuple[str, str, str]]) -> Markup:
    return table(grid_of(("variant", "what", "sha256"), rows, texts=3), "Digests of rows and verdicts", quiet=True)
