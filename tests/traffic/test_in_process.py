"""Loads without a server: batches of one shape, times that follow each other, and what went wrong as a class."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quantize.engines import Transformers
from quantize.errors import DataError, QuantizeError
from quantize.handed import Host
from quantize.served import Arrivals, Request, Timed
from quantize.traffic import InProcess
from quantize.traffic.in_process import _batches

torch = pytest.importorskip("torch")

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
SHORT, LONG = "The pet of Elin Crane is a", "The pet of Elin Crane is a swan. The home of"


@pytest.fixture(scope="module")
def session():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    opened = Transformers().open(CHECKPOINT, "cpu")
    yield opened
    opened.close()
    torch.set_num_threads(before)


@pytest.fixture
def batches(session, monkeypatch):
    """The shapes that the session is asked for: (rows, tokens, new tokens)."""
    asked = []
    real = session.timed

    def timed(ids, new_tokens):
        asked.append((*ids.shape, new_tokens))
        return real(ids, new_tokens)

    monkeypatch.setattr(session, "timed", timed)
    return asked


@pytest.fixture
def sender(tmp_path):
    opened = InProcess().open(CHECKPOINT, Host({}, tmp_path))
    yield opened
    opened.close()


def requests_of(*wanted):
    return [Request(f"r{place}", prompt, 0, tokens) for place, (prompt, tokens) in enumerate(wanted)]


def concurrent(streams):
    return Arrivals("concurrent", streams=streams)


def test_every_request_has_its_tokens_and_its_times_in_the_order_that_was_asked(session, sender, batches):
    requests = requests_of(*[(SHORT, 6)] * 5)
    begin = time.perf_counter()
    found = sender.send(session, concurrent(2), requests, 60.0)
    took = time.perf_counter() - begin
    assert [one.request for one in found] == ["r0", "r1", "r2", "r3", "r4"]
    assert batches == [(2, 7, 6), (2, 7, 6), (1, 7, 6)]
    for one in found:
        times = [one.scheduled, one.dispatched, *one.tokens, one.end]
        assert times == sorted(times) and times[0] >= 0 and times[-1] < took
        assert (len(one.tokens), one.output_tokens, one.input_tokens, one.error) == (6, 6, 7, None)
        assert one.end == one.tokens[-1]
    assert found[0].tokens == found[1].tokens and found[2].scheduled >= found[1].end


def test_a_batch_has_one_shape(session, sender, batches):
    requests = requests_of((SHORT, 4), (LONG, 4), (SHORT, 4), (SHORT, 5), (LONG, 4), (SHORT, 4))
    found = sender.send(session, concurrent(2), requests, 60.0)
    tokens = len(session.tokenize(LONG))
    assert batches == [(2, 7, 4), (2, tokens, 4), (1, 7, 5), (1, 7, 4)]
    assert [one.request for one in found] == [one.id for one in requests]
    assert [one.input_tokens for one in found] == [7, tokens, 7, 7, tokens, 7]
    assert [one.output_tokens for one in found] == [4, 4, 4, 5, 4, 4]


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
def test_every_place_is_in_one_batch_that_is_not_too_large(streams):
    shapes = [(place % 3, place % 2) for place in range(20)]
    found = _batches(shapes, streams)
    assert sorted(place for batch in found for place in batch) == list(range(20))
    assert all(len(batch) <= streams and len({shapes[place] for place in batch}) == 1 for batch in found)
    assert [batch[0] for batch in found] == sorted(batch[0] for batch in found)


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_arrivals_that_wait_for_nobody_are_refused(session, sender, kind):
    with pytest.raises(QuantizeError, match=rf"no queue.*{kind} load.*guidellm"):
        sender.send(session, Arrivals(kind, rate=1.0), requests_of((SHORT, 4)), 60.0)


def test_a_batch_over_the_deadline_is_a_timeout_with_what_came_in_time(session, sender):
    whole = session.timed(torch.tensor([session.tokenize(SHORT)]), 40)
    seconds = (whole.prefill + sum(whole.steps)) / 2
    (found,) = sender.send(session, concurrent(1), requests_of((SHORT, 200)), seconds)
    assert found.error == "timeout" and found.output_tokens == len(found.tokens)
    assert 0 < len(found.tokens) < 200
    assert found.end == pytest.approx(found.scheduled + seconds) and found.tokens[-1] <= found.end


def test_what_the_model_raises_is_what_became_of_its_requests_and_of_no_others(session, sender, monkeypatch):
    errors = iter([torch.OutOfMemoryError("of 3 GiB"), None, ValueError("no such kernel")])
    real = session.timed

    def timed(ids, new_tokens):
        error = next(errors)
        if error is not None:
            raise error
        return real(ids, new_tokens)

    monkeypatch.setattr(session, "timed", timed)
    found = sender.send(session, concurrent(2), requests_of(*[(SHORT, 4)] * 6), 60.0)
    assert [one.error for one in found] == ["out of memory"] * 2 + [None] * 2 + ["unknown ValueError"] * 2
    assert [one.tokens == () for one in found] == [True, True, False, False, True, True]
    assert all(one.end is not None and one.output_tokens in {None, 4} for one in found)


def test_memory_that_a_cpu_does_not_have_is_out_of_memory(session, sender, monkeypatch):
    monkeypatch.setattr(session, "timed", lambda ids, new: torch.empty(2**60))
    (found,) = sender.send(session, concurrent(1), requests_of((SHORT, 4)), 60.0)
    assert found.error == "out of memory"


def test_a_prompt_over_the_context_and_a_wish_to_stop_are_no_answers(session, sender):
    with pytest.raises(DataError, match="1024 positions"):
        sender.send(session, concurrent(1), requests_of((SHORT, 4), (SHORT, 1100)), 60.0)


def test_what_a_new_size_takes_before_it_is_answered_belongs_to_no_request(session, sender, monkeypatch):
    def timed(ids, new_tokens):
        time.sleep(0.2)
        return Timed(0.01, (0.001,) * (new_tokens - 1))

    monkeypatch.setattr(session, "timed", timed)
    found = sender.send(session, concurrent(1), requests_of((SHORT, 4), (SHORT, 4)), 60.0)
    for one in found:
        assert one.tokens[0] - one.scheduled == pytest.approx(0.01)
        assert one.end - one.scheduled == pytest.approx(0.013)
    assert found[0].scheduled > 0.18 and found[1].scheduled - found[0].end > 0.18


def test_the_systems_clock_may_step(session, sender, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the system's clock was asked"))
    assert sender.send(session, concurrent(1), requests_of((SHORT, 4)), 60.0)[0].error is None
