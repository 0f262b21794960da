"""Servers that do badly: every request is accounted for, by its class of error, and nothing hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from program import TINY

from quantize.errors import DataError, EngineLost
from quantize.handed import Host
from quantize.served import Arrivals, Request
from quantize.traffic import GuideLLM

pytestmark = [pytest.mark.engine, pytest.mark.alone]

#: An interpreter that runs a script whose clock can be moved. Its first argument is -I.
MOVED_CLOCK = """#!{python}
import pathlib, runpy, sys, time
true, moved = time.time, pathlib.Path("{moved}")
time.time = lambda: true() + (float(moved.read_text() or 0) if moved.exists() else 0.0)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

ONE = Arrivals("concurrent", streams=1)
TWO = Arrivals("concurrent", streams=2)


def requests(count: int, words: int = 3) -> list[Request]:
    return [Request(f"r{place}", f"{place} " + "word " * (words - 1), words, 8) for place in range(count)]


@pytest.mark.parametrize(
    ("bad", "expected", "tokens"),
    [
        ("500", "http 500", 0),
        ("cut", "cut", 4),
        ("cut at once", "cut", 0),
        ("half a line", "cut", 4),
        ("ends early", "cut", 4),
        ("silent midway", "timeout", 4),
        ("silent", "timeout", 0),
        ("short", "short", 4),
        ("refuse", "refused in the stream", 0),
    ],
)
def test_one_bad_answer_has_its_class_and_the_others_count(sender, serve, bad, expected, tokens):
    server = serve(gap=0.005, bad=bad, which=[1])
    answers = sender.send(server, ONE, requests(4), 1.0)
    assert [answer.error for answer in answers] == [None, expected, None, None]
    assert [len(answer.tokens) for answer in answers] == [8, tokens, 8, 8]
    assert answers[1].dispatched is not None and answers[1].end >= answers[1].dispatched
    assert len(server.asked()) == 4


def test_when_all_fail_all_are_counted_and_their_times_are_the_loads(sender, serve):
    server = serve(bad="500")
    for arrivals in (TWO, Arrivals("poisson", rate=40.0, seed=1)):
        begin = time.monotonic()
        answers = sender.send(server, arrivals, requests(10), 5)
        assert [answer.error for answer in answers] == ["http 500"] * 10
        assert all(-0.01 <= answer.scheduled <= time.monotonic() - begin for answer in answers)
        assert all(answer.output_tokens is None and answer.tokens == () for answer in answers)
    assert len(server.asked()) == 20


def test_a_server_that_dies_midway_leaves_one_cut_and_the_rest_without_connection(sender, serve):
    server = serve(gap=0.005, bad="die", which=[2])
    answers = sender.send(server, ONE, requests(6), 5)
    assert [answer.error for answer in answers] == [None, None, "cut", "connection", "connection", "connection"]
    assert server.process.wait(10) == 1


def test_a_server_that_nobody_started_is_no_connection(sender, serve):
    server = serve()
    server.process.kill()
    server.process.wait()
    answers = sender.send(server, Arrivals("poisson", rate=50.0), requests(5), 5)
    assert [answer.error for answer in answers] == ["connection"] * 5


def test_a_closed_loop_gives_a_silent_server_up(sender, serve):
    sender.send(serve(), ONE, requests(1), 5)  # GuideLLM is up now
    server = serve(bad="silent")
    begin = time.monotonic()
    answers = sender.send(server, TWO, requests(12), 0.5)
    assert time.monotonic() - begin < 10
    errors = [answer.error for answer in answers]
    assert set(errors) == {"timeout", "unsent"}
    assert 3 <= errors.count("timeout") <= 5
    assert all((answer.dispatched is None) == (answer.error == "unsent") for answer in answers)


def test_an_open_loop_keeps_its_schedule_while_a_server_is_silent(sender, serve):
    server = serve(bad="silent")
    answers = sender.send(server, Arrivals("constant", rate=20.0), requests(10), 0.5)
    assert [answer.error for answer in answers] == ["timeout"] * 10
    assert [answer.scheduled for answer in answers] == pytest.approx([(n + 1) / 20 for n in range(10)], abs=1e-3)
    assert all(0.45 <= answer.end - answer.dispatched <= 1.5 for answer in answers)


