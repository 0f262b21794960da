"""GPTQ, AWQ and FP8 of a random model of Llama-3-8B's shape on one GPU: wall time, peak memory, share of the roofline.

    make test-gpu        or: pytest -m gpu tests/gpu/test_llama3_8b_shape.py

Expected on a GPU of 80 GB: a minute to write the model, another for the speeds of the baseline, two for FP8, three for
AWQ, seven for GPTQ, which is last: where the time runs out, the rest is printed. 48 GiB of disk, 40 GiB of memory.
"""

from __future__ import annotations

import shutil

import pytest
from llama_shape import LLAMA_3_8B, build, quantized, speeds, tokens_of

from quantize.methods import Awq, Gptq, Rtn
from quantize.scheme import preset

pytestmark = pytest.mark.gpu

SHAPES = [(1, 128, 64), (1, 2048, 64), (8, 512, 64), (32, 512, 64)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-3-8b")
    yield build(folder / "checkpoint", LLAMA_3_8B, "cuda")
    shutil.rmtree(folder)


@pytest.fixture
def say(capsys):
    """Print whether or not pytest shows what passing tests print: it is what these tests are for."""

    def loudly(text):
        with capsys.disabled():
            print(text)

    return loudly


@pytest.fixture
def out(tmp_path):
    yield tmp_path / "out"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_the_baseline_in_this_process(checkpoint, say):
    lines = speeds(checkpoint, "cuda", SHAPES)
    say("\nbaseline, bfloat16\n" + "\n".join(lines))
    assert all(line.endswith("cuda graphs") for line in lines[1:])


def test_fp8(checkpoint, out, say):
    cost = quantized(Rtn(), preset("FP8_DYNAMIC"), checkpoint, out, "cuda")
    say(f"\nFP8_DYNAMIC, no calibration: {cost}")
    assert cost.written < 9.5 * 2**30


def test_awq(checkpoint, out, say):
    cost = quantized(Awq(), preset("W4A16"), checkpoint, out, "cuda", tokens_of(LLAMA_3_8B, 16, 512))
    say(f"\nAWQ W4A16, 16 x 512 tokens, grid of 20: {cost}")
    assert cost.written < 6 * 2**30


def test_gptq(checkpoint, out, say):
    cost = quantized(Gptq(), preset("W4A16"), checkpoint, out, "cuda", tokens_of(LLAMA_3_8B, 64, 2048))
    say(f"\nGPTQ W4A16, 64 x 2048 tokens: {cost} (llm-compressor's published figure for GPTQ of 8B on one GPU: 745 s)")
    assert cost.written < 6 * 2**30
