"""Ceilings that are about what the device does, and shares by the formulas that they are told by."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quantize.roofline import Roofline, Work, decode_share, measure, prefill_share, work_of

torch = pytest.importorskip("torch")

CHECKPOINT = Path(__file__).parent / "tiny_llama" / "checkpoint"


def test_shares_are_those_of_the_formulas():
    """A model of 1 GFLOP a token at 50 GFLOP/s of 100, and 3 GB read in half a second of 10 GB/s."""
    work, roofline = Work(500_000_000, 2 * 10**9), Roofline(flops=100e9, bandwidth=10e9)
    assert prefill_share(work, roofline, tokens=50, seconds=1.0) == pytest.approx(0.5)
    assert decode_share(work, roofline, kv_bytes=1e9, seconds=0.5) == pytest.approx(0.6)


def test_ceilings_are_reached_by_nothing_that_the_device_does():
    found = measure("cpu", "float32", side=512, size=2**26)
    # By another way: a product of other matrices, and a copy, which reads and writes.
    matrix, array = torch.randn(512, 512), torch.ones(2**24)
    times = []
    for work in (lambda: matrix @ matrix, array.clone):
        work()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    # Machines that others use too are uneven: what is held is the order of magnitude.
    assert 0.05 < 2 * 512**3 / times[0] / found.flops < 3
    assert 0.05 < 2 * 2**26 / times[1] / found.bandwidth < 3


def test_the_best_of_several_tries_counts(monkeypatch):
    from quantize import roofline

    seconds = iter([9.0, 9.0, 3.0, 2.0, 5.0, 4.0, 7.0, 3.0, 6.0] * 2)
    monkeypatch.setattr(roofline, "_TRYING_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "_timed", lambda device, work, count: next(seconds))
    found = measure("cpu", "float32", side=100, size=4000)
    assert found == Roofline(flops=2 * 100**3 / 2.0, bandwidth=2000.0)


def test_a_model_is_counted_without_the_embedding_that_is_looked_up():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(CHECKPOINT)
    hidden, inner, words, layers = 128, 256, 512, 4
    multiply = layers * (4 * hidden * hidden + 3 * hidden * inner) + words * hidden
    norms = (2 * layers + 1) * hidden
    for tied in (False, True):
        config.tie_word_embeddings = tied
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        found = work_of(model)
        assert found.parameters == multiply
        buffers = sum(part.numel() * part.element_size() for part in model.buffers())
        assert found.weight_bytes == 2 * (multiply + norms) + buffers
