"""The report: nothing is cut at any width, and it tells where each variant stopped, why, and what that saved."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest

from quantize.evidence import ITEM_ROWS, Comparison, Evidence, Measurement, Progressed, Spending
from quantize.gates import NonInferiority
from quantize.metrics import Items
from quantize.metrics._rows import item_measurements, write_rows
from quantize.report import item_seconds, markdown, print_summary, summarise
from quantize.report.grid import parts
from quantize.run import RunRecord, VariantRecord, read_record
from quantize.store import Store
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


@pytest.mark.parametrize(("width", "room"), [(None, 120), (80, 80), (100, 100), (200, 200)])
def test_nothing_is_cut_and_no_line_is_wider_than_the_paper(variant, monkeypatch, width, room):
    run = record(variant(LONG, 0.3), variant("int4", 0.9, evals=("facts", "arithmetic-of-dates")))
    told = drawn(run, monkeypatch, width)
    flat = " ".join(told.split())
    summary = summarise(run)
    assert max(map(len, told.splitlines())) <= room
    assert "…" not in told
    for grid in (summary.table, *(section.table for section in summary.sections if section.table)):
        for line in (line for row in grid.rows for cell in row for line in cell.split("\n")):
            assert " ".join(line.split()) in flat
    for one in run.variants:
        for finding in one.verdict.findings:
            assert finding.sentence in flat


def test_a_table_that_is_too_wide_goes_on_below_with_every_arm_named_again(variant):
    evals = ("facts", "dates", "names", "sums", "capitals", "rivers")
    table = summarise(record(variant(LONG, 0.3, evals=evals))).table
    pieces = list(parts(table, 80))
    assert len(pieces) > 1
    assert all(piece.width() <= 80 for piece in pieces)
    assert all([row[0] for row in piece.rows] == [row[0] for row in table.rows] for piece in pieces)
    assert [column for piece in pieces for column in piece.columns[1:]] == list(table.columns[1:])
    assert list(parts(table, table.width())) == [table]


def served(one: VariantRecord, engine: str, suffix: str = "", **memory: float) -> VariantRecord:
    """The same variant in an engine, with what it took in memory there."""
    assert one.evidence is not None
    taken = [
        Measurement(name=f"memory.{name}", value=value, unit="bytes", n=1, direction="lower")
        for name, value in memory.items()
    ]
    update = {"measurements": [*one.evidence.measurements, *taken], "format": "gguf"}
    evidence = one.evidence.model_copy(update=update)
    return one.model_copy(update={"engine": engine, "baseline": suffix, "evidence": evidence})


def cell(run: RunRecord, name: str, head: str) -> str:
    table = summarise(run).table
    place = [column.head for column in table.columns].index(head)
    return next(row[place] for row in table.rows if row[0] == name)


def test_format_engine_and_memory_stand_beside_the_size(variant):
    run = record(served(variant("q4-k-m", 0.0), "llamacpp", peak=6.5e8, weights=2.1e8), variant("int8", 0.0))
    assert cell(run, "q4-k-m", "format\nloads in") == "gguf\nllamacpp"
    assert cell(run, "q4-k-m", "peak\nmemory") == "650.0 MB"
    assert cell(run, "int8", "peak\nmemory") == "", "what was not measured is not given"
    told = summarise(run).sections[0].sentences
    assert "loaded in llamacpp, it took 650.0 MB of memory at most, of which 210.0 MB are weights." in told
    assert "Peak memory" in summarise(run).notes[0]
    plain = summarise(record(variant("int4", 0.0)))
    assert "Peak memory" not in plain.notes[0]
    assert "peak\nmemory" not in [column.head for column in plain.table.columns]


def test_bits_per_weight_stand_below_the_size_and_say_of_which_weights(variant):
    one = variant("int8", 0.0)
    assert one.evidence is not None
    bits = Measurement(name="weights.bits_per_weight", value=8.26, unit="bits", n=1, direction="lower")
    evidence = one.evidence.model_copy(update={"measurements": [*one.evidence.measurements, bits]})
    run = record(one.model_copy(update={"evidence": evidence}))
    assert cell(run, "int8", "size") == "220.0 MB\n8.3 bits/w"
    assert "embeddings included" in summarise(run).notes[0]


def test_every_engine_has_a_baseline_of_its_own_and_it_is_told_who_is_compared_with_it(variant, monkeypatch):
    run = record(variant("int8", 0.0), served(variant("q4-k-m", 0.0), "llamacpp", "@llamacpp"))
    names = [row[0] for row in summarise(run).table.rows]
    assert names == [
        "baseline in transformers",
        "baseline in transformers again",
        "baseline in llamacpp",
        "baseline in llamacpp again",
        "int8",
        "q4-k-m",
    ]
    assert cell(run, "baseline in llamacpp", "format\nloads in") == "llamacpp"
    told, page = " ".join(drawn(run, monkeypatch, None).split()), markdown(summarise(run))
    for text in (told, page):
        assert "Each variant is compared with the baseline in its own engine" in text
        assert "baseline in llamacpp: facts accuracy 100.0 %; beside it q4-k-m." in text
        assert "baseline in transformers: facts accuracy 100.0 %; beside it int8." in text


def test_two_engines_of_one_kind_are_told_apart(variant):
    run = record(variant("int8", 0.0), served(variant("gptq", 0.0), "transformers", "@transformers-1a2b3c"))
    names = [row[0] for row in summarise(run).table.rows]
    assert {"baseline in transformers", "baseline in transformers-1a2b3c"} < set(names)


def test_with_one_engine_the_baseline_is_just_the_baseline(variant):
    summary = summarise(record(variant("int8", 0.0), variant("int4", 0.0)))
    assert [row[0] for row in summary.table.rows] == ["baseline", "baseline again", "int8", "int4"]
    assert not any("own engine" in note for note in summary.notes)


def test_a_divergence_that_is_known_from_below_is_never_shown_as_one_that_is_known(variant):
    one = variant("awq", 0.5)
    assert one.evidence is not None
    renamed = [
        c.model_copy(update={"metric": c.metric.replace("kl_divergence", "kl_divergence_at_least")})
        for c in one.evidence.comparisons
    ]
    measured = [
        m.model_copy(update={"name": m.name.replace("kl_divergence", "kl_divergence_at_least")})
        for m in one.evidence.measurements
    ]
    evidence = one.evidence.model_copy(update={"comparisons": renamed, "measurements": measured})
    run = record(one.model_copy(update={"evidence": evidence}), variant("int8", 0.5))
    assert cell(run, "awq", "prose\nKL").startswith("≥ ")
    assert not cell(run, "int8", "prose\nKL").startswith("≥")
    assert "≥: at least" in summarise(run).notes[0]
    section = summarise(run).sections[0]
    assert any(text.startswith("prose.kl_divergence_at_least by position: p99") for text in section.sentences)
    assert section.table is not None
    assert "prose.kl_divergence_at_least" in [row[0] for row in section.table.rows]


def test_where_a_variant_stopped_why_and_what_it_saved_is_told(variant, monkeypatch):
    run = record(variant("int4", 1.0, answered=48, stopped="fail"), variant("int8", 0.0))
    told = drawn(run, monkeypatch, None, facts=0.5)
    flat = " ".join(told.split())
    assert "48/200" in told
    assert "▸ fail" in told
    assert "facts: 48 of 200 items were answered, in 3 looks; it stopped there" in flat
    assert "That saved 152 items, about 76 s at the baseline's pace." in flat
    assert "facts: all 200 items were answered, in 13 looks." in flat
    assert told.rstrip().splitlines()[-1] == "early stopping saved 152 of 400 items, about 76 s"


def test_without_times_only_items_are_said_to_be_saved(variant):
    run = record(variant("int4", 1.0, answered=48, stopped="fail"))
    assert summarise(run).notes[-1] == "early stopping saved 152 of 200 items"
    assert not any("pace" in sentence for section in summarise(run).sections for sentence in section.sentences)


def test_a_run_that_may_not_stop_early_does_not_speak_of_it(variant):
    one = variant("int8", 0.0)
    assert one.evidence is not None
    fixed = one.evidence.model_copy(update={"spending": Spending(early=0.0)})
    run = record(one.model_copy(update={"evidence": fixed}))
    assert not any("early stopping" in note for note in summarise(run).notes)


def test_the_confidence_sequence_is_shown_point_by_point(variant, monkeypatch):
    run = record(variant("int4", 1.0, answered=48, stopped="fail"))
    (finding,) = run.variants[0].verdict.findings
    assert len(finding.looks) > 2
    told, page = drawn(run, monkeypatch, None), markdown(summarise(run))
    for look in finding.looks:
        lower, upper = (f"{100 * end:+.1f}".replace("-", MINUS) for end in (look.lower, look.upper))
        assert f"{look.items}: {lower}..{upper}" in told
    assert f"| items | {' | '.join(str(look.items) for look in finding.looks)} |" in page


def test_slices_stand_below_their_whole_the_worst_first(variant):
    (section,) = summarise(record(variant("int4", 0.5))).sections
    assert section.table is not None
    names = [row[0] for row in section.table.rows if row[0].startswith("facts.accuracy")]
    assert names == ["facts.accuracy", "facts.accuracy/sums", "facts.accuracy/dates", "facts.accuracy/names"]


def test_the_noise_of_the_baseline_stands_beside_the_variants(variant):
    summary = summarise(record(variant("int4", 0.5)))
    again = next(row for row in summary.table.rows if row[0] == "baseline again")
    assert f"{MINUS}0 +0" in again
    assert any(f"1e{MINUS}06" in cell for cell in again)
    table = summary.sections[0].table
    assert table is not None
    assert table.columns[-1].head == "baseline\nagainst itself"
    by_name = {row[0]: row for row in table.rows}
    assert by_name["facts.accuracy"][-1] == f"+0.0  {MINUS}0 +0"
    assert by_name["prose.kl_divergence"][-1] == f"1e{MINUS}06"


def test_the_attempt_and_the_alpha_of_it_are_told(variant):
    one = variant("int4", 0.5)
    alpha = one.verdict.findings[0].numbers["alpha"]
    assert isinstance(alpha, float) and alpha < 0.05
    (section,) = summarise(record(one)).sections
    assert any(f"attempt 2 on this eval set, judged at alpha {alpha:.3g}" in text for text in section.sentences)


def test_a_decision_does_not_say_again_what_a_finding_says(variant, monkeypatch):
    run = record(variant("int4", 0.5))
    told = " ".join(drawn(run, monkeypatch, None).split())
    assert told.count(run.variants[0].verdict.findings[0].sentence) == 1
    assert "→ Held: version 7. production stays where it is." in told


def test_a_variant_that_broke_is_shown_with_its_reason_beside_the_others(variant, monkeypatch):
    broken = Finding(
        gate="every stage runs", kind="stage", metric="stage", outcome="error", sentence="It broke.", numbers={}
    )
    lost = VariantRecord(name="fp8", verdict=verdict("fp8", [broken]), evidence=None, decision=None, stages={})
    told = drawn(record(lost, variant("int8", 0.0)), monkeypatch, 80)
    assert "! It broke." in told
    alone = summarise(record(lost))
    assert [row[0] for row in alone.table.rows] == ["fp8"]
    assert "fp8" in markdown(alone)


def test_a_verdict_is_a_word_that_claims_no_more_than_was_shown(variant):
    """A pass is within a margin and not "as good"; what no test failed is refused and not "worse"."""
    good, bad = variant("int8", 0.0), variant("int4", 1.0)
    (passed,), (failed,) = good.verdict.findings, bad.verdict.findings
    assert (passed.outcome, failed.outcome) == ("pass", "fail")
    limit = Finding(
        gate="no longer", kind="limit", metric="facts.output_tokens", outcome="fail", sentence="Longer.", numbers={}
    )

    def word(*findings: Finding) -> str:
        run = record(good.model_copy(update={"verdict": verdict("int8", list(findings))}))
        return next(row[1] for row in summarise(run).table.rows if row[0] == "int8").split("\n")[0]

    assert word(passed) == "within margin"
    assert word(failed) == word(failed, limit) == "worse"
    assert word(passed, limit) == "refused"
    assert word(passed, limit, failed.model_copy(update={"advisory": True})) == "refused"
    assert word(passed.model_copy(update={"outcome": "inconclusive"})) == "not shown"


def test_mcnemars_p_is_called_by_its_name_beside_the_tests_of_the_gates(variant):
    (section,) = summarise(record(variant("int4", 0.5))).sections
    assert section.table is not None
    place = [column.head for column in section.table.columns].index("McNemar p")
    by_name = {row[0]: row for row in section.table.rows}
    assert 0 < float(by_name["facts.accuracy/sums"][place].lstrip("<")) < 0.01
    assert by_name["facts.accuracy/dates"][place] == "1"


def test_bars_and_line_breaks_do_not_break_a_markdown_table(variant):
    page = markdown(summarise(record(variant("int4|x", 0.5))))
    (line,) = [line for line in page.splitlines() if line.startswith("| int4")]
    assert line.startswith("| int4\\|x | ")
    header = next(line for line in page.splitlines() if line.startswith("| variant"))
    assert line.replace("\\|", "").count("|") == header.count("|")


def test_the_time_of_an_item_comes_from_the_receipts_of_the_baselines_looks(finished, tmp_path):
    store, document, _ = finished
    run = read_record(store / "runs" / document["run"])
    manifest = Store(store).find("evaluate", run.baseline_stages["evaluate.facts"])
    assert manifest is not None
    looks = [Store(store).find("look", key) for key in manifest.summary["parts"]]
    times = [look.provenance.seconds for look in looks if look is not None]
    found = item_seconds(run, Store(store))
    assert set(found) == {"facts"}, "a text is measured whole"
    assert 0 < found["facts"] <= max(times)
    counted = times[1:] or times  # the model is loaded in the first
    assert found["facts"] == pytest.approx(sum(counted) / len(counted) * len(times) / 200)
    (tmp_path / "empty").mkdir()
    assert item_seconds(run, Store(Path(tmp_path / "empty"))) == {}


def test_format_and_memory_of_a_variant_come_from_the_receipts_of_its_stages(finished):
    store, document, _ = finished
    for variant in read_record(store / "runs" / document["run"]).variants:
        made, proven = (Store(store).find(kind, variant.stages[kind]) for kind in ("quantize", "prove"))
        assert made is not None and proven is not None and variant.evidence is not None
        known = {m.name: m.value for m in variant.evidence.measurements}
        assert variant.evidence.format == made.summary["format"]
        taken = proven.summary["memory"]
        assert (known["memory.peak"], known["memory.weights"]) == (taken["peak"], taken["weights"])
        assert taken["peak"] > taken["weights"] > 0
