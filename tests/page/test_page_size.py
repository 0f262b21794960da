"""A page stays under 3 MB whatever the run's size, and says what it leaves out and where that is."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from page_world import PageWorld

from quantize.comparing import Flip
from quantize.report.page import MOST_BYTES, page
from quantize.report.page.reading import Positions
from quantize.verdict import Finding


def flips(count: int, text: str, *, lost: int) -> tuple[Flip, ...]:
    """Flips of which the first `lost` are losses."""
    return tuple(
        Flip(f"item-{n}", f"slice-{n % 500}", -1.0 if n < lost else 1.0, f"{text} {n}", text, text, text)
        for n in range(count)
    )


@pytest.fixture
def sources(tmp_path):
    """A small run of two variants."""
    world = PageWorld(tmp_path)
    world.add("int8", 0.1)
    world.add("int4", 0.5)
    return world.sources()


def test_of_too_many_flips_each_variant_shows_its_worst_and_the_count_of_the_others_is_told(sources):
    many = {("int8", "facts"): flips(40, "x" * 900, lost=20), ("int4", "facts"): flips(60_000, "y" * 900, lost=50_000)}
    told = page(dataclasses.replace(sources, flips=many))
    assert len(told.encode()) < MOST_BYTES
    shown = re.findall(r"<b>(item-\d+)</b>", told)
    assert len(shown) > 300
    (here, all_of_them) = re.search(r"([\d,]+) of ([\d,]+) items whose answer changed", told).groups()
    assert int(here.replace(",", "")) == len(shown)
    assert all_of_them == "60,040"
    assert "quantize compare demo-1:baseline demo-1:VARIANT --eval EVAL --flips 60000" in told
    assert told.count('data-variant="int8"') == 40, "one that lost little is not crowded out"
    ranks = [int(item.removeprefix("item-")) for item in shown[: len(shown) // 2]]
    assert max(ranks) < len(shown)


def test_a_long_text_is_cut_and_how_much_more_there_is_is_told(sources):
    told = page(dataclasses.replace(sources, flips={("int8", "facts"): flips(3, "z" * 100_000, lost=3)}))
    assert "more characters)" in told
    assert len(told.encode()) < 500_000


def test_a_run_with_very_much_of_everything_stays_under_the_limit(sources):
    """Many variants, slices, texts and stages, long sentences and logs, all at once."""
    one = sources.record.variants[1]
    assert one.evidence is not None
    whole = next(c for c in one.evidence.comparisons if c.metric == "facts.accuracy")
    slices = [whole.model_copy(update={"metric": f"facts.accuracy/slice-{n}"}) for n in range(1500)]
    long = Finding(
        gate="g", kind="stage", metric="m", outcome="fail", sentence="s" * 9000, numbers={}, detail="d" * 90_000
    )
    evidence = one.evidence.model_copy(update={"comparisons": [*one.evidence.comparisons, *slices]})
    found = one.verdict.model_copy(update={"findings": [*one.verdict.findings, long, long]})
    variants = [
        one.model_copy(update={"name": f"variant-{n}", "evidence": evidence, "verdict": found}) for n in range(130)
    ]
    record = sources.record.model_copy(update={"variants": variants})
    section = sources.summary.sections[1]
    table = dataclasses.replace(section.table, rows=section.table.rows * 300)
    sections = tuple(
        dataclasses.replace(section, name=v.name, table=table, findings=tuple(found.findings)) for v in variants
    )
    grid = dataclasses.replace(sources.summary.table, rows=sources.summary.table.rows * 60)
    context, nats = np.arange(1, 2000), np.full(1999, 0.01)
    told = page(
        dataclasses.replace(
            sources,
            record=record,
            summary=dataclasses.replace(sources.summary, sections=sections, table=grid),
            flips={(v.name, "facts"): flips(300, "q" * 300, lost=200) for v in variants},
            positions=tuple(Positions(v.name, "prose", context, nats, bound=False) for v in variants),
            stages=sources.stages * 400,
            recipe="r" * 3_000_000,
        )
    )
    assert 1_500_000 < len(told.encode()) < MOST_BYTES
    assert "shows it: there is too much for a page" in told
    assert "more variants stand in the table alone" in told
    assert "1473 more stand in each variant" in told
    assert "more stages are in run.json" in told
