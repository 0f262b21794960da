"""The numbers on the page about margins are those that a plan would give."""

import re
from pathlib import Path

import pytest

from quantize.stats import least_items, sample_size, spent_alpha

PAGE = (Path(__file__).parents[2] / "docs" / "margins.md").read_text("utf-8")
FLIPS = (0.01, 0.03, 0.06, 0.10)
ALPHA = spent_alpha(0.05)


def table(title):
    """Rows of numbers of the first table below a title."""
    lines = PAGE.partition(f"## {title}\n")[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([float(re.match(r"[\d.]+", cell.strip())[0]) for cell in line.strip("|").split("|")])
    return rows


def test_the_alpha_on_the_page_is_what_is_left_at_a_first_attempt():
    assert f"{ALPHA:.4f}" == "0.0243"
    assert f"of which {ALPHA:.4f} is left" in PAGE


def test_items_are_those_that_a_plan_asks_for():
    rows = table("Items that a margin takes")
    assert [row[0] for row in rows] == [0.5, 1, 2, 3, 5, 10]
    for points, least, *items in rows:
        margin = points / 100
        assert least == least_items(margin, ALPHA)
        assert items == [sample_size(margin, flips, ALPHA) for flips in FLIPS]


@pytest.mark.parametrize("row", table("What a set can show"), ids=lambda row: f"{row[0]:.0f} items")
def test_margins_are_the_smallest_that_so_many_items_show(row):
    items, *margins = row
    for points, flips in zip(margins, FLIPS, strict=True):
        assert sample_size(points / 100, flips, ALPHA) <= items
        assert sample_size((points - 0.1) / 100, flips, ALPHA) > items


def test_a_second_attempt_takes_as_many_more_as_the_page_says():
    assert f"no fewer than {least_items(0.02, spent_alpha(0.05, 2))} items" in PAGE
    assert f"instead of {least_items(0.02, ALPHA)}." in PAGE
    assert spent_alpha(0.05, 2) == pytest.approx(ALPHA / 4)


def test_the_page_on_eval_sets_is_right_about_500_items():
    sets = (Path(__file__).parents[2] / "docs" / "eval-sets.md").read_text("utf-8")
    assert "500 independent items show a loss of about three points where 3 % of the answers flip" in sets
    assert sample_size(0.03, 0.03, ALPHA) < 500 < sample_size(0.028, 0.03, ALPHA)
