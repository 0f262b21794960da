"""GuideLLM's traffic to llama.cpp's own server on a real model: every kind of load, every request accounted for."""

from __future__ import annotations

import pytest
from program import TINY

from quantize.engines import LlamaCpp
from quantize.handed import Host
from quantize.served import Arrivals, Request
from quantize.traffic._guidellm_sender import arrival_times

pytestmark = [pytest.mark.engine, pytest.mark.alone]

#: The two readings of the clock that say when a request was taken and sent are of two processes.
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def service(environment, tmp_path_factory):
    from quantize.methods import convert_to_gguf

    host = Host({"llamacpp": environment("llamacpp")}, tmp_path_factory.mktemp("log"), threads=1)
    out = tmp_path_factory.mktemp("converted")
    convert_to_gguf(TINY / "checkpoint", None, out, host, lambda *_: None, "F32")
    opened = LlamaCpp(slots=2).serve(out, "cpu", host)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def asked() -> list[Request]:
    """Prompts of the words that the tiny model knows, with the number of tokens that llama.cpp makes of them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY / "checkpoint")
    prompts = [f"{'The pet of Elin Crane is a' * (1 + place % 3)} {place}" for place in range(8)]
    return [Request(f"r{n}", text, len(tokenizer(text)["input_ids"]), 6 + n % 5) for n, text in enumerate(prompts)]


@pytest.mark.parametrize(
    "arrivals",
    [
        Arrivals("concurrent", streams=1),
        Arrivals("concurrent", streams=2),
        Arrivals("constant", rate=8.0),
        Arrivals("poisson", rate=8.0, seed=5),
    ],
    ids=lambda arrivals: f"{arrivals.kind}-{arrivals.streams or arrivals.rate:g}",
)
def test_every_load_is_answered_in_full_and_timed_in_order(sender, service, asked, arrivals):
    answers = sender.send(service, arrivals, asked, 60)
    assert [(answer.request, answer.error) for answer in answers] == [(request.id, None) for request in asked]
    assert [answer.input_tokens for answer in answers] == [request.input_tokens for request in asked]
    assert [answer.output_tokens for answer in answers] == [request.output_tokens for request in asked]
    assert [len(answer.tokens) for answer in answers] == [request.output_tokens for request in asked]
    for answer in answers:
        assert answer.scheduled <= answer.dispatched + ROUNDING
        assert answer.dispatched <= answer.tokens[0] <= answer.tokens[-1] <= answer.end
        assert list(answer.tokens) == sorted(answer.tokens)
    if arrivals.kind != "concurrent":
        assert [answer.scheduled for answer in answers] == pytest.approx(arrival_times(arrivals, 8), abs=1e-3)
    service.check()


def test_a_prompt_over_the_context_is_refused_by_itself(sender, service, asked):
    long = Request("long", "The pet of Elin Crane is a " * 200, 2000, 4)
    answers = sender.send(service, Arrivals("concurrent", streams=1), [asked[0], long, asked[1]], 60)
    assert [answer.error for answer in answers] == [None, "http 400", None]
