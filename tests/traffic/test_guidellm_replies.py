"""What is made of GuideLLM's replies, and of a GuideLLM that does not reply."""

from __future__ import annotations

import sys

import pytest

from quantize.errors import DataError, EngineLost, QuantizeError
from quantize.handed import Host
from quantize.served import Arrivals, Request
from quantize.traffic import GuideLLM
from quantize.traffic._guidellm_client import variables
from quantize.traffic._guidellm_sender import arrival_times, sent

REQUESTS = [Request("a", "one", 1, 2), Request("b", "two", 1, 2)]
BEGIN = 1.7e9


def row(place: int, **changes) -> dict:
    """A request that was answered whole."""
    times = {"targeted": BEGIN, "dequeued": BEGIN + 0.01, "dispatched": BEGIN + 0.02, "end": BEGIN + 0.5}
    answer = {"tokens": [BEGIN + 0.3, BEGIN + 0.4], "input": 1, "output": 2, "error": None}
    return {"place": place, "begin": BEGIN, **times, **answer, **changes}


def reply(*rows: dict, moved: float = 0.0) -> dict:
    return {"clock": [BEGIN, BEGIN + moved], "rows": list(rows)}


def test_a_clock_that_was_set_meanwhile_makes_the_times_worthless():
    loop = Arrivals("concurrent", streams=1)
    assert len(sent(reply(row(0), row(1), moved=0.001), loop, REQUESTS)) == 2
    for moved in (0.25, -3600.0):
        with pytest.raises(DataError, match="clock was moved"):
            sent(reply(row(0), row(1), moved=moved), loop, REQUESTS)


def test_a_request_that_nothing_is_said_of_is_lost():
    answers = sent(reply(row(1)), Arrivals("constant", rate=2.0), REQUESTS)
    assert [(answer.request, answer.error) for answer in answers] == [("a", "lost"), ("b", None)]
    assert answers[0].scheduled == 0.5 and answers[0].tokens == ()


def test_answers_are_given_in_the_order_of_the_requests():
    answers = sent(reply(row(1), row(0)), Arrivals("concurrent", streams=2), REQUESTS)
    assert [answer.request for answer in answers] == ["a", "b"]


@pytest.mark.parametrize("targeted", [None, 0.0, BEGIN - 5, BEGIN + 5])
def test_a_schedule_on_another_clock_is_not_believed(targeted):
    bad = row(1, targeted=targeted)
    (_, closed) = sent(reply(row(0), bad), Arrivals("concurrent", streams=1), REQUESTS)
    assert closed.scheduled == pytest.approx(0.01, abs=1e-6)
    (_, opened) = sent(reply(row(0), bad), Arrivals("constant", rate=2.0), REQUESTS)
    assert opened.scheduled == 1.0


def test_another_seed_draws_other_arrivals():
    one, other = (arrival_times(Arrivals("poisson", rate=5.0, seed=seed), 50) for seed in (1, 2))
    assert one != other
    assert 50 / one[-1] == pytest.approx(5.0, rel=0.5)


def test_users_settings_secrets_and_proxies_do_not_reach_guidellm():
    own = {"GUIDELLM__MAX_WORKER_PROCESSES": "9", "https_proxy": "x", "HTTP_PROXY": "x", "HF_TOKEN": "x", "PATH": "p"}
    given = variables(own)
    assert given["GUIDELLM__MAX_WORKER_PROCESSES"] == "1" and given["PATH"] == "p"
    assert not {"https_proxy", "HTTP_PROXY", "HF_TOKEN"} & set(given)


def test_an_interpreter_without_guidellm_is_named_with_its_mend(tmp_path):
    sender = GuideLLM().open(tmp_path, Host({"guidellm": sys.executable}, tmp_path))
    try:
        with pytest.raises(EngineLost, match="quantize env create NAME --force"):
            sender.send(Unasked(), Arrivals("concurrent", streams=1), REQUESTS, 1.0)
    finally:
        sender.close()


def test_without_the_environment_it_is_said_how_to_make_it(tmp_path):
    with pytest.raises(QuantizeError, match="quantize env create guidellm"):
        GuideLLM().open(tmp_path, Host({}, tmp_path))


class Unasked:
    """A service that is never asked."""

    address, model, key, body = "http://127.0.0.1:9", "m", None, {}
