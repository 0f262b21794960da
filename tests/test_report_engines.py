"""The report of a run in several engines: each variant beside the baseline in its own."""

from __future__ import annotations

from report_runs import drawn, record

from quantize.evidence import Measurement
from quantize.report import markdown, summarise
from quantize.run import RunRecord, VariantRecord

pytest_plugins = ["report_fixtures"]


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
