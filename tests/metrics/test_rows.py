"""Two arms' rows: joined by item, counted pair by pair, and refused at the first thing that does not match."""

import random

import pytest

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS
from quantize.metrics import Items, LmEvalTask
from quantize.metrics._rows import item_measurements, read_rows, write_rows
from quantize.stats import noninferiority, wilson_interval

#: (slice, right before, right after), as often as is said: losses and gains lie unevenly over the slices.
PATTERN = [("sums", 1, 1)] * 9 + [("sums", 1, 0)] * 3 + [("sums", 0, 1)] + [(None, 1, 1)] * 4 + [(None, 0, 0)] * 6
PATTERN += [("names", 0, 1)] * 2 + [("names", 0, 0)] * 5


def row(number, group, score, **columns):
    return {
        "place": number,
        "look": number // 8,
        "item_id": f"item-{number:02}",
        "filter": "none",
        "prompt_sha256": f"sha-{number}",
        "slice": group,
        "cluster": None,
        "score": float(score),
        "parsed": None,
        "tokens": None,
        "answer": "a",
        "target": "a",
        "prompt": "p",
        "truncated": None,
        "scored_by": None,
        "problem": None,
        **columns,
    }


@pytest.fixture
def arms():
    """Rows of the baseline and of the variant, each in an order of its own in its file."""
    before = [row(i, group, score) for i, (group, score, _) in enumerate(PATTERN)]
    after = [row(i, group, score) for i, (group, _, score) in enumerate(PATTERN)]
    random.Random(1).shuffle(before)
    random.Random(2).shuffle(after)
    return before, after


def in_clusters(rows, size):
    """The same rows in clusters of `size` that stand together in the seeded order."""
    return [{**r, "cluster": f"c{r['place'] // size}"} for r in rows]


@pytest.fixture
def compare(tmp_path):
    def run(before, after, metric=None, early=0.0):
        folders = [tmp_path / "before", tmp_path / "after"]
        for folder, rows in zip(folders, (before, after), strict=True):
            folder.mkdir(exist_ok=True)
            write_rows(rows, ITEM_ROWS, folder)
        return (metric or Items(name="facts", path="-")).compare(*folders, early)

    return run


def test_rows_in_any_order_are_compared_with_their_own_item(arms, compare):
    """Red when the join is by place, or shifted by one."""
    found = {c.metric: c for c in compare(*arms)}
    harmful = found.pop("facts.harmful_flips")
    counts = {name: (c.n, c.extra["losses"], c.extra["gains"], c.extra["ties"]) for name, c in found.items()}
    assert counts == {
        "facts.accuracy": (30, 3, 3, 24),
        "facts.accuracy/sums": (13, 3, 1, 9),
        "facts.accuracy/names": (7, 0, 2, 5),
    }
    assert found["facts.accuracy/names"].difference == 2 / 7
    assert (found["facts.accuracy"].baseline, found["facts.accuracy"].variant) == (16 / 30, 16 / 30)
    assert (harmful.difference, harmful.n) == (3 / 30, 30)
    assert harmful.low < harmful.difference < harmful.high


