"""Two arms' rows: joined by item, counted pair by pair, and refused at the first thing that does not match."""

import random

import pytest

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS
from quantize.metrics import Items, LmEvalTask
from quantize.metrics._rows import write_rows
from quantize.stats import noninferiority

#: (slice, right before, right after), as often as is said: losses and gains lie unevenly over the slices.
PATTERN = [("sums", 1, 1)] * 9 + [("sums", 1, 0)] * 3 + [("sums", 0, 1)] + [(None, 1, 1)] * 4 + [(None, 0, 0)] * 6
PATTERN += [("names", 0, 1)] * 2 + [("names", 0, 0)] * 5


def row(number, group, score):
    return {
        "item_id": f"item-{number:02}",
        "filter": "none",
        "prompt_sha256": f"sha-{number}",
        "slice": group,
        "cluster": None,
        "score": float(score),
        "answer": "a",
        "target": "a",
        "prompt": "p",
    }


@pytest.fixture
def arms():
    """Rows of the baseline and of the variant, each in an order of its own."""
    before = [row(i, group, score) for i, (group, score, _) in enumerate(PATTERN)]
    after = [row(i, group, score) for i, (group, _, score) in enumerate(PATTERN)]
    random.Random(1).shuffle(before)
    random.Random(2).shuffle(after)
    return before, after


@pytest.fixture
def compare(tmp_path):
    def run(before, after, metric=None):
        folders = [tmp_path / "before", tmp_path / "after"]
        for folder, rows in zip(folders, (before, after), strict=True):
            folder.mkdir(exist_ok=True)
            write_rows(rows, ITEM_ROWS, folder)
        return (metric or Items(name="facts", path="-")).compare(*folders)

    return run


def test_rows_in_any_order_are_compared_with_their_own_item(arms, compare):
    """Red when the join is by place, or shifted by one."""
    found = {c.metric: c for c in compare(*arms)}
    counts = {name: (c.n, c.extra["losses"], c.extra["gains"], c.extra["ties"]) for name, c in found.items()}
    assert counts == {
        "facts.accuracy": (30, 3, 3, 24),
        "facts.accuracy/sums": (13, 3, 1, 9),
        "facts.accuracy/names": (7, 0, 2, 5),
    }
    assert found["facts.accuracy/names"].difference == 2 / 7
    assert (found["facts.accuracy"].baseline, found["facts.accuracy"].variant) == (16 / 30, 16 / 30)


@pytest.mark.parametrize("margin", [0.02, 0.2])
def test_the_interval_is_that_of_the_gate_whatever_its_margin(arms, compare, margin):
    found = compare(*arms)[0]
    test = noninferiority(3, 3, 30, margin=margin, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((test.lower, test.upper), abs=1e-6)
    assert found.low < found.difference < found.high
    assert found.level == 0.9


def test_an_arm_compared_with_itself_shows_no_flip(arms, compare):
    assert all((c.extra["losses"], c.extra["gains"]) == (0, 0) for c in compare(arms[0], arms[0]))


def change(rows, number, **columns):
    next(r for r in rows if r["item_id"] == f"item-{number:02}").update(columns)


def shift(rows):
    """Each score under the next item's id: what a join by place would make of sorted rows."""
    rows.sort(key=lambda r: r["item_id"])
    shifted = [r["prompt_sha256"] for r in rows]
    for r, sha in zip(rows, [*shifted[1:], shifted[0]], strict=True):
        r["prompt_sha256"] = sha


DAMAGE = {
    "missing in the variant": (
        lambda a, b: b.remove(next(r for r in b if r["item_id"] == "item-07")),
        "the variant has no row for item 'item-07' (1 missing)",
    ),
    "missing in the baseline": (
        lambda a, b: a.remove(next(r for r in a if r["item_id"] == "item-07")),
        "the baseline has no row for item 'item-07'",
    ),
    "twice": (lambda a, b: b.append(dict(b[3], score=1 - b[3]["score"])), "has two rows"),
    "another prompt": (lambda a, b: change(b, 4, prompt_sha256="other"), "asked different things under item 'item-04'"),
    "another answer": (lambda a, b: change(b, 4, target="b"), "scored against different answers to item 'item-04'"),
    "shifted by one": (lambda a, b: shift(b), "asked different things under item 'item-00'"),
    "no score": (lambda a, b: change(b, 4, score=None), "item 'item-04' has the score None"),
    "NaN": (lambda a, b: change(b, 4, score=float("nan")), "item 'item-04' has the score nan"),
    "half right": (
        lambda a, b: change(b, 4, score=0.5),
        "item 'item-04' has the score 0.5; only right (1) and wrong (0)",
    ),
    "another filter": (lambda a, b: change(b, 4, filter="strict"), "has no row for item 'item-04'"),
    "nothing": (lambda a, b: (a.clear(), b.clear()), "there are no rows"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("metric", [Items(name="facts", path="-"), LmEvalTask(name="facts", task="-")])
def test_rows_that_do_not_match_are_refused_by_name(arms, compare, metric, damage, sentence):
    damage(*arms)
    with pytest.raises(DataError) as caught:
        compare(*arms, metric)
    assert sentence in str(caught.value)


def test_rows_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="rows cannot be read"):
        Items(name="facts", path="-").compare(tmp_path, tmp_path)
