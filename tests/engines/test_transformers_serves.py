"""The server over transformers: generate's own tokens as a stream, one request at a time, and errors with a cause."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from completions import runs, send, stream

from quantize.engines import Transformers
from quantize.errors import EngineLost, QuantizeError
from quantize.handed import Host
from quantize.served import Arrivals, Request

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
PROMPT = "The pet of Elin Crane is a"


@pytest.fixture(scope="module")
def session():
    opened = Transformers().open(CHECKPOINT, "cpu")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return Host({}, tmp_path_factory.mktemp("log"), threads=1)


@pytest.fixture(scope="module")
def service(host):
    opened = Transformers().serve(CHECKPOINT, "cpu", host)
    yield opened
    opened.close()


def generated(session, ids, tokens):
    """What transformers' own loop answers, with no end of text: ids and text."""
    import torch

    prompt = torch.tensor([ids])
    out = session.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens, eos_token_id=-1
    )
    found = out[0, len(ids) :].tolist()
    return found, session.tokenizer.decode(found, skip_special_tokens=True)


def test_the_stream_has_the_tokens_of_generate_one_an_event(service, session):
    texts, usage = stream(service, PROMPT, 24)
    ids = session.tokenize(PROMPT)
    assert "".join(texts) == generated(session, ids, 24)[1]
    assert len(texts) == 24
    assert usage == {"prompt_tokens": len(ids), "completion_tokens": 24, "total_tokens": len(ids) + 24}
    assert stream(service, ids, 24)[0] == texts


def test_characters_of_several_tokens_come_whole(service, session):
    """A tokenizer of bytes: most of these tokens end within a character, and none of the text is lost."""
    from quantize.engines._streaming import Pieces

    text = "Zoë's naïve 東京 café 🙂🙂 costs 5 €."
    ids = session.encode(text)
    assert len(ids) > len(text)
    pieces = Pieces(session.tokenizer)
    said = [pieces.add(token, last=place == len(ids) - 1) for place, token in enumerate(ids)]
    assert "".join(said) == text and not any("\N{REPLACEMENT CHARACTER}" in one for one in said)
    cut = Pieces(session.tokenizer)
    assert "\N{REPLACEMENT CHARACTER}" in "".join(
        cut.add(token, last=place == 1) for place, token in enumerate(session.encode("🙂")[:2])
    )


def test_every_event_counts_where_that_is_asked_for(service):
    asked = {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "stream": True}
    for options, counts in (
        ({"include_usage": True, "continuous_usage_stats": True}, [1, 2, 3, 4, 5, 5]),
        ({"include_usage": True}, [None] * 5 + [5]),
        ({}, [None] * 5),
    ):
        _, text = send(service, "/v1/completions", {**asked, "stream_options": options})
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert [event.get("usage", {}).get("completion_tokens") for event in events] == counts


def test_an_answer_in_one_piece_and_one_of_a_chat(service, session):
    status, text = send(service, "/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "ignore_eos": True})
    said = json.loads(text)
    assert status == 200 and said["usage"]["completion_tokens"] == 6
    ids = session.tokenize(PROMPT)
    assert said["choices"][0]["text"] == generated(session, ids, 6)[1]
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "is Ada?"}]
    for content in ("Who is Ada?", parts):
        body = {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 6, "ignore_eos": True}
        said = json.loads(send(service, "/v1/chat/completions", body)[1])
        ids = session.chat([{"role": "user", "content": "Who is Ada?"}])
        assert said["choices"][0]["message"]["content"] == generated(session, ids, 6)[1]
        assert said["usage"]["prompt_tokens"] == len(ids)


def test_without_ignore_eos_the_end_of_the_text_ends_the_answer(session, tmp_path, host):
    ids = session.tokenize(PROMPT)
    found = generated(session, ids, 24)[0]
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, found[3]]}))
    opened = Transformers().serve(tmp_path / "checkpoint", "cpu", host)
    try:
        body = {"prompt": PROMPT, "max_tokens": 24}
        said = json.loads(send(opened, "/v1/completions", body)[1])
        assert said["choices"][0]["finish_reason"] == "stop" and said["usage"]["completion_tokens"] == 4
        said = json.loads(send(opened, "/v1/completions", {**body, "ignore_eos": True})[1])
        assert said["choices"][0]["finish_reason"] == "length" and said["usage"]["completion_tokens"] == 24
    finally:
        opened.close()


def test_several_at_a_time_are_all_answered_in_the_order_they_came(service):
    ended = []

    def ask(number):
        texts, usage = stream(service, f"{number} lives in", 300)
        ended.append(number)
        return len(texts), usage["completion_tokens"]

    with ThreadPoolExecutor(4) as pool:
        asked = []
        for number in range(4):
            asked.append(pool.submit(ask, number))
            time.sleep(0.25)
        assert [one.result() for one in asked] == [(300, 300)] * 4
    assert ended == [0, 1, 2, 3] and service.slots == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"prompt": ', "not JSON"),
        (b"[1]", "must be a JSON object"),
        ({"max_tokens": 4}, "'prompt' must be"),
        ({"prompt": ["a", "b"]}, "'prompt' must be"),
        ({"prompt": [1, 99999]}, "there are 512 tokens"),
        ({"prompt": "a", "max_tokens": 0}, "'max_tokens' must be"),
        ({"prompt": "a", "temperature": 0.7}, "'temperature' is not supported"),
        ({"prompt": "a", "n": 2}, "'n' is not supported"),
        ({"prompt": "a", "stream_options": [1]}, "'stream_options' must be"),
        ({"prompt": PROMPT * 200, "max_tokens": 4}, "exceeds the context of 1024 tokens"),
        ({"prompt": "a", "max_tokens": 1024}, "exceeds the context of 1024 tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_words(service, body, says):
    connection = http.client.HTTPConnection(urlsplit(service.address).netloc, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {service.key}"}
    connection.request("POST", "/v1/completions", data, headers)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    assert response.status == 400 and says in error["message"] and error["type"] == "invalid_request_error"
    # The connection goes on with the next request.
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1}).encode(), headers)
    assert connection.getresponse().status == 200
    connection.close()


