"""The checklist that a version is promoted by: what was asked of it, what was met, and where the proof lies.

Pure: a case in, lines out. A line is `met`, `not met`, or `not asked`, where the recipe does not ask for it: that is
never counted as met. Whoever promotes by hand is shown all of them, and stopped by one that is not met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantize.evidence import LOAD, Comparison, Evidence, of_eval
from quantize.record import Record
from quantize.verdict import Finding, Verdict

__all__ = ["Asked", "Case", "Checklist", "Fallback", "Line", "as_markdown", "as_text", "review"]

State = Literal["met", "not met", "not asked"]

_GATES = ("noninferiority", "limit", "latency", "slo", "benefit", "skipped")
_MARKS: dict[State, str] = {"met": "✓", "not met": "✗", "not asked": "·"}
_KEY = 12


class Line(Record):
    """One thing that was looked for: a sentence of evidence, and where it lies (a digest, a stage, an MLflow run)."""

    name: str
    state: State
    sentence: str
    reference: str = ""


class Checklist(Record):
    """What a person is shown before a version is promoted. `run` is the pipeline's run that it was made in."""

    version: Literal[1] = 1
    model: str
    model_version: str
    variant: str
    artifact_digest: str
    verdict_digest: str
    run: str
    lines: list[Line]

    def unmet(self) -> list[str]:
        """The names of the lines that are not met."""
        return self._named("not met")

    def told(self) -> str:
        """The whole list in a line."""
        met = len(self._named("met"))
        rest = [(state, self._named(state)) for state in ("not met", "not asked")]
        return f"review: {met} of {len(self.lines)} met" + "".join(f"; {s}: {', '.join(n)}" for s, n in rest if n)

    def _named(self, state: str) -> list[str]:
        return [line.name for line in self.lines if line.state == state]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the recipe asks for beside its gates."""

    noise_floor: bool
    benchmark: bool
    confirmation: str | None


@dataclass(frozen=True, slots=True)
class Fallback:
    """The version that a rollback would go to.

    `problem` is why it is not what it claims to be, `proved` how it is known to load; "" where there is none.
    """

    version: str
    variant: str
    digest: str = ""
    problem: str = ""
    proved: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A version that passed, and all that is looked at. Stages are keys by label; `serving` is its files' digest."""

    model: str
    version: str
    run: str
    evidence_run: str
    verdict: Verdict
    evidence: Evidence
    against: Sequence[Finding]
    engine: str
    asked: Asked
    stages: Mapping[str, str]
    baseline_stages: Mapping[str, str]
    fallback: Fallback
    serving: str


def review(case: Case) -> Checklist:
    """Go through the list."""
    lines = [
        _baseline(case),
        _noise(case, "noise floor", under_load=False, asked=case.asked.noise_floor),
        *_gates(case),
        _attempts(case),
        _proof(case),
        _load(case),
        _noise(case, "noise floor under load", under_load=True, asked=case.asked.benchmark),
        _rollback(case),
        _serving(case),
        _confirmation(case),
    ]
    return Checklist(
        model=case.model,
        model_version=case.version,
        variant=case.verdict.variant,
        artifact_digest=case.verdict.artifact_digest,
        verdict_digest=case.verdict.digest(),
        run=case.run,
        lines=lines,
    )


def as_text(checklist: Checklist) -> list[str]:
    """A line each, as a terminal shows them."""
    return [f"{_MARKS[line.state]} {line.name}: {_evidence(line)}" for line in checklist.lines]


def as_markdown(checklist: Checklist) -> str:
    """The list as GitHub-flavoured Markdown."""
    title = f"# Review of {checklist.model} version {checklist.model_version} ({checklist.variant})"
    return "\n".join([title, "", checklist.told(), "", *_rows(checklist), ""])


def _rows(checklist: Checklist) -> Iterator[str]:
    yield "| | | evidence |"
    yield "|---|---|---|"
    for line in checklist.lines:
        yield f"| {line.state} | {_cell(line.name)} | {_cell(_evidence(line))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _evidence(line: Line) -> str:
    return f"{line.sentence} [{line.reference}]" if line.reference else line.sentence


def _line(name: str, met: bool, sentence: str, reference: str = "") -> Line:
    return Line(name=name, state="met" if met else "not met", sentence=sentence, reference=reference)


def _not_asked(name: str, sentence: str) -> Line:
    return Line(name=name, state="not asked", sentence=sentence)


def _baseline(case: Case) -> Line:
    found = {m.name.partition(".")[0]: m for m in reversed(case.evidence.baseline_measurements) if of_eval(m.name)}
    told = [f"{m.name} {m.value:.4g} on {m.n:,}" for m in reversed(found.values())]
    sentence = f"{', '.join(told)}." if told else "nothing was measured of the baseline."
    return _line("baseline", bool(told), sentence, _stage(case.baseline_stages, "evaluate."))


