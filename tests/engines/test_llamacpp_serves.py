"""llama.cpp behind traffic: every token that was asked for, nothing kept between requests, and errors with a cause."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from completions import runs, send, stream

from quantize.engines import LlamaCpp
from quantize.engines import _llamacpp_http as http
from quantize.errors import EngineLost, MissingDependency, QuantizeError
from quantize.handed import Host

TINY = Path(__file__).parents[1] / "tiny_llama"
#: Numbers of a key-value cache that one token takes in the tiny model: layers, heads, their size; keys and values.
TOKEN = 4 * 4 * 32 * 2
PROMPT = "The pet of Elin Crane is a"
LLAMA_SERVER = """#!{python}
import argparse, pathlib, runpy, sys, tempfile
known = argparse.ArgumentParser()
for name in ("--model", "--host", "--alias", "--cache-type-k", "--cache-type-v", "--flash-attn", "--fit"):
    known.add_argument(name, required=True)
for name in ("--port", "--ctx-size", "--parallel", "--threads", "--n-gpu-layers", "--ubatch-size", "--cache-ram"):
    known.add_argument(name, required=True, type=int)
known.add_argument("--verbosity", required=True, type=int)
for name in ("type", "draft-model", "draft-type-k", "draft-type-v"):
    known.add_argument("--spec-" + name)
for name in ("n-max", "ngl", "threads"):
    known.add_argument("--spec-draft-" + name, type=int)
for name in ("--no-repack", "--no-context-shift", "--metrics"):
    known.add_argument(name, required=True, action="store_true")