def test_a_trickle_of_tokens_does_not_stretch_the_deadline(sender, serve):
    server = serve(gap=0.3)
    (answer,) = sender.send(server, ONE, requests(1), 1.0)
    assert answer.error == "timeout"
    assert 1 <= len(answer.tokens) <= 5 and answer.end - answer.dispatched < 2


def test_a_prompt_over_the_context_length_is_refused_by_itself(sender, serve):
    server = serve(context=20)
    asked = [Request("short", "a b c", 3, 8), Request("long", "w " * 40, 40, 8), Request("last", "a b", 2, 8)]
    answers = sender.send(server, ONE, asked, 5)
    assert {answer.request: answer.error for answer in answers} == {"short": None, "long": "http 400", "last": None}


def test_the_chat_endpoint_is_asked_and_understood(guidellm_host, serve):
    server = serve(first=0.05, gap=0.005)
    chat = GuideLLM(request_format="/v1/chat/completions").open(guidellm_host.log, guidellm_host)
    try:
        answers = chat.send(server, ONE, requests(2), 10)
    finally:
        chat.close()
    assert [(answer.error, len(answer.tokens), answer.output_tokens) for answer in answers] == [(None, 8, 8)] * 2
    assert {entry["path"] for entry in server.asked()} == {"/v1/chat/completions"}


def test_a_guidellm_that_is_killed_is_an_error_and_no_hang(guidellm_host, serve, tmp_path):
    server = serve(bad="silent")
    sender = GuideLLM().open(tmp_path, Host(guidellm_host.interpreters, tmp_path))
    try:
        sender.send(serve(), ONE, requests(1), 5)
        (guard,) = youngest_child(os.getpid(), "_guidellm_child")
        (guidellm,) = youngest_child(guard, "_guidellm_child")
        timer = threading.Timer(1.5, os.kill, (guidellm, signal.SIGKILL))
        timer.start()
        begin = time.monotonic()
        with pytest.raises(EngineLost, match="GuideLLM was killed"):
            sender.send(server, ONE, requests(4), 60)
        assert time.monotonic() - begin < 15
        timer.join()
    finally:
        sender.close()


def test_a_clock_that_is_set_while_a_load_runs_is_noticed_and_the_next_load_counts(guidellm_host, serve, tmp_path):
    """The clock of GuideLLM's process is moved by what a file says, if it is there."""
    moved, python = tmp_path / "moved", tmp_path / "python"
    python.write_text(MOVED_CLOCK.format(python=guidellm_host.interpreters["guidellm"], moved=moved), encoding="utf-8")
    python.chmod(0o755)
    server = serve(first=0.3, gap=0.01)
    sender = GuideLLM().open(TINY / "checkpoint", Host({"guidellm": python}, tmp_path))
    try:
        assert sender.send(server, ONE, requests(1), 5)[0].error is None
        timer = threading.Timer(1.0, moved.write_text, ("-0.25",))
        timer.start()
        with pytest.raises(DataError, match=r"clock was moved by -0\.25"):
            sender.send(server, ONE, requests(6), 5)
        timer.join()
        assert sender.send(server, ONE, requests(1), 5)[0].error is None
    finally:
        sender.close()


def youngest_child(parent: int, name: str) -> list[int]:
    """Children of a process, by a word of their command lines, the youngest of them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (place / "stat").read_text().rsplit(")", 1)[1].split()
            if int(stat[1]) == parent and name in (place / "cmdline").read_text():
                found.append(int(place.name))
    return sorted(found)[-1:]


def test_the_log_tells_what_went_wrong_and_keeps_the_key(sender, serve, guidellm_host):
    server = serve(bad="500")
    server.key = "sk-keep-this"
    sender.send(server, ONE, requests(1), 5)
    log = (guidellm_host.log / "guidellm.log").read_text()
    assert "http 500" in log
    assert "sk-keep-this" not in log
