"""`quantize compare`: two arms paired on what both answered, what flipped, and what is refused."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from program import command

from quantize.arms import Arm, Places, arms_of, pairs_of
from quantize.comparing import compare_arms
from quantize.errors import DataError, QuantizeError, StoreError, UsageError
from quantize.evidence import ITEM_ROWS
from quantize.metrics._rows import write_rows
from quantize.report import print_contrasts
from quantize.run import RunRecord, read_record
from quantize.stats import betting_lower_limit, mcnemar_p_value, noninferiority
from quantize.store import Store

MINUS = "\N{MINUS SIGN}"

#: (slice, score of the first arm, of the second): 6 losses and 2 gains in 200 items.
PATTERN = [("sums", 1, 1)] * 90 + [("sums", 1, 0)] * 5 + [("sums", 0, 1)] + [("names", 0, 0)] * 60
PATTERN += [("names", 1, 1)] * 42 + [("names", 1, 0)] + [("names", 0, 1)]


def rows_of(which: int, *, seed: int = 0, look: int = 16, **columns: Any) -> list[dict[str, Any]]:
    """One arm's rows in the order of `seed`."""
    numbers = list(range(len(PATTERN)))
    random.Random(seed).shuffle(numbers)
    return [
        {
            "place": place,
            "look": place // look,
            "item_id": f"item-{number:03}",
            "filter": "none",
            "prompt_sha256": f"sha-{number}",
            "slice": PATTERN[number][0],
            "cluster": None,
            "score": float(PATTERN[number][which]),
            "parsed": None,
            "tokens": None,
            "answer": f"arm {which} says {number}",
            "target": f"right {number}",
            "prompt": f"question {number}\nin two lines:",
            **columns,
        }
        for place, number in enumerate(numbers)
    ]


@pytest.fixture
def arm(tmp_path):
    """An arm from rows, as if it had answered `items` items in all (None: those it has)."""

    def made(name: str, rows: list[dict[str, Any]], items: int | None = None, eval_name: str = "facts") -> Arm:
        folder = tmp_path / name / eval_name
        folder.mkdir(parents=True)
        write_rows(rows, ITEM_ROWS, folder)
        return Arm(name, name, (eval_name,), lambda _: folder, lambda _: items in (None, len(rows)))

    return made


@pytest.fixture
def complete(arm):
    """Two arms that answered everything."""
    return arm("int8", rows_of(1)), arm("int4", rows_of(2))


def change(rows: list[dict[str, Any]], number: int, **columns: Any) -> None:
    next(row for row in rows if row["item_id"] == f"item-{number:03}").update(columns)


def test_whole_sets_are_counted_pair_by_pair_with_the_interval_of_the_fixed_sample(complete):
    (contrast,) = compare_arms(*complete)
    whole, *slices = contrast.comparisons
    expected = noninferiority(6, 2, 200, margin=0.05, alpha=0.05)
    assert (whole.n, whole.extra["losses"], whole.extra["gains"]) == (200, 6, 2)
    assert whole.difference == pytest.approx(-4 / 200)
    assert (whole.low, whole.high) == pytest.approx((expected.lower, expected.upper), abs=1e-6)
    assert whole.level == 0.9
    assert whole.extra["mcnemar"] == mcnemar_p_value(6, 2)
    assert {c.metric: (c.n, c.extra["losses"], c.extra["gains"]) for c in slices} == {
        "facts.accuracy/names": (104, 1, 1),
        "facts.accuracy/sums": (96, 5, 1),
    }
    assert contrast.note == ""


def test_the_way_back_is_the_mirror(complete):
    (there,), (back,) = compare_arms(*complete), compare_arms(*reversed(complete))
    for one, other in zip(there.comparisons, back.comparisons, strict=True):
        assert one.difference == -other.difference
        assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)), abs=1e-6)
        assert one.extra["losses"] == other.extra["gains"]