given = known.parse_args()
options = dict(model=given.model, port=given.port, n_ctx=given.ctx_size // given.parallel, parallel=given.parallel)
options |= dict(threads=given.threads, gpu_layers=given.n_gpu_layers)
options["traffic"] = dict(name=given.alias, n_ubatch=given.ubatch_size, cache=given.cache_type_k)
options["traffic"] |= dict(draft=given.spec_draft_model, ahead=given.spec_draft_n_max)
options["traffic"] |= dict(flash_attention=given.flash_attn == "on")
main = runpy.run_path("{script}")["main"]
main(pathlib.Path(tempfile.mkdtemp()) / "address", options)
"""

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def host(environment, tmp_path_factory):
    return Host({"llamacpp": environment("llamacpp")}, tmp_path_factory.mktemp("log"), threads=1)


@pytest.fixture(scope="module")
def converted(host, tmp_path_factory):
    """The tiny Llama as a GGUF file of float32 numbers."""
    from quantize.methods import convert_to_gguf

    out = tmp_path_factory.mktemp("converted")
    convert_to_gguf(TINY / "checkpoint", None, out, host, lambda *_: None, "F32")
    return out


@pytest.fixture(scope="module")
def quantized(host, converted, tmp_path_factory):
    """The same with its matrices at 8 bits."""
    from quantize.methods._gguf_convert import quantize_file

    out = tmp_path_factory.mktemp("quantized") / "checkpoint"
    shutil.copytree(converted, out)
    folder = tmp_path_factory.mktemp("folder")
    quantize_file(converted / "model.gguf", out / "model.gguf", "Q8_0", folder, host, lambda *_: None)
    return out


@pytest.fixture(scope="module")
def service(host, converted):
    opened = LlamaCpp(slots=2).serve(converted, "cpu", host)
    yield opened
    opened.close()


def test_every_token_that_was_asked_for_comes_as_an_event(service):
    texts, usage = stream(service, PROMPT, 24)
    assert usage["completion_tokens"] == 24
    # The tiny model's answer is of whole characters. The last event says that it was the last.
    assert len([text for text in texts if text]) == 24
    assert texts[-1] == ""


def test_requests_have_slots_of_their_own_and_more_of_them_wait(service):
    assert service.slots == 2
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda _: stream(service, PROMPT, 16), range(5)))
    assert {usage["completion_tokens"] for _, usage in answers} == {16}
    service.check()


def test_a_prompt_that_came_before_is_computed_again(service):
    prompt = PROMPT * 8
    counted = [stream(service, prompt, 2)[1]["prompt_tokens_details"]["cached_tokens"] for _ in range(3)]
    assert counted == [0, 0, 0]
    # Without what the service has its requests say, the server would take it from its cache.
    kept = [stream(service, prompt, 2, cache_prompt=True)[1]["prompt_tokens_details"]["cached_tokens"] for _ in "123"]
    assert max(kept) > 0


def test_a_prompt_beyond_the_context_is_refused_and_not_cut(service):
    assert service.context == 1024
    status, text = send(service, "/v1/completions", {"prompt": PROMPT * 200, "max_tokens": 4})
    assert status == 400
    assert "exceeds the available context size (1024 tokens)" in text
    assert stream(service, PROMPT, 4)[1]["completion_tokens"] == 4


def test_only_who_has_the_key_is_answered(service):
    assert send(service, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1}, key="guessed")[0] == 401
    assert send(service, "/metrics", key="guessed")[0] == 401
    assert "llamacpp:prompt_tokens_total" in send(service, "/metrics")[1]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in service.processes()]
    assert len(lines) == 2
    assert not any(service.key.encode() in line for line in lines)


def test_memory_and_facts_are_those_that_the_server_says(service, converted):
    memory, facts = service.memory(), service.facts()
    assert memory["weights"] == (converted / "model.gguf").stat().st_size
    assert memory["kv_tokens"] == 2 * 1024
    assert memory["kv"] == pytest.approx(2 * 1024 * TOKEN * 2, rel=0.01)
    assert memory["peak"] > memory["weights"] + memory["kv"]
    assert facts["attention"] == "flash attention disabled"
    assert (facts["kv_dtype"], facts["devices"], facts["dtype"]) == ("f16", "CPU", "all F32")
    assert facts["version"]
    assert "SSE3" in facts["kernel"]


def test_the_engines_own_settings_are_served_with_and_a_draft_guesses_ahead(host, converted, quantized, service):
    engine = LlamaCpp(slots=1, n_ctx=512, kv_cache="f32", flash_attention=True)
    opened = engine.serve(converted, "cpu", host, quantized)
    try:
        assert (opened.slots, opened.context) == (1, 512)
        facts = opened.facts()
        assert (facts["attention"], facts["kv_dtype"]) == ("flash attention enabled", "f32")
        # The draft's cache, of a model with the same shape, is among what is reserved.
        assert opened.memory()["kv"] == pytest.approx(2 * 512 * TOKEN * 4, rel=0.01)
        texts, usage = stream(opened, PROMPT, 24)
        assert usage["completion_tokens"] == 24
        assert len([text for text in texts if text]) == 24
        assert "".join(texts) == "".join(stream(service, PROMPT, 24)[0])
        assert guessed(opened) > 0.5
    finally:
        opened.close()


def guessed(opened) -> float:
    """Which share of a draft's tokens the model would have written itself."""
    status, text = send(opened, "/completion", {"prompt": PROMPT, "n_predict": 24, "temperature": 0})
    assert status == 200
    timings = json.loads(text)["timings"]
    return timings["draft_n_accepted"] / timings["draft_n"]


def test_a_killed_server_says_nothing_of_the_model(host, converted):
    opened = LlamaCpp(slots=1, n_ctx=256).serve(converted, "cpu", host)
    started = opened.processes()
    try:
        opened.check()
        os.kill(max(started), signal.SIGKILL)
        with pytest.raises(EngineLost, match="SIGKILL"):
            until_ended(opened)
    finally:
        opened.close()
    assert not [pid for pid in started if runs(pid)]


def until_ended(service, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        service.check()
        time.sleep(0.05)


def test_a_server_that_is_not_ready_in_time_is_ended(host, converted):
    with pytest.raises(EngineLost, match=r"not ready.*\n*.*load_seconds"):
        LlamaCpp(load_seconds=0.001).serve(converted, "cpu", host)


def test_a_server_that_would_run_on_the_cpu_is_none_for_a_gpu(host, converted):
    import subprocess

    asked = "import xllamacpp; print(xllamacpp.get_device_info())"
    found = subprocess.run([host.interpreters["llamacpp"], "-c", asked], capture_output=True, text=True, check=True)
    if "GPU" in found.stdout:
        pytest.skip("this xllamacpp has GPU support")
    with pytest.raises(EngineLost, match="without GPU support"):
        LlamaCpp(slots=1, n_ctx=256).serve(converted, "cuda", host)


def test_a_damaged_file_is_named(host, converted, tmp_path):
    shutil.copytree(converted, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.gguf"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(QuantizeError, match=r"truncated|cut short"):
        LlamaCpp().serve(tmp_path / "checkpoint", "cpu", host)
    with pytest.raises(QuantizeError, match="no GGUF model"):
        LlamaCpp().serve(converted, "cpu", host, tmp_path)


def test_a_draft_with_other_tokens_is_refused_before_anything_starts(host, converted, tmp_path):
    shutil.copytree(converted, tmp_path / "other")
    path = tmp_path / "other" / "model.gguf"
    data = path.read_bytes()
    # The id of the end of answers, a whole number that the file names: another token ends them.
    place = data.index(b"tokenizer.ggml.eos_token_id") + len(b"tokenizer.ggml.eos_token_id") + 4
    path.write_bytes(data[:place] + (9).to_bytes(4, "little") + data[place + 4 :])
    log = tmp_path / "log"
    with pytest.raises(QuantizeError, match=r"differ in tokenizer\.ggml\.eos_token_id\."):
        LlamaCpp().serve(converted, "cpu", Host(host.interpreters, log, threads=1), tmp_path / "other")
    assert not log.exists()


def test_a_llama_server_on_the_path_serves_where_the_recipe_says_so(
    host, converted, quantized, service, tmp_path, monkeypatch
):
    """The program under that name here takes llama-server's options and serves with the package xllamacpp."""
    program = tmp_path / "llama-server"
    script = Path(http.__file__).with_name("_llamacpp_server.py")
    program.write_text(LLAMA_SERVER.format(python=host.interpreters["llamacpp"], script=script), encoding="utf-8")
    program.chmod(0o755)
    engine = LlamaCpp(server="llama-server", slots=3, n_ctx=512)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="no llama-server"):
        engine.serve(converted, "cpu", host)
    monkeypatch.setenv("PATH", str(tmp_path))
    opened = engine.serve(converted, "cpu", host)
    try:
        assert (opened.slots, opened.context) == (3, 512)
        assert stream(opened, PROMPT, 24)[0] == stream(service, PROMPT, 24)[0]
        assert opened.memory()["kv"] == pytest.approx(3 * 512 * TOKEN * 2, rel=0.01)
    finally:
        opened.close()
    opened = engine.serve(converted, "cpu", host, quantized)
    try:
        assert stream(opened, PROMPT, 24)[0] == stream(service, PROMPT, 24)[0]
        assert guessed(opened) > 0.5
    finally:
        opened.close()
