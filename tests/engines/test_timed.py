"""A model timed in this process: the right tokens, a time for each, and what is captured on a GPU."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from quantize.engines import Transformers, _timing
from quantize.engines._timing import Greedy, answer, kv_bytes
from quantize.errors import DataError

torch = pytest.importorskip("torch")

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
PROMPTS = ["The pet of Elin Crane is a", "The home of Elin Crane is a"]


@pytest.fixture(scope="module")
def session():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    opened = Transformers().open(CHECKPOINT, "cpu")
    yield opened
    opened.close()
    torch.set_num_threads(before)


@pytest.fixture
def ids(session):
    return torch.tensor([session.tokenize(prompt) for prompt in PROMPTS])


def generated(session, ids, tokens):
    """What transformers' own loop answers, with no end of text."""
    out = session.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, eos_token_id=-1
    )
    return out[:, ids.shape[1] :]


def test_the_answers_are_those_of_generate_and_every_token_has_its_time(session, ids):
    begin = time.perf_counter()
    timed, tokens = answer(session.greedy(), ids, 24)
    took = time.perf_counter() - begin
    assert tokens.shape == (2, 24) and torch.equal(tokens, generated(session, ids, 24))
    assert len(timed.steps) == 23 and min(timed.steps) > 0 < timed.prefill
    # Nothing lies between two steps, and little around them.
    assert 0.8 * took < timed.prefill + sum(timed.steps) < took
    assert len(session.timed(ids, 3).steps) == 2


def test_a_forced_length_is_that_of_generate_with_a_least_length(session, ids):
    out = session.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, min_new_tokens=12
    )
    assert torch.equal(answer(session.greedy(), ids, 12)[1], out[:, ids.shape[1] :])


def test_the_end_of_a_text_ends_no_answer(session):
    end = session.model.generation_config.eos_token_id
    ids = torch.tensor([session.tokenize("The pet of Elin Crane is a")])
    head = session.model.get_output_embeddings().weight
    kept = head[end].detach().clone()
    try:
        with torch.no_grad():  # the model now says the end of a text wherever it said a full stop
            head[end] = head[session.encode(".")[0]] * 1.5
        tokens = answer(session.greedy(), ids, 8)[1]
        assert end in tokens[0].tolist()[:-1] and tokens.shape == (1, 8)
        assert torch.equal(tokens, generated(session, ids, 8))
    finally:
        with torch.no_grad():
            head[end] = kept


def test_one_token_is_the_prompts_alone(session, ids):
    timed, tokens = answer(session.greedy(), ids, 1)
    assert timed.steps == () and tokens.shape == (2, 1)
    with pytest.raises(ValueError, match="a token at least"):
        session.timed(ids, 0)


def test_more_tokens_than_positions_are_refused(session):
    session.timed(torch.zeros((1, 1000), dtype=torch.int64), 25)
    with pytest.raises(DataError, match="1025 tokens together, and the model has 1024"):
        session.timed(torch.zeros((1, 1000), dtype=torch.int64), 26)


def test_a_step_that_takes_longer_is_seen_in_its_own_time(session, ids):
    calls = iter(range(100))
    handle = session.model.register_forward_pre_hook(lambda *_: time.sleep(0.05) if next(calls) == 3 else None)
    try:
        timed = session.timed(ids, 8)
    finally:
        handle.remove()
    assert timed.steps.index(max(timed.steps)) == 2 and timed.steps[2] > 0.05
    assert sorted(timed.steps)[-2] < 0.05


def test_facts_say_what_times_depend_on_and_no_cache_is_kept(session, ids):
    session.timed(ids, 4)
    assert session.facts() == {"dtype": "float32", "attention": "sdpa", "threads": "1", "graphs": "eager"}
    assert session.greedy()._cache is None
    assert kv_bytes(session.model) == 4 * 4 * 32 * 2 * 4  # layers, heads, their size, keys and values, float32


@pytest.fixture
def recorded(session, monkeypatch):
    """The way of a GPU, with the step run again where a GPU replays it. Capturing itself is tested on a GPU."""
    captured = []

    def capture(device, step):
        captured.append(step)
        return step

    monkeypatch.setattr(_timing, "_aside", lambda device, warm: warm())
    monkeypatch.setattr(_timing, "_capture", capture)
    return captured


def tokens_of(greedy, ids, count):
    found = [greedy.begin(ids).clone()]
    return torch.cat([*found, *(greedy.step().clone() for _ in range(count - 1))], 1)


def test_a_captured_step_answers_the_same_in_a_cache_that_does_not_move(session, ids, recorded):
    greedy = Greedy(session.model)
    with torch.inference_mode():
        for _ in range(2):  # the second answer finds the cache as the first one left it
            greedy._graph = greedy._captured(2, 31)
            assert torch.equal(tokens_of(greedy, ids, 24), generated(session, ids, 24))
    assert len(recorded) == 1 and greedy.graphs == "cuda graphs"
    places = {layer.keys.data_ptr() for layer in greedy._graph._cache.layers}
    with torch.inference_mode():
        tokens_of(greedy, ids[:, :3], 5)
    assert {layer.keys.data_ptr() for layer in greedy._graph._cache.layers} == places


def test_graphs_are_shared_by_answers_of_like_lengths_and_the_oldest_goes(session, recorded):
    greedy = Greedy(session.model)
    with torch.inference_mode():
        first = greedy._captured(1, 10)
        assert greedy._captured(1, 256) is first and greedy._captured(1, 257) is not first
        for rows in (2, 3):
            greedy._captured(rows, 10)
        assert greedy._captured(1, 10) is first
        greedy._captured(4, 10)
        assert greedy._captured(1, 10) is first and len(greedy._kept) == 4 and len(recorded) == 5


def test_a_step_that_cannot_be_captured_or_answers_otherwise_runs_eagerly_and_it_is_said(session, ids, monkeypatch):
    monkeypatch.setattr(_timing, "_aside", lambda device, warm: warm())

    def refuse(device, step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    for capture, why in ((refuse, "not permitted when stream is capturing)"), (lambda *_: lambda: None, "otherwise)")):
        monkeypatch.setattr(_timing, "_capture", capture)
        greedy = Greedy(session.model)
        with torch.inference_mode():
            assert greedy._captured(2, 31) is None
            assert torch.equal(tokens_of(greedy, ids, 6), generated(session, ids, 6))
        assert greedy.graphs.startswith("eager (RuntimeError") and greedy.graphs.endswith(why)


def test_a_model_with_a_sliding_window_is_not_captured(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
    path.write_text(json.dumps(config))
    opened = Transformers().open(tmp_path / "checkpoint", "cpu")
    try:
        assert Greedy(opened.model)._captured(1, 10) is None
        assert _timing._hindrance(opened.model) == "its cache is not of full attention alone"
        ids = torch.tensor([opened.tokenize(PROMPTS[0] * 20)])
        assert torch.equal(answer(opened.greedy(), ids, 6)[1], generated(opened, ids, 6))
    finally:
        opened.close()
