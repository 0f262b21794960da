"""Items are answered in looks of one seeded order; what was answered is kept, and is never answered again."""

import copy
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from quantize.errors import StoreError
from quantize.metrics import Items
from quantize.metrics._looks import order_in_looks
from quantize.metrics._rows import read_rows
from quantize.parts import LOOK
from quantize.store import Store

TINY = Path(__file__).parents[1] / "tiny_llama" / "items.jsonl"
COUNT, LOOK_OF = 30, 8


def flat(looks):
    return [number for look in looks for number in look]


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_the_order_is_the_same_for_the_same_seed_and_holds_every_item_once(seed):
    looks = order_in_looks([None] * 100, seed, 48)
    assert looks == order_in_looks([None] * 100, seed, 48)
    assert sorted(flat(looks)) == list(range(100))
    assert [len(look) for look in looks] == [48, 48, 4]
    assert flat(looks) != flat(order_in_looks([None] * 100, seed + 1, 48))


def test_the_order_does_not_depend_on_the_size_of_a_look():
    clusters = [f"c{i % 7}" for i in range(60)]
    assert flat(order_in_looks(clusters, 5, 8)) == flat(order_in_looks(clusters, 5, 60))


def test_the_order_is_one_that_other_machines_draw_too():
    """Arms may be measured on different machines: the order is part of what is paired."""
    assert order_in_looks([None] * 8, 0, 8) == [[4, 1, 5, 2, 0, 3, 7, 6]]


def test_no_look_cuts_a_cluster():
    clusters = [f"c{i % 11}" if i % 5 else None for i in range(200)]
    looks = order_in_looks(clusters, 3, 16)
    places = {number: place for place, number in enumerate(flat(looks))}
    assert sorted(places) == list(range(200))
    for name in set(clusters) - {None}:
        members = [number for number, cluster in enumerate(clusters) if cluster == name]
        assert len({place for place, look in enumerate(looks) for number in members if number in look}) == 1
        taken = sorted(places[number] for number in members)
        assert taken == list(range(taken[0], taken[0] + len(taken)))
    assert all(len(look) >= 16 for look in looks[:-1])


class Watched:
    """A session that counts what it is asked, and may lose its power."""

    def __init__(self, session, dies_at=None):
        self._session = session
        self._dies_at = dies_at
        self._answer = session.lm().loglikelihood
        self.prompts = []

    def lm(self):
        if self._dies_at is not None and len(self.prompts) >= self._dies_at:
            raise KeyboardInterrupt
        lm = copy.copy(self._session.lm())  # the session's own is one for all, and is not watched

        def loglikelihood(requests, *args, **kwargs):
            self.prompts += list(dict.fromkeys(request.args[0] for request in requests))
            return self._answer(requests, *args, **kwargs)

        lm.loglikelihood = loglikelihood
        return lm

    def encode(self, text):
        return self._session.encode(text)