def test_what_is_not_there_is_404(service):
    assert send(service, "/v1/embeddings", {"input": "a"})[0] == 404
    assert send(service, "/v1/completions", {"prompt": "a", "model": "other"})[0] == 404
    assert service.model in send(service, "/v1/models")[1]


def test_only_who_has_the_key_is_answered_and_nobody_sees_it(service, host):
    for path, body in (("/v1/completions", {"prompt": PROMPT}), ("/v1/models", None), ("/state", None)):
        status, text = send(service, path, body, key="guessed")
        assert status == 401 and json.loads(text)["error"]["code"] == "invalid_api_key"
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in service.processes()]
    assert len(lines) == 2 and not any(service.key.encode() in line for line in lines)
    assert not any(service.key in path.read_text() for path in host.log.rglob("*.log"))


def hang_up(service, tokens, *, streamed):
    """A client that asks and goes: after the first bytes of a stream, or while the answer is made."""
    host, _, port = service.address.removeprefix("http://").partition(":")
    body = json.dumps({"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "stream": streamed})
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.key}\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert not streamed or client.recv(10)
        time.sleep(0.05)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_whose_client_went_away_is_abandoned(service, streamed):
    begin = time.monotonic()
    stream(service, PROMPT, 900)
    whole = time.monotonic() - begin
    begin = time.monotonic()
    for _ in range(3):
        hang_up(service, 1000, streamed=streamed)
    assert stream(service, PROMPT, 4)[1]["completion_tokens"] == 4
    assert time.monotonic() - begin < whole


def test_memory_and_facts_are_those_that_the_server_says(service, session):
    memory, facts = service.memory(), service.facts()
    assert memory["weights"] == session.memory()["weights"] and memory["peak"] > memory["weights"]
    assert {name: facts[name] for name in ("dtype", "attention", "threads", "graphs")} == {
        "dtype": "float32",
        "attention": "sdpa",
        "threads": "1",
        "graphs": "eager",
    }
    assert facts["kv_bytes_per_token"] == "4096" and facts["version"]


def test_a_killed_server_says_nothing_of_the_model(host):
    opened = Transformers().serve(CHECKPOINT, "cpu", host)
    started = opened.processes()
    try:
        opened.check()
        os.kill(max(started), signal.SIGKILL)
        with pytest.raises(EngineLost, match="SIGKILL"):
            until_ended(opened)
        with pytest.raises(EngineLost, match="SIGKILL"):
            opened.memory()
    finally:
        opened.close()
    assert not [pid for pid in started if runs(pid)]


def until_ended(service, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        service.check()
        time.sleep(0.05)


def test_a_server_ends_with_whoever_started_it(tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from quantize.engines import Transformers; "
        "from quantize.handed import Host; "
        f"s = Transformers().serve(Path({str(CHECKPOINT)!r}), 'cpu', Host({{}}, Path({str(tmp_path)!r}), 1)); "
        "print(*s.processes(), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 20
    while any(runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in pids)


def test_a_checkpoint_that_does_not_load_is_told_in_the_engines_own_words(host, tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(QuantizeError, match=r"does not load in transformers: Safetensor\w+: .*") as error:
        Transformers().serve(tmp_path / "checkpoint", "cpu", host)
    assert not isinstance(error.value, EngineLost) and error.value.where == str(tmp_path / "checkpoint")
    assert not list(host.log.glob("*.ready"))


def test_a_server_that_is_not_ready_in_time_is_ended(host):
    before = threading.active_count()
    with pytest.raises(EngineLost, match=r"not ready within 0 seconds(.|\n)*load_seconds"):
        Transformers(load_seconds=0.001).serve(CHECKPOINT, "cpu", host)
    assert threading.active_count() == before


def test_a_draft_is_refused(host):
    with pytest.raises(QuantizeError, match="does not let a draft guess ahead"):
        Transformers().serve(CHECKPOINT, "cpu", host, CHECKPOINT)


@pytest.mark.engine
def test_guidellm_times_every_token_of_it(service, environment, tmp_path):
    from quantize.traffic import GuideLLM

    requests = [Request(f"r{number}", f"{number} lives in {PROMPT}", 10, 12) for number in range(6)]
    sender = GuideLLM().open(CHECKPOINT, Host({"guidellm": environment("guidellm")}, tmp_path))
    try:
        for arrivals in (Arrivals("concurrent", streams=1), Arrivals("poisson", rate=20.0, seed=1)):
            found = sender.send(service, arrivals, requests, 60.0)
            assert [one.error for one in found] == [None] * 6
            assert [(len(one.tokens), one.output_tokens) for one in found] == [(12, 12)] * 6
            assert all(one.scheduled <= one.tokens[0] < one.tokens[-1] <= one.end for one in found)
    finally:
        sender.close()
