"""The checklist: what each line rests on, what it says when nothing was asked, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from release_world import Result, World

from quantize.approval import fetch_checklist
from quantize.errors import RegistryError
from quantize.evidence import Comparison, Progressed
from quantize.history import history
from quantize.operate import promote
from quantize.registry import VersionState
from quantize.review import Asked, Case, Checklist, Fallback, Line, as_markdown, as_text, review
from quantize.verdict import Finding

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
ASKED = Asked(noise_floor=True, benchmark=False, confirmation=None)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """A version that passed everything that its recipe asks for."""
    folder = tmp_path_factory.mktemp("case")
    _, record = World(folder, f"sqlite:///{folder}/none.db").run(FIRST)
    (variant,) = record.variants
    assert variant.evidence is not None
    return Case(
        model="tiny",
        version="2",
        run="run-1",
        evidence_run="abc",
        verdict=variant.verdict,
        evidence=variant.evidence,
        against=(),
        engine="transformers",
        asked=ASKED,
        stages=variant.stages,
        baseline_stages={**record.baseline_stages, "noise.facts": "e" * 64},
        fallback=Fallback("1", "baseline", digest="a" * 64, proved="it was loaded in this run (evaluate.facts)"),
        serving="f" * 64,
    )


def line(case: Case, name: str) -> Line:
    (found,) = (line for line in review(case).lines if line.name == name)
    return found


def finding(outcome: str, *, advisory: bool = False, metric: str = "facts.accuracy", kind: str = "limit") -> Finding:
    return Finding(
        gate=f"{metric} limit",
        kind=kind,
        metric=metric,
        outcome=outcome,
        sentence="So it is.",
        numbers={},
        advisory=advisory,
    )


def with_findings(case: Case, *more: Finding, only_proof: bool = False) -> Case:
    findings = [*(f for f in case.verdict.findings if f.kind == "proof" or not only_proof), *more]
    return replace(case, verdict=case.verdict.model_copy(update={"findings": findings}))


def with_evidence(case: Case, **update: Any) -> Case:
    return replace(case, evidence=case.evidence.model_copy(update=update))


def test_what_the_recipe_asks_for_is_met_and_the_rest_is_not_asked_and_not_counted(case):
    found = review(case)
    assert found.unmet() == []
    assert found.told() == ("review: 7 of 10 met; not asked: load, noise floor under load, confirmation")
    assert {line.name for line in found.lines if line.state == "met"} == {
        "baseline",
        "noise floor",
        "gate not worse",
        "attempts counted",
        "loads in transformers",
        "rollback target",
        "serving files",
    }
    assert all(line.reference for line in found.lines if line.state == "met")


def without_proof(case: Case) -> Case:
    findings = [f for f in case.verdict.findings if f.kind != "proof"]
    return replace(case, verdict=case.verdict.model_copy(update={"findings": findings}))


MISSING: dict[str, Any] = {
    "baseline": lambda case: with_evidence(case, baseline_measurements=[]),
    "noise floor": lambda case: with_evidence(case, noise=[]),
    "gate facts.accuracy limit": lambda case: with_findings(case, finding("inconclusive")),
    "gate against the champion": lambda case: replace(
        case, against=[finding("fail").model_copy(update={"gate": "against the champion"})]
    ),
    "gates": lambda case: replace(
        case, verdict=case.verdict.model_copy(update={"findings": case.verdict.findings[:1]})
    ),
    "loads in transformers": without_proof,
    "load": lambda case: replace(case, asked=replace(ASKED, benchmark=True)),
    "noise floor under load": lambda case: replace(case, asked=replace(ASKED, benchmark=True)),
    "rollback target": lambda case: replace(case, fallback=Fallback("1", "baseline")),
    "serving files": lambda case: replace(case, serving=""),
    "confirmation": lambda case: replace(case, asked=replace(ASKED, confirmation="fresh")),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_not_met_and_the_list_says_so(case, name):
    poor = MISSING[name](case)
    assert line(poor, name).state == "not met"
    assert name in review(poor).unmet()
    assert "; not met: " in review(poor).told()
    assert any(told.startswith(f"✗ {name}: ") for told in as_text(review(poor)))


def test_what_is_known_of_the_fallback_only_in_part_is_not_met(case):
    broken = replace(case, fallback=Fallback("1", "baseline", problem="its list of files is not the one.", proved="x"))
    assert "its list of files" in line(broken, "rollback target").sentence
    assert line(broken, "rollback target").state == "not met"


def test_an_advisory_gate_is_not_asked_whatever_it_says(case):
    found = line(with_findings(case, finding("fail", advisory=True)), "gate facts.accuracy limit")
    assert found.state == "not asked"
    assert found.sentence == "advisory, it did not pass: So it is."


def test_a_benchmark_is_met_by_its_measurements_and_its_own_noise(case):
    loaded = Comparison(
        metric="load.tpot_p50/single",
        unit="ratio",
        baseline=1.0,
        variant=0.5,
        difference=0.5,
        low=0.4,
        high=0.6,
        level=0.9,
        n=6,
        method="t",
        extra={},
    )
    full = with_evidence(case, comparisons=[loaded], noise=[*case.evidence.noise, loaded])
    full = replace(full, asked=replace(ASKED, benchmark=True), stages={**case.stages, "benchmark": "b" * 64})
    assert line(full, "load").state == "met"
    assert line(full, "load").reference == "stage benchmark bbbbbbbbbbbb"
    assert "load.tpot_p50/single 0.5 (+0.4 to +0.6)" in line(full, "noise floor under load").sentence
    assert "load" not in line(full, "noise floor").sentence.replace("beside itself", "")
    assert "noise floor under load" in review(replace(full, evidence=case.evidence)).unmet()


def test_a_confirmation_is_met_by_its_own_gates(case):
    asked = replace(
        case, asked=replace(ASKED, confirmation="fresh"), stages={**case.stages, "evaluate.fresh": "c" * 64}
    )
    assert line(asked, "confirmation").sentence == "no gate looked at fresh."
    good = with_findings(asked, finding("pass", metric="fresh.accuracy"))
    assert line(good, "confirmation").state == "met"
    assert line(with_findings(good, finding("fail", metric="fresh.kl")), "confirmation").state == "not met"


def test_attempts_and_early_stops_are_said(case):
    stopped = with_evidence(case, progressed={"facts": Progressed(items=300, answered=90, looks=3, stopped="pass")})
    stopped = replace(stopped, verdict=case.verdict.model_copy(update={"attempt": 3}))
    told = line(stopped, "attempts counted").sentence
    assert told.startswith("attempt 3 on this eval set")
    assert "facts after 90 of 300 items" in told
    uncounted = replace(case, verdict=case.verdict.model_copy(update={"bases": []}))
    assert line(uncounted, "attempts counted").state == "not asked"


def test_markdown_keeps_a_line_of_the_table_together(case):
    odd = with_findings(case, finding("pass").model_copy(update={"sentence": "a|b\nc"}))
    (row,) = (row for row in as_markdown(review(odd)).splitlines() if "limit" in row)
    assert row.startswith("| met | gate facts.accuracy limit | a\\|b c")


def version(world: World, number: str) -> VersionState:
    return next(v for v in world.registry.versions() if v.version == number)


def stored(world: World, name: str) -> Path:
    return max((world.folder / "mlartifacts").rglob(name), key=lambda path: path.stat().st_mtime_ns)


def test_a_release_keeps_the_checklist_of_what_passed_and_a_second_rests_on_the_first(world):
    record = world.release(FIRST, Result("int4", b"small", "fail"))
    passed, failed = record.variants
    assert passed.checklist is not None
    assert failed.checklist is None
    assert fetch_checklist(world.registry, version(world, "2")) == passed.checklist
    assert fetch_checklist(world.registry, version(world, "3")) is None
    assert "(evaluate.facts)" in next(x.sentence for x in passed.checklist.lines if x.name == "rollback target")
    again = world.release(SECOND).variants[0].checklist
    assert again is not None
    back = next(found for found in again.lines if found.name == "rollback target")
    assert back.state == "met"
    assert back.sentence.startswith("version 2 (fp8): is what it claims to be, and it was loaded in transformers")
    assert "| met | rollback target |" in stored(world, "checklist.md").read_text(encoding="utf-8")


def test_a_fallback_whose_files_were_exchanged_is_not_met(world):
    world.release(FIRST)
    listing = stored(world, "quantize-manifest.json")
    listing.write_text(listing.read_text(encoding="utf-8").replace("model.safetensors", "model2.safetensors"))
    checklist = world.release(SECOND).variants[0].checklist
    assert checklist is not None
    assert checklist.unmet() == ["rollback target"]


def test_promote_refuses_what_is_not_met_unless_forced_and_writes_that_down(world):
    world.release(FIRST)
    world.registry.tag("2", {"proved": ""})
    world.release(SECOND)
    world.release(Result("fp8", b"third" * 80))
    world.registry.tag("3", {"state": "superseded"})
    shown: list[Checklist] = []
    with pytest.raises(RegistryError, match=r"the review of version 3 is not met: rollback target.*--force"):
        promote(world.registry, "fp8", "3", "so", "eva", force=False, show=shown.append)
    assert [checklist.model_version for checklist in shown] == ["3"], "it is shown before it is refused"
    assert world.registry.aliases()["fp8"] == "4"
    promote(world.registry, "fp8", "3", "so", "eva", force=True)
    told = "Forced, although its review was not met (rollback target). so"
    assert history(world.registry)[-1].reason == told


def test_a_checklist_that_was_changed_in_the_registry_is_refused(world):
    world.release(FIRST)
    file = stored(world, "checklist.json")
    file.write_text(file.read_text(encoding="utf-8").replace("answers as it did", "answers better"), encoding="utf-8")
    for force in (False, True):
        with pytest.raises(RegistryError, match="checklist is not the one that was written for it"):
            promote(world.registry, "fp8", "2", "so", "eva", force=force)


def test_a_version_that_an_older_program_decided_is_promoted_by_force_alone(world):
    world.release(FIRST)
    world.registry.tag("2", {"review_digest": ""})
    with pytest.raises(RegistryError, match="the review of version 2 is not met: there is none"):
        promote(world.registry, "fp8", "2", "so", "eva", force=False)
    assert promote(world.registry, "fp8", "2", "so", "eva", force=True).after == "2"