def test_flips_are_all_there_losses_first_and_the_greatest_first(arm):
    after = rows_of(2)
    change(after, 0, score=0.75)  # a graded loss, smaller than the others
    (contrast,) = compare_arms(arm("int8", rows_of(1)), arm("int4", after))
    changes = [flip.difference for flip in contrast.flips]
    assert changes == [-1.0] * 6 + [-0.25] + [1.0] * 2
    lost = contrast.flips[0]
    number = int(lost.item_id.removeprefix("item-"))
    assert PATTERN[number] == (lost.slice, 1, 0)
    assert (lost.prompt, lost.target) == (f"question {number}\nin two lines:", f"right {number}")
    assert (lost.before, lost.after) == (f"arm 1 says {number}", f"arm 2 says {number}")


@pytest.mark.parametrize("looks", [(16, 16), (16, 40)], ids=["looks alike", "looks of other sizes"])
def test_arms_that_stopped_at_different_items_share_the_first_and_the_interval_is_the_sequences(arm, looks):
    before, after = rows_of(1, look=looks[0])[:160], rows_of(2, look=looks[1])[:80]
    (contrast,) = compare_arms(arm("int8", before, 200), arm("int4", after, 200))
    whole = contrast.comparisons[0]
    differences = [other["score"] - one["score"] for one, other in zip(before, after, strict=False)]
    assert whole.n == 80
    assert whole.difference == pytest.approx(sum(differences) / 80)
    import numpy as np

    sums, sizes = np.array(differences), np.ones(80)
    assert whole.low == betting_lower_limit(sums, sizes, 1, 0.05)
    assert whole.high == -betting_lower_limit(-sums, sizes, 1, 0.05)
    assert "80 items" in contrast.note


def test_whole_sets_in_different_orders_give_the_same_counts(arm, complete):
    (same,) = compare_arms(*complete)
    (other,) = compare_arms(arm("other", rows_of(1, seed=7)), complete[1])
    assert other.comparisons == same.comparisons
    assert {flip.item_id for flip in other.flips} == {flip.item_id for flip in same.flips}


