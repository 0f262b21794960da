"""The report: nothing is cut at any width, and it tells where each variant stopped, why, and what that saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import LONG, MINUS, drawn, record, verdict

from quantize.evidence import Spending
from quantize.report import item_seconds, markdown, summarise
from quantize.report.grid import parts
from quantize.run import VariantRecord, read_record
from quantize.store import Store
from quantize.verdict import Finding

pytest_plugins = ["report_fixtures"]


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
