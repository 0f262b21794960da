"""Times on an NVIDIA GPU: events, captured steps, the sender and a whole benchmark. About two minutes."""

from __future__ import annotations

import json
import statistics
import time

import pytest
from program import TINY, command, tiny_recipe, write_recipe

from quantize.benchmark.rowfile import read_rows
from quantize.engines import Transformers
from quantize.engines._timing import answer
from quantize.handed import Host
from quantize.served import Arrivals, Request
from quantize.traffic import InProcess

pytestmark = pytest.mark.gpu

CHECKPOINT = TINY / "checkpoint"
PROMPT = "The pet of Elin Crane is a"


@pytest.fixture(scope="module")
def session():
    opened = Transformers(dtype="float32").open(CHECKPOINT, "cuda")
    yield opened
    opened.close()


@pytest.fixture
def ids(session):
    import torch

    return torch.tensor([session.tokenize(PROMPT)] * 2, device="cuda")


def test_captured_steps_answer_as_generate_does(session, ids):
    import torch

    for new_tokens in (24, 300, 24):  # two lengths of cache, and the first again
        tokens = answer(session.greedy(), ids, new_tokens)[1]
        out = session.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1
        )
        assert torch.equal(tokens, out[:, ids.shape[1] :])
    assert session.facts()["graphs"] == "cuda graphs"


def test_events_add_up_to_the_time_that_the_host_saw(session, ids):
    session.timed(ids, 64)
    begin = time.perf_counter()
    timed = session.timed(ids, 64)
    took = time.perf_counter() - begin
    assert 0.5 * took < timed.prefill + sum(timed.steps) < took and min(timed.steps) > 0


def test_a_captured_step_is_faster_than_one_that_is_not(session, ids, monkeypatch):
    from quantize.engines import _timing

    session.timed(ids, 64)
    captured = statistics.median(session.timed(ids, 64).steps)
    eager = _timing.Greedy(session.model)
    monkeypatch.setattr(_timing, "_hindrance", lambda model: "it is not to be")
    answer(eager, ids, 64)
    steps = statistics.median(answer(eager, ids, 64)[0].steps)
    print(f"\ncaptured {captured * 1e6:.0f} us, eager {steps * 1e6:.0f} us a step")
    assert captured < steps and eager.graphs == "eager (it is not to be)"


def test_loads_are_batches_and_a_graph_that_is_captured_belongs_to_no_request(session, tmp_path):
    requests = [Request(f"r{place}", PROMPT, 7, 16) for place in range(12)]
    sender = InProcess().open(CHECKPOINT, Host({}, tmp_path))
    found = sender.send(session, Arrivals("concurrent", streams=4), requests, 60.0)
    assert [one.error for one in found] == [None] * 12 and {one.output_tokens for one in found} == {16}
    took = [one.end - one.scheduled for one in found]
    assert max(took) < 10 * statistics.median(took)


def test_the_server_over_transformers_serves_from_the_gpu(session, ids, tmp_path):
    from completions import stream

    service = Transformers(dtype="float32").serve(CHECKPOINT, "cuda", Host({}, tmp_path))
    try:
        texts, usage = stream(service, PROMPT, 24)
        tokens = answer(session.greedy(), ids[:1], 24)[1]
        assert "".join(texts) == session.tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True)
        assert usage["completion_tokens"] == 24 and service.facts()["graphs"] == "cuda graphs"
        assert service.memory()["peak"] > service.memory()["weights"] > 0
    finally:
        service.close()


def test_a_benchmark_in_process_from_the_recipe_to_the_verdict(tmp_path):
    recipe = tiny_recipe(
        resources={"device": "cuda"},
        benchmark={
            "traffic": {"kind": "in_process"},
            "requests": {"kind": "synthetic", "shapes": [{"input": 64, "output": 64}]},
            "loads": [{"kind": "synchronous", "name": "single", "requests": 8}],
            "blocks": 6,
            "curve": [1, 4],
            "curve_requests": 8,
        },
    )
    result = command("run", write_recipe(tmp_path, recipe), "--store", tmp_path / "store", "--json", seconds=600)
    assert result.stdout, result.stderr
    (found,) = json.loads(result.stdout)["variants"]
    assert found["verdict"]["outcome"] == "pass", result.stderr
    artifacts = [path.parent for path in (tmp_path / "store").glob("benchmark/*/requests.parquet")]
    assert len(artifacts) == 2  # the baseline beside itself, and the variant beside it
    for artifact in artifacts:
        rows = read_rows(artifact / "requests.parquet")
        assert rows and all(row["error.type"] is None and len(row["tokens"]) == 64 for row in rows)