def test_clusters_are_the_units(arm):
    """Items in clusters of ten that flip together: the interval is wider than if each were on its own."""
    clustered = []
    for which in (1, 2):
        rows = [{**row, "cluster": f"c{row['place'] // 10}"} for row in rows_of(which)]
        for row in rows:
            row["score"] = float(which == 1 or row["place"] // 10 not in (3, 8, 12, 15, 19))
        clustered.append(rows)
    alone = [[{**row, "cluster": None} for row in rows] for rows in clustered]
    (together,) = compare_arms(arm("a", clustered[0]), arm("b", clustered[1]))
    (apart,) = compare_arms(arm("c", alone[0]), arm("d", alone[1]))
    assert together.comparisons[0].extra["clusters"] == 20
    widths = [(c.comparisons[0].high or 0) - (c.comparisons[0].low or 0) for c in (together, apart)]
    assert widths[0] > 1.5 * widths[1]


@pytest.mark.parametrize(
    ("column", "value"), [("prompt_sha256", "x"), ("target", "x"), ("cluster", "x"), ("slice", "x")]
)
def test_different_eval_sets_are_refused_with_the_first_mismatch(arm, column, value):
    after = rows_of(2)
    change(after, 17, **{column: value})
    with pytest.raises(DataError, match="item-017") as refused:
        compare_arms(arm("int8", rows_of(1)), arm("int4", after))
    assert "facts of int8 and int4" in str(refused.value)


@pytest.mark.parametrize(("cut", "items"), [((None, 199), (200, 199)), ((160, 79), (200, 200)), ((80, 160), (80, 200))])
def test_an_item_that_one_was_never_asked_is_refused(arm, cut, items):
    """Complete sets of different size; a missing item among the common ones; a whole set that lacks items."""
    before, after = rows_of(1)[: cut[0]], rows_of(2)[: cut[1]]
    if cut == (160, 79):
        after = [*after[:40], *rows_of(2)[41:80]]
    with pytest.raises(DataError, match=r"item-\d+' was asked of one arm only"):
        compare_arms(arm("int8", before, items[0]), arm("int4", after, items[1]))


def test_two_that_share_no_eval_are_told_what_each_has(arm):
    with pytest.raises(UsageError, match=r"share no eval \(int8: facts; int4: dates\)"):
        compare_arms(arm("int8", rows_of(1)), arm("int4", rows_of(2), eval_name="dates"))


# The whole program, on a finished run and its registry.


def test_arms_of_two_engines_are_compared_and_it_is_said(complete):
    first, second = complete
    (contrast,) = compare_arms(replace(first, engine="transformers"), replace(second, engine="llamacpp"))
    assert "int8 was measured in transformers, int4 in llamacpp" in contrast.note
    for engine in ("", "transformers"):  # unknown, or the same
        (contrast,) = compare_arms(replace(first, engine="transformers"), replace(second, engine=engine))
        assert contrast.note == ""


@pytest.fixture(scope="module")
def document(finished):
    """`quantize compare` as a document: of these arguments, on the finished store."""

    def told(*arguments: str) -> list[dict[str, Any]]:
        result = command("compare", *arguments, "--store", finished[0], "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return told


@pytest.fixture
def places(finished, tmp_path):
    """The finished store, with the run's record changed by `edit`."""

    def made(store: Path = finished[0], edit: Any = lambda record: record) -> Places:
        def run(name: str) -> RunRecord:
            return edit(read_record(finished[0] / "runs" / finished[1]["run"]))

        def registry(name: str) -> Any:
            raise AssertionError(name)

        return Places(Store(store), run, registry, tmp_path)

    return made


def test_the_baseline_and_a_variant_flip_as_the_run_says(finished, document):
    run = finished[1]
    for variant in run["variants"]:
        told = {contrast["eval"]: contrast for contrast in document("baseline", variant["name"])}
        kept = {c["metric"]: c for c in variant["evidence"]["comparisons"]}
        flips = [flip["difference"] for flip in told["facts"]["flips"]]
        accuracy = kept["facts.accuracy"]
        assert sum(change < 0 for change in flips) == accuracy["extra"]["losses"]
        assert sum(change > 0 for change in flips) == accuracy["extra"]["gains"]
        assert told["facts"]["comparisons"][0]["difference"] == accuracy["difference"]
        (ratio,) = told["prose"]["comparisons"]
        assert ratio["difference"] == pytest.approx(kept["prose.perplexity"]["difference"])


def test_the_baseline_beside_a_variant_is_the_one_in_the_variants_engine(places, finished):
    """A variant's rows stand in for a baseline's in another engine: which are taken is what counts."""

    def edit(record: RunRecord) -> RunRecord:
        keys = record.variants[0].stages
        elsewhere = record.variants[1].model_copy(update={"engine": "llamacpp", "baseline": "@llamacpp"})
        stages = {**record.baseline_stages, "evaluate.facts@llamacpp": keys["evaluate.facts"]}
        return record.model_copy(
            update={"variants": [record.variants[0], elsewhere], "baseline_stages": stages},
        )

    def pair(name: str) -> tuple[Arm, Arm]:
        ((one, other),) = pairs_of("latest:baseline", f"latest:{name}", places(edit=edit))
        assert one.engine == other.engine
        assert "measured in" not in compare_arms(one, other, "facts")[0].note
        return one, other

    run = read_record(finished[0] / "runs" / finished[1]["run"])
    store = Store(finished[0])
    assert pair("int8")[0].folder("facts") == store.path("evaluate", run.baseline_stages["evaluate.facts"])
    assert pair("int4-gptq")[0].folder("facts") == store.path("evaluate", run.variants[0].stages["evaluate.facts"])


def test_a_version_in_the_registry_is_the_variant_of_its_run(finished, document):
    run = finished[1]["run"]
    by_name = document("baseline", f"{run}:int8")
    by_alias = document("tiny@1", "tiny@int8-candidate")
    for one, other in zip(by_name, by_alias, strict=True):
        assert (one["eval"], one["comparisons"], one["flips"]) == (other["eval"], other["comparisons"], other["flips"])
    assert (by_alias[0]["first"], by_alias[0]["second"]) == ("tiny@1", "tiny@int8-candidate")


def test_two_runs_are_compared_variant_by_variant(finished, document):
    found = document("latest", str(finished[0] / "runs" / finished[1]["run"]), "--eval", "facts")
    assert [contrast["second"].rpartition(":")[2] for contrast in found] == ["int8", "int4-gptq"]
    assert all(contrast["flips"] == [] for contrast in found)
    assert all(contrast["comparisons"][0]["difference"] == 0 for contrast in found)


@pytest.mark.parametrize("shown", [0, 3, 99])
def test_flips_are_shown_with_question_right_answer_and_both_answers_as_many_as_asked_for(complete, shown):
    (contrast,) = compare_arms(*complete)
    paper = io.StringIO()
    print_contrasts([contrast], shown, paper)
    told = paper.getvalue()
    flat = " ".join(told.split())
    for number, flip in enumerate(contrast.flips):
        said = f"asked {flip.prompt} right {flip.target} int8 {flip.before} int4 {flip.after}"
        assert (" ".join(said.split()) in flat) == (number < shown)
    assert ("more flipped" in told) == (shown < 8)
    assert shown >= 8 or f"{8 - shown} more flipped: --flips 8" in told
    assert max(map(len, told.splitlines())) <= 120


def test_the_program_shows_as_many_flips_as_asked_for(finished, document):
    (told,) = document("baseline", "int4-gptq", "--eval", "facts")
    count = len(told["flips"])
    result = command("compare", "baseline", "int4-gptq", "--eval", "facts", "--store", finished[0], "--flips", "0")
    assert result.returncode == 0
    assert f"{MINUS}{sum(flip['difference'] < 0 for flip in told['flips'])} +" in result.stdout
    assert (f"{count} more flipped" in result.stdout) == (count > 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("int9", "int8"), ["baseline, int8, int4-gptq", "there is no run 'int9'", "tiny-2"]),
        (("latest:int9", "int8"), ["baseline, int8, int4-gptq"]),
        (("yesterday:int8", "int8"), ["there is no run 'yesterday'", "tiny-2"]),
        (("tiny@9", "int8"), ["there is no '9'", "production", "versions: 1, 2, 3"]),
        (("tiny@staging", "int8"), ["there is no 'staging'", "int4-gptq-candidate"]),
        (("large@1", "int8"), ["no such registered model"]),
        (("a b@1", "int8"), ["cannot be a model's name"]),
        (("latest", "int8"), ["whole run", "latest:VARIANT"]),
        (("baseline", "int8", "--eval", "dates"), ["--eval dates", "prose, facts"]),
    ],
)
def test_what_is_not_there_is_named_with_what_is(finished, arguments, said):
    result = command("compare", *arguments, "--store", finished[0])
    assert result.returncode in (1, 2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in said), result.stderr