def _noise(case: Case, name: str, *, under_load: bool, asked: bool) -> Line:
    """The baseline beside itself: on the evals, or under load."""
    if not asked:
        return _not_asked(name, f"the recipe has no {'benchmark' if under_load else 'noise floor'}.")
    whole = [c for c in case.evidence.noise if (c.metric.partition(".")[0] == LOAD) is under_load]
    found = [c for c in whole if under_load or ("/" not in c.metric and of_eval(c.metric))]
    label = "benchmark" if under_load else "noise."
    if not found:
        return _line(name, met=False, sentence="the baseline was not measured beside itself.")
    sentence = f"the baseline beside itself: {', '.join(map(_difference, found[:3]))}"
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return _line(name, True, f"{sentence}{more}.", _stage(case.baseline_stages, label))


def _difference(comparison: Comparison) -> str:
    limits = (
        f" ({comparison.low:+.3g} to {comparison.high:+.3g})" if None not in (comparison.low, comparison.high) else ""
    )
    sign = "" if comparison.unit == "ratio" else "+"
    return f"{comparison.metric} {comparison.difference:{sign}.3g}{limits}"


def _gates(case: Case) -> Iterator[Line]:
    """A line for each gate; one that the recipe calls advisory is not asked to pass."""
    gates = [finding for finding in case.verdict.findings if finding.kind in _GATES]
    for finding in (*gates, *case.against):
        name = f"gate {finding.gate}"
        if finding.advisory:
            did = "passed" if finding.outcome == "pass" else "did not pass"
            yield _not_asked(name, f"advisory, it {did}: {finding.sentence}")
        else:
            yield _line(name, finding.outcome == "pass", finding.sentence, f"MLflow run {case.evidence_run}")
    if not any(not finding.advisory for finding in gates):
        yield _line("gates", met=False, sentence="no gate that could have stopped it was asked.")


def _attempts(case: Case) -> Line:
    if not case.verdict.bases:
        return _not_asked("attempts counted", "no eval is looked at by a test that attempts count for.")
    told = f"attempt {case.verdict.attempt} on this eval set, judged at its own share of alpha"
    stops = [
        f"{name} after {p.answered} of {p.items} items" for name, p in case.evidence.progressed.items() if p.stopped
    ]
    early = f"; stopped early, which is paid for: {', '.join(stops)}" if stops else ""
    return _line("attempts counted", True, f"{told}{early}.", f"basis {case.verdict.bases[0][:_KEY]}")


def _proof(case: Case) -> Line:
    name = f"loads in {case.engine}"
    found = [finding for finding in case.verdict.findings if finding.kind == "proof"]
    if not found:
        return _line(name, met=False, sentence="it was never loaded in a clean process.")
    return _line(name, found[0].outcome == "pass", found[0].sentence, _stage(case.stages, "prove"))


def _load(case: Case) -> Line:
    if not case.asked.benchmark:
        return _not_asked("load", "the recipe has no benchmark: nothing is known of its speed.")
    if "benchmark" not in case.stages:
        return _line("load", met=False, sentence="the recipe has a benchmark, and it was not run.")
    found = [c for c in case.evidence.comparisons if c.metric.partition(".")[0] == LOAD]
    sentence = f"{len(found)} quantities were measured under load, beside the baseline."
    return _line("load", bool(found), sentence, _stage(case.stages, "benchmark"))


def _rollback(case: Case) -> Line:
    back = case.fallback
    sentence = f"version {back.version} ({back.variant}): "
    if back.problem:
        return _line("rollback target", met=False, sentence=f"{sentence}{back.problem}")
    if not back.proved:
        mend = "is what it claims to be, and nothing says that it was ever loaded."
        return _line("rollback target", met=False, sentence=f"{sentence}{mend}")
    return _line(
        "rollback target",
        True,
        f"{sentence}is what it claims to be, and {back.proved}.",
        f"digest {back.digest[:_KEY]}",
    )


def _serving(case: Case) -> Line:
    sentence = "they are written and logged." if case.serving else "there are none."
    return _line("serving files", bool(case.serving), sentence, f"digest {case.serving[:_KEY]}" if case.serving else "")


def _confirmation(case: Case) -> Line:
    wanted = case.asked.confirmation
    if wanted is None:
        return _not_asked("confirmation", "the recipe names no confirmation eval.")
    if f"evaluate.{wanted}" not in case.stages:
        return _line("confirmation", met=False, sentence=f"{wanted} was not shown to it.")
    found = [f for f in case.verdict.findings if f.metric.partition(".")[0] == wanted and not f.advisory]
    passed = bool(found) and all(finding.outcome == "pass" for finding in found)
    sentence = f"{wanted}, which it saw last: {found[0].sentence}" if found else f"no gate looked at {wanted}."
    return _line("confirmation", passed, sentence, _stage(case.stages, f"evaluate.{wanted}"))


def _stage(stages: Mapping[str, str], label: str) -> str:
    """The first stage whose label begins so, with the beginning of its key."""
    return next((f"stage {name} {key[:_KEY]}" for name, key in stages.items() if name.startswith(label)), "")