@pytest.mark.parametrize("margin", [0.02, 0.2])
def test_the_interval_is_that_of_the_gate_whatever_its_margin(arms, compare, margin):
    found = compare(*arms)[0]
    test = noninferiority(3, 3, 30, margin=margin, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((test.lower, test.upper), abs=1e-6)
    assert found.low < found.difference < found.high
    assert found.level == 0.9


def test_an_arm_compared_with_itself_shows_no_flip(arms, compare):
    found = {c.metric: c for c in compare(arms[0], arms[0])}
    assert found.pop("facts.harmful_flips").difference == 0
    assert all((c.extra["losses"], c.extra["gains"]) == (0, 0) for c in found.values())


def test_harmful_flips_of_items_that_hang_together_are_resampled_by_cluster(compare):
    """Red when items are counted: 60 losses are ten passages of six, and how many there might have been is wide."""
    before = [row(i, None, 1) for i in range(600)]
    after = [row(i, None, i // 6 % 10 > 0) for i in range(600)]

    def harmful(size):
        arms = (in_clusters(rows, size) if size > 1 else rows for rows in (before, after))
        return next(c for c in compare(*arms) if c.metric == "facts.harmful_flips")

    loose, grouped = harmful(1), harmful(6)
    assert loose.difference == grouped.difference == 60 / 600
    assert "wilson" in loose.method.lower()
    assert "bootstrap" in grouped.method.lower()
    assert grouped.high - grouped.low > 1.5 * (loose.high - loose.low)
    assert (loose.level, grouped.level) == (0.9, 0.9)
    assert grouped.low <= grouped.difference <= grouped.high


def test_that_no_item_flipped_does_not_show_that_none_ever_would(compare):
    """Red when clusters are resampled in which nothing differs: ten passages would exclude any flip for good."""
    rows = [row(i, None, 1) for i in range(60)]
    loose, grouped = (
        next(c for c in compare(arm, arm) if c.metric == "facts.harmful_flips") for arm in (rows, in_clusters(rows, 6))
    )
    assert loose.low == grouped.low == loose.difference == grouped.difference == 0
    assert 0 < loose.high < grouped.high
    assert grouped.high == wilson_interval(0, 10, 0.9).upper


def test_a_share_of_clustered_items_has_no_interval_that_takes_them_for_independent():
    alone = [row(i, "sums" if i % 2 else None, i % 3 > 0, parsed=1.0, tokens=2.0) for i in range(30)]
    shares = {"facts.accuracy", "facts.accuracy/sums", "facts.parsed"}
    for rows, known in ((alone, True), (in_clusters(alone, 3), False)):
        found = {m.name: m for m in item_measurements("facts", rows)}
        assert shares < set(found)
        for name in shares:
            assert (found[name].low is not None, found[name].high is not None) == (known, known)
        assert found["facts.accuracy"].value == 20 / 30


def change(rows, number, **columns):
    next(r for r in rows if r["item_id"] == f"item-{number:02}").update(columns)


def shift(rows):
    """Each score under the next item's id: what a join by place would make of sorted rows."""
    rows.sort(key=lambda r: r["item_id"])
    shifted = [r["prompt_sha256"] for r in rows]
    for r, sha in zip(rows, [*shifted[1:], shifted[0]], strict=True):
        r["prompt_sha256"] = sha


def drop(rows, number):
    rows.remove(next(r for r in rows if r["item_id"] == f"item-{number:02}"))


DAMAGE = {
    "missing in the variant": (
        lambda a, b: drop(b, 7),
        "the variant has no row for item 'item-07' (1 missing)",
    ),
    "missing in the middle of an answered look": (
        lambda a, b: (b.__setitem__(slice(None), [r for r in b if r["look"] < 2]), drop(b, 11)),
        "the variant has no row for item 'item-11' (1 missing)",
    ),
    "missing with its whole look": (
        lambda a, b: b.__setitem__(slice(None), [r for r in b if r["look"] != 1]),
        "the variant has no row for item 'item-08' (8 missing)",
    ),
    "missing in the baseline": (
        lambda a, b: drop(a, 7),
        "the baseline has no row for item 'item-07' (1 missing)",
    ),
    "twice": (lambda a, b: b.append(dict(b[3], score=1 - b[3]["score"])), "has two rows"),
    "twice in the baseline": (lambda a, b: a.append(dict(a[3])), "the baseline: item"),
    "another prompt": (lambda a, b: change(b, 4, prompt_sha256="other"), "asked different things under item 'item-04'"),
    "another answer": (lambda a, b: change(b, 4, target="b"), "scored against different answers to item 'item-04'"),
    "another slice": (lambda a, b: change(b, 4, slice="others"), "item 'item-04' in different clusters or slices"),
    "another cluster": (lambda a, b: change(b, 4, cluster="c"), "item 'item-04' in different clusters or slices"),
    "shifted by one": (lambda a, b: shift(b), "asked different things under item 'item-00'"),
    "no score": (lambda a, b: change(b, 4, score=None), "item 'item-04' has the score None"),
    "NaN": (lambda a, b: change(b, 4, score=float("nan")), "the variant: item 'item-04' has the score nan"),
    "NaN in the baseline": (lambda a, b: change(a, 4, score=float("nan")), "the baseline: item 'item-04' has the"),
    "infinite": (lambda a, b: change(b, 4, score=float("-inf")), "item 'item-04' has the score -inf"),
    "above 1": (lambda a, b: change(b, 4, score=1.5), "item 'item-04' has the score 1.5, which is not between 0 and 1"),
    "below 0": (lambda a, b: change(a, 4, score=-0.5), "item 'item-04' has the score -0.5, which is not between"),
    "another filter": (lambda a, b: change(b, 4, filter="strict"), "has no row for item 'item-04'"),
    "nothing": (lambda a, b: (a.clear(), b.clear()), "there are no rows"),
    "nothing of the variant": (lambda a, b: b.clear(), "the variant: there are no rows"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("metric", [Items(name="facts", path="-"), LmEvalTask(name="facts", task="-")])
def test_rows_that_do_not_match_are_refused_by_name(arms, compare, metric, damage, sentence):
    damage(*arms)
    with pytest.raises(DataError) as caught:
        compare(*arms, metric)
    assert sentence in str(caught.value)
    with pytest.raises(DataError) as caught:
        metric.pairs(*arms)
    assert sentence in str(caught.value)


def test_rows_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="rows cannot be read"):
        Items(name="facts", path="-").compare(tmp_path, tmp_path, 0.0)


FACTS = Items(name="facts", path="-")


def test_pairs_stand_in_the_seeded_order_whatever_the_order_of_the_files(arms):
    pairs = FACTS.pairs(*arms)
    assert pairs["facts.accuracy"].differences.tolist() == [after - before for _, before, after in PATTERN]
    sums = [after - before for group, before, after in PATTERN if group == "sums"]
    assert pairs["facts.accuracy/sums"].differences.tolist() == sums
    assert set(pairs) == {"facts.accuracy", "facts.accuracy/sums", "facts.accuracy/names"}
    assert pairs["facts.accuracy"].binary and not pairs["facts.accuracy"].clustered


def test_a_stopped_arm_pairs_with_the_first_looks_and_the_rest_is_what_it_could_still_gain(arms):
    before, after = arms
    pairs = FACTS.pairs(before, [r for r in after if r["look"] < 2])["facts.accuracy"]
    assert pairs.differences.tolist() == [after - before for _, before, after in PATTERN[:16]]
    assert pairs.possible.tolist() == [1 - before for _, before, _ in PATTERN[16:]]
    assert (pairs.n, pairs.total) == (16, 30)


def test_a_slice_of_which_nothing_was_answered_yet_is_left_out(arms):
    before, after = arms
    pairs = FACTS.pairs(before, [r for r in after if r["look"] < 1])
    assert set(pairs) == {"facts.accuracy", "facts.accuracy/sums"}
    assert (pairs["facts.accuracy/sums"].n, pairs["facts.accuracy/sums"].total) == (8, 13)


def test_what_is_shown_of_a_stopped_arm_is_of_the_answered_items_with_the_limits_of_the_sequence(arms, compare):
    before, after = arms
    found = {c.metric: c for c in compare(before, [r for r in after if r["look"] < 2], early=0.2)}
    shown = found["facts.accuracy"]
    first = PATTERN[:16]
    assert (shown.n, shown.extra["items"], shown.method) == (16, 30, "betting")
    assert shown.baseline == sum(before for _, before, _ in first) / 16
    assert shown.variant == sum(after for _, _, after in first) / 16
    harmful = found["facts.harmful_flips"]
    assert harmful.difference == 3 / 16
    assert (harmful.low, harmful.high, harmful.level) == (None, None, None), "its end was chosen by what was seen"
    whole = next(c for c in compare(before, after, early=0.2) if c.metric == "facts.accuracy")
    assert shown.high - shown.low > whole.high - whole.low


def test_an_arm_that_answered_in_another_order_joins_when_it_is_complete(arms, compare):
    """The noise floor: the baseline again, in an order of its own."""
    before, after = arms
    order = random.Random(3).sample(range(len(after)), len(after))
    moved = [{**r, "place": order[r["place"]], "look": order[r["place"]] // 8} for r in after]
    pairs = FACTS.pairs(before, moved)["facts.accuracy"]
    assert pairs.differences.tolist() == [after - before for _, before, after in PATTERN]
    assert compare(before, moved)[0] == compare(before, after)[0]
    with pytest.raises(DataError, match=r"the variant has no row for item 'item-\d\d' \(14 missing\)"):
        FACTS.pairs(before, [r for r in moved if r["look"] < 2])


def test_items_of_a_cluster_are_one_unit_of_the_test_in_every_slice(arms, compare):
    before, after = (in_clusters(rows, 3) for rows in arms)
    pairs = FACTS.pairs(before, after)
    assert pairs["facts.accuracy"].clusters.tolist() == [i // 3 for i in range(30)]
    assert pairs["facts.accuracy"].clustered
    sizes = pairs["facts.accuracy/sums"].sums()[1].tolist()
    assert sizes == [3, 3, 3, 3, 1]
    shown = next(c for c in compare(before, after) if c.metric == "facts.accuracy")
    assert shown.extra["clusters"] == 10
    assert shown.method == "betting"


def test_graded_scores_are_paired_as_they_are(arms):
    before, after = arms
    change(after, 4, score=0.75)
    pairs = FACTS.pairs(before, after)
    assert pairs["facts.accuracy"].differences[4] == pytest.approx(-0.25)
    assert not pairs["facts.accuracy"].binary
    assert pairs["facts.accuracy/names"].binary


#: (parsed, tokens) of the baseline and of the variant, item by item; the last item has choices.
SPOKEN = [((1, 4), (1, 8)), ((1, 6), (0, 64)), ((0.5, 10), (1, 5)), ((1, 20), (1, 20)), ((None, None), (None, None))]


def spoken():
    return [
        [row(i, None, 1, parsed=parsed, tokens=tokens) for i, (parsed, tokens) in enumerate(arm)]
        for arm in zip(*SPOKEN, strict=True)
    ]


def test_the_ratio_of_lengths_is_that_of_the_mean_tokens_of_generated_answers(compare):
    found = {c.metric: c for c in compare(*spoken())}
    ratio = found["facts.output_tokens"]
    assert (ratio.unit, ratio.n) == ("ratio", 4)
    assert (ratio.baseline, ratio.variant) == (40 / 4, 97 / 4)
    assert ratio.difference == pytest.approx(97 / 40)
    assert ratio.low < ratio.difference < ratio.high


def test_the_ratio_of_lengths_of_a_stopped_arm_has_no_interval(compare):
    before, after = ([row(i, None, 1, parsed=1.0, tokens=n) for i in range(24)] for n in (4, 5))
    ratio = next(c for c in compare(before, after[:16], early=0.2) if c.metric == "facts.output_tokens")
    assert (ratio.difference, ratio.n) == (pytest.approx(1.25), 16)
    assert (ratio.low, ratio.high, ratio.level) == (None, None, None)


@pytest.mark.parametrize("place", [0, 2, 3])
def test_what_a_variant_says_where_the_baseline_said_nothing_counts_as_length(compare, place):
    before, after = spoken()
    before[place]["tokens"] = 0
    found = {c.metric: c for c in compare(before, after)}
    assert found["facts.output_tokens"].difference == pytest.approx(97 / sum(r["tokens"] or 0 for r in before))


def test_the_readable_share_is_paired_over_generated_answers_only(compare):
    before, after = spoken()
    pairs = FACTS.pairs(before, after)["facts.parsed"]
    assert pairs.differences.tolist() == [0, -1, 0.5, 0]
    shown = next(c for c in compare(before, after) if c.metric == "facts.parsed")
    assert (shown.n, shown.baseline, shown.variant) == (4, 3.5 / 4, 3 / 4)
    assert (shown.extra["losses"], shown.extra["gains"]) == (1, 1)


def test_nothing_is_said_of_lengths_where_the_model_only_chooses(arms, compare):
    assert {c.metric.partition("/")[0] for c in compare(*arms)} == {"facts.accuracy", "facts.harmful_flips"}


def test_rows_survive_the_file_as_they_are(tmp_path):
    rows = [*spoken()[1], row(9, "s", 0.3, cluster="c")]
    write_rows(rows, ITEM_ROWS, tmp_path)
    assert read_rows(tmp_path) == rows