def test_a_variant_that_was_never_measured_says_why(places):
    def unmeasured(record: RunRecord) -> RunRecord:
        first, *rest = record.variants
        verdict = first.verdict.model_copy(update={"outcome": "error"})
        stages = {"quantize": first.stages["quantize"]}
        return record.model_copy(
            update={"variants": [first.model_copy(update={"stages": stages, "verdict": verdict}), *rest]}
        )

    with pytest.raises(UsageError, match="int8 was not measured"):
        arms_of("int8", places(edit=unmeasured))
    found = pairs_of("latest", "latest", places(edit=unmeasured))
    assert [one.variant for one, _ in found] == ["int4-gptq"]


def test_runs_without_a_variant_in_common_are_told_apart(places):
    def renamed(record: RunRecord) -> RunRecord:
        renamed.calls += 1  # type: ignore[attr-defined]
        names = [v.model_copy(update={"name": f"{v.name}-{renamed.calls}"}) for v in record.variants]  # type: ignore[attr-defined]
        return record.model_copy(update={"variants": names})

    renamed.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="share no measured variant"):
        pairs_of("latest", "latest", places(edit=renamed))


def test_rows_that_are_gone_are_said_to_be(places, copied):
    shutil.rmtree(copied / "evaluate")
    one, other = arms_of("baseline", places(copied)), arms_of("int8", places(copied))
    assert isinstance(one, Arm) and isinstance(other, Arm)
    with pytest.raises(StoreError, match="rows are gone"):
        compare_arms(one, other)


def test_rows_that_are_no_rows_are_refused(arm, tmp_path):
    one, other = arm("int8", rows_of(1)), arm("int4", rows_of(2))
    (tmp_path / "int4" / "facts" / "rows.parquet").write_bytes(b"not a table")
    with pytest.raises(QuantizeError, match="cannot be read"):
        compare_arms(one, other)