@pytest.fixture
def metric(tmp_path):
    lines = TINY.read_text("utf-8").splitlines()
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines[:: len(lines) // COUNT][:COUNT]), "utf-8")
    return Items(name="facts", path=str(path))


@pytest.fixture
def watched(baseline):
    """`watched()` is a function that opens a counting session; `.opened` lists those that it opened."""

    def make(dies_at=None):
        def open_one():
            session = Watched(baseline, dies_at)
            opened.append(session)
            return session

        opened = []
        open_one.opened = opened
        return open_one

    return make


def prompts_in_order(metric, seed):
    items = [json.loads(line) for line in Path(metric.path).read_text("utf-8").splitlines()]
    return [[items[number]["prompt"] for number in look] for look in order_in_looks([None] * COUNT, seed, LOOK_OF)]


def test_rows_stand_in_the_order_of_the_answers_with_their_place_and_look(metric, measured, baseline):
    found, out = measured(metric, baseline, seed=4, look=LOOK_OF)
    rows = read_rows(out)
    order = prompts_in_order(metric, 4)
    assert [row["prompt"] for row in rows] == flat(order)
    assert [row["place"] for row in rows] == list(range(COUNT))
    assert [row["look"] for row in rows] == flat([[number] * len(look) for number, look in enumerate(order)])
    assert found.progressed.model_dump() == {
        "items": COUNT,
        "answered": COUNT,
        "looks": 4,
        "stopped": None,
        "gate": None,
    }


def test_progress_is_one_bar_over_all_items(metric, job_for, parts_in, baseline, tmp_path):
    for _ in ("answered", "kept"):
        bar = Mock()
        metric.measure(job_for(baseline, look=LOOK_OF, parts=parts_in(tmp_path / "store"), progress=bar))
        told = [call.args for call in bar.call_args_list]
        assert {(what, total) for what, _, total in told} == {("items", COUNT)}
        done = [number for _, number, _ in told]
        assert done == sorted(done) and done[-1] == COUNT
        assert set(done) >= {8, 16, 24}


def test_a_killed_measurement_goes_on_after_its_last_kept_look(metric, job_for, parts_in, watched, tmp_path):
    job = job_for(watched()(), seed=4, look=LOOK_OF)
    expected = metric.measure(job)
    session = watched(dies_at=2 * LOOK_OF)()
    with pytest.raises(KeyboardInterrupt):
        metric.measure(job_for(session, seed=4, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    assert len(session.prompts) == 2 * LOOK_OF

    after = watched()()
    resumed = job_for(after, seed=4, look=LOOK_OF, parts=parts_in(tmp_path / "store"))
    found = metric.measure(resumed)
    # Within a look the harness asks in an order of its own.
    assert sorted(after.prompts) == sorted(flat(prompts_in_order(metric, 4)[2:]))
    assert read_rows(resumed.out) == read_rows(job.out)
    assert found == expected


def test_the_model_is_not_loaded_where_every_look_is_kept(metric, job_for, parts_in, watched, tmp_path):
    first, again = watched(), watched()
    jobs = [job_for(opener, look=LOOK_OF, parts=parts_in(tmp_path / "store")) for opener in (first, again)]
    measured = [metric.measure(job) for job in jobs]
    assert first.opened and not again.opened
    assert measured[0] == measured[1]
    assert read_rows(jobs[0].out) == read_rows(jobs[1].out)


def test_a_look_without_its_manifest_is_answered_again(metric, job_for, parts_in, watched, tmp_path):
    """The manifest is what makes a part: a look whose commit was cut short is not one."""
    metric.measure(job_for(watched()(), look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    store = Store(tmp_path / "store")
    cut = next(path for path, manifest in store.manifests(LOOK) if manifest.summary["number"] == 1)
    (cut / "manifest.json").unlink()
    after = watched()()
    metric.measure(job_for(after, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    assert sorted(after.prompts) == sorted(prompts_in_order(metric, 0)[1])


def test_every_look_is_kept_under_its_number_and_is_reported_as_used(metric, job_for, parts_in, baseline, tmp_path):
    parts = parts_in(tmp_path / "store")
    metric.measure(job_for(baseline, look=LOOK_OF, parts=parts))
    kept = {manifest.key: manifest.summary["number"] for _, manifest in Store(tmp_path / "store").manifests(LOOK)}
    assert sorted(kept.values()) == [0, 1, 2, 3]
    assert [kept[key] for key in parts.used] == [0, 1, 2, 3]


def test_a_stop_is_asked_after_each_look_with_all_rows_so_far_and_not_after_the_last(metric, measured, baseline):
    asked = []
    found, out = measured(metric, baseline, look=LOOK_OF, stop=lambda rows: asked.append(list(rows)))
    rows = read_rows(out)
    assert asked == [rows[:8], rows[:16], rows[:24]]
    assert found.progressed.stopped is None


@pytest.mark.parametrize("word", ["pass", "fail", "futile"])
def test_a_stop_is_honoured_and_said_with_its_gate(metric, measured, watched, word):
    session = watched()()
    found, out = measured(
        metric,
        session,
        look=LOOK_OF,
        stop=lambda rows: (word, "facts.accuracy") if len(rows) >= 2 * LOOK_OF else None,
    )
    assert len(session.prompts) == len(read_rows(out)) == 2 * LOOK_OF
    assert found.progressed.model_dump() == {
        "items": COUNT,
        "answered": 2 * LOOK_OF,
        "looks": 2,
        "stopped": word,
        "gate": "facts.accuracy",
    }
    assert next(m for m in found.measurements if m.name == "facts.accuracy").n == 2 * LOOK_OF


def test_a_changed_rule_uses_the_looks_that_are_there_and_answers_only_what_is_missing(
    metric, job_for, parts_in, watched, tmp_path
):
    def stop_after(looks):
        return lambda rows: ("fail", "facts.accuracy") if len(rows) >= looks * LOOK_OF else None

    sessions = [watched()() for _ in range(3)]
    found = [
        metric.measure(job_for(session, look=LOOK_OF, stop=stop_after(n), parts=parts_in(tmp_path / "store")))
        for session, n in zip(sessions, (2, 3, 1), strict=True)
    ]
    assert [len(session.prompts) for session in sessions] == [16, 8, 0]
    assert [arm.progressed.answered for arm in found] == [16, 24, 8]


def test_a_stopped_arm_is_paired_with_the_baselines_first_looks(metric, measured, baseline, int8):
    _, whole = measured(metric, baseline, seed=2, look=LOOK_OF)
    _, part = measured(metric, int8, seed=2, look=LOOK_OF, stop=lambda rows: ("futile", "g") if len(rows) > 8 else None)
    before, after = read_rows(whole), read_rows(part)
    pairs = metric.pairs(before, after)["facts.accuracy"]
    expected = [other["score"] - one["score"] for one, other in zip(before[:16], after, strict=True)]
    assert pairs.differences.tolist() == expected
    assert pairs.possible.tolist() == [1 - row["score"] for row in before[16:]]


def test_the_baseline_in_another_order_says_the_same_of_every_item(metric, measured, baseline):
    """The noise arm: what differs is order and batch, and on one device the answers do not."""
    _, one = measured(metric, baseline, seed=0, look=LOOK_OF)
    _, other = measured(metric, baseline, seed=1, look=LOOK_OF)
    assert [row["item_id"] for row in read_rows(one)] != [row["item_id"] for row in read_rows(other)]
    shown = metric.compare(one, other, 0.0)[0]
    assert (shown.n, shown.extra["losses"], shown.extra["gains"]) == (COUNT, 0, 0)


def test_a_look_that_is_worthless_ends_the_measurement(metric, measured, broken):
    found, out = measured(metric, broken, look=LOOK_OF)
    assert found.hard_stops
    assert len(read_rows(out)) == LOOK_OF
    assert (found.progressed.answered, found.progressed.looks) == (LOOK_OF, 1)


def test_what_makes_a_look_worthless_is_kept_with_it(metric, job_for, parts_in, broken, watched, tmp_path):
    first = metric.measure(job_for(broken, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    again = watched()
    found = metric.measure(job_for(again, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    assert found.hard_stops == first.hard_stops
    assert not again.opened


def test_a_damaged_look_is_an_error_and_never_rows(metric, job_for, parts_in, baseline, tmp_path):
    metric.measure(job_for(baseline, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    look = next(path for path, manifest in Store(tmp_path / "store").manifests(LOOK))
    (look / "rows.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(StoreError, match="was changed after it was committed"):
        metric.measure(job_for(baseline, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
    shutil.rmtree(look)
    metric.measure(job_for(baseline, look=LOOK_OF, parts=parts_in(tmp_path / "store")))
