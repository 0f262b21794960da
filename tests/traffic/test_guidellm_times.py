"""What GuideLLM's traffic says of times, against servers whose times are known."""

from __future__ import annotations

import pytest

from quantize.served import Arrivals, Request
from quantize.traffic._guidellm_sender import arrival_times

pytestmark = [pytest.mark.engine, pytest.mark.alone]

#: A machine that does other things as well is late now and then; one that is idle keeps within 5 ms.
LATE = 0.08


def requests(count: int, output: int = 8) -> list[Request]:
    return [Request(f"r{place}", f"{place} " + "word " * place, place + 1, output) for place in range(count)]


def median(values) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize("usage", ["last", "every", "none"])
def test_time_to_first_token_and_time_per_token_are_the_servers_own(sender, serve, usage):
    server = serve(first=0.1, gap=0.02, usage=usage)
    answers = sender.send(server, Arrivals("concurrent", streams=1), requests(6), 10)
    assert [answer.error for answer in answers] == [None] * 6
    assert [len(answer.tokens) for answer in answers] == [8] * 6
    assert [answer.output_tokens for answer in answers] == [8] * 6
    assert [answer.input_tokens for answer in answers] == [None if usage == "none" else n + 1 for n in range(6)]
    first = median([answer.tokens[0] - answer.dispatched for answer in answers])
    each = median([(answer.tokens[-1] - answer.tokens[0]) / 7 for answer in answers])
    assert 0.099 <= first <= 0.1 + LATE
    assert 0.019 <= each <= 0.03
    for answer in answers:
        assert list(answer.tokens) == sorted(answer.tokens)
        assert answer.scheduled <= answer.dispatched <= answer.tokens[0] <= answer.tokens[-1] <= answer.end


def test_tokens_that_come_together_are_as_many_as_the_server_says(sender, serve):
    server = serve(first=0.02, gap=0.01, usage="every", at_once=4)
    (answer,) = sender.send(server, Arrivals("concurrent", streams=1), requests(1), 10)
    assert (answer.error, answer.output_tokens, len(answer.tokens)) == (None, 8, 8)
    assert len(set(answer.tokens)) == 2


def test_a_closed_loop_sends_the_next_request_when_one_before_it_has_ended(sender, serve):
    server = serve(first=0.05, gap=0.01)
    answers = sender.send(server, Arrivals("concurrent", streams=3), requests(9), 10)
    assert [answer.error for answer in answers] == [None] * 9
    for answer in answers:
        under_way = [other for other in answers if other.dispatched <= answer.dispatched < other.end]
        assert len(under_way) <= 3
    ends = sorted(answer.end for answer in answers)
    for number, scheduled in enumerate(sorted(answer.scheduled for answer in answers)):
        assert scheduled == pytest.approx(0.0 if number < 3 else ends[number - 3], abs=LATE)
    assert median([answer.dispatched - answer.scheduled for answer in answers]) < LATE


@pytest.mark.parametrize("kind", ["poisson", "constant"])
def test_both_arms_get_the_same_arrivals(sender, serve, kind):
    fast, slow = serve(first=0.01, gap=0.001), serve(first=0.3, gap=0.01)
    arrivals = Arrivals(kind, rate=12.0, seed=7)
    one, other = (sender.send(server, arrivals, requests(10), 10) for server in (fast, slow))
    expected = arrival_times(arrivals, 10)
    assert [answer.scheduled for answer in one] == pytest.approx(expected, abs=1e-4)
    assert [answer.scheduled for answer in other] == pytest.approx(expected, abs=1e-4)
    assert median([answer.dispatched - answer.scheduled for answer in one]) < LATE
    assert [entry["body"]["prompt"] for entry in slow.asked()] == [request.prompt for request in requests(10)]


def test_no_request_of_an_open_loop_is_sent_before_it_arrives(sender, serve):
    """A worker that starts before it knows when sends all of them at once: it would in one load of ten."""
    server = serve(first=0.001, gap=0.0)
    for seed in range(12):
        answers = sender.send(server, Arrivals("poisson", rate=40.0, seed=seed), requests(6, 2), 10)
        assert all(answer.dispatched >= answer.scheduled - 0.005 for answer in answers)
        assert [answer.scheduled for answer in answers] == pytest.approx(
            arrival_times(Arrivals("poisson", rate=40.0, seed=seed), 6), abs=1e-3
        )


def test_waiting_for_a_slot_counts_as_time_to_first_token(sender, serve):
    server = serve(first=0.1, gap=0.01, slots=1)
    arrivals = Arrivals("poisson", rate=15.0, seed=3)
    answers = sender.send(server, arrivals, requests(8), 30)
    assert [answer.error for answer in answers] == [None] * 8
    expected, free = [], 0.0
    for answer in sorted(answers, key=lambda answer: answer.scheduled):
        begin = max(answer.scheduled, free)
        expected.append(begin + 0.1)
        free = begin + 0.1 + 7 * 0.01
    firsts = sorted(answer.tokens[0] for answer in answers)
    assert firsts == pytest.approx(expected, abs=2 * LATE)
    assert max(answer.tokens[0] - answer.scheduled for answer in answers) > 0.5
    assert max(answer.dispatched - answer.scheduled for answer in answers) < 2 * LATE


def test_every_request_is_sent_once_in_order_with_its_own_length(sender, serve):
    server = serve(gap=0.001)
    server.key, server.body = "sk-of-a-test", {"cache_prompt": False}
    asked = [Request(f"r{place}", "the same prompt", 3, 4 + place % 3) for place in range(12)]
    answers = sender.send(server, Arrivals("concurrent", streams=1), asked, 10)
    assert [answer.request for answer in answers] == [request.id for request in asked]
    assert [answer.output_tokens for answer in answers] == [request.output_tokens for request in asked]
    heard = server.asked()
    assert [entry["body"]["max_tokens"] for entry in heard] == [request.output_tokens for request in asked]
    for entry in heard:
        assert entry["key"] == "Bearer sk-of-a-test"
        assert entry["path"] == "/v1/completions"
        wanted = {"model": "scripted", "prompt": "the same prompt", "ignore_eos": True, "cache_prompt": False}
        assert wanted.items() <= entry["body"].items()
