"""One small Llama, its GGUF file and its importance matrix, for all tests of GGUF."""

from functools import cache

import pytest
from gguf_cases import SHAPES, save, silent

from quantize.handed import Host
from quantize.methods import collect_imatrix, convert_to_gguf


@pytest.fixture(scope="session")
def host(environment, tmp_path_factory):
    return Host({"llamacpp": environment("llamacpp")}, tmp_path_factory.mktemp("log"), threads=1)


@pytest.fixture(scope="session")
def some_tokens():
    import torch

    return torch.randint(2, 512, (4, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A Llama of random float32 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return save(LlamaForCausalLM(LlamaConfig(**SHAPES)), tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture(scope="session")
def converted(host, wide, tmp_path_factory):
    """A function: checkpoint -> its GGUF file."""

    @cache
    def convert(checkpoint):
        out = tmp_path_factory.mktemp("full")
        facts = convert_to_gguf(checkpoint, None, out, host, silent)
        return out / "model.gguf", facts

    return convert


@pytest.fixture(scope="session")
def imatrix(host, converted, wide, some_tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    collect_imatrix(converted(wide)[0], some_tokens, out, "cpu", host, silent)
    return out
