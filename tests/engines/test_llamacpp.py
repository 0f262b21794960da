"""llama.cpp answers as transformers does on the same weights, and every way in which it can fail has its sentence."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest

from quantize.engines import LlamaCpp
from quantize.engines import _llamacpp_client as client
from quantize.engines._packing import Pack
from quantize.errors import EngineLost, MissingDependency, QuantizeError
from quantize.handed import EvaluateJob, Host

TINY = Path(__file__).parents[1] / "tiny_llama"
F32 = LlamaCpp(kv_cache="f32")
LLAMA_SERVER = """#!{python}
import argparse, pathlib, runpy, sys, tempfile
known = argparse.ArgumentParser()
for name in ("--model", "--host"):
    known.add_argument(name, required=True)
for name in ("--port", "--ctx-size", "--parallel", "--threads", "--n-gpu-layers"):
    known.add_argument(name, required=True, type=int)
given = known.parse_args()
options = dict(model=given.model, port=given.port, n_ctx=given.ctx_size, parallel=given.parallel)
options |= dict(threads=given.threads, gpu_layers=given.n_gpu_layers)
main = runpy.run_path("{script}")["main"]
main(pathlib.Path(tempfile.mkdtemp()) / "address", options)
"""


@pytest.fixture(scope="module")
def host(environment, tmp_path_factory):
    return Host({"llamacpp": environment("llamacpp")}, tmp_path_factory.mktemp("log"), threads=1)


@pytest.fixture(scope="module")
def converted(host, tmp_path_factory):
    """The tiny Llama as a GGUF file of float32 numbers."""
    from quantize.methods import convert_to_gguf

    out = tmp_path_factory.mktemp("converted")
    convert_to_gguf(TINY / "checkpoint", None, out, host, lambda *_: None, "F32")
    return out


@pytest.fixture(scope="module")
def quantized(host, converted, tmp_path_factory):
    """The same with its matrices at 8 bits."""
    from quantize.methods._gguf_convert import quantize_file

    out = tmp_path_factory.mktemp("quantized") / "checkpoint"
    shutil.copytree(converted, out)
    folder = tmp_path_factory.mktemp("folder")
    quantize_file(converted / "model.gguf", out / "model.gguf", "Q8_0", folder, host, lambda *_: None)
    return out


@pytest.fixture(scope="module")
def session(host, converted):
    opened = F32.open(converted, "cpu", host)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def eight_bits(host, quantized):
    opened = LlamaCpp().open(quantized, "cpu", host)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plain():
    """The same weights in transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = TINY / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def stock(plain):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=plain[0], tokenizer=plain[1], batch_size=1, logits_cache=False)


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


def questions(count):
    items = [json.loads(line) for line in (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()[:count]]
    return [(item["prompt"], choice) for item in items for choice in item["choices"]]


def ids(*lengths):
    import torch

    draw = torch.Generator().manual_seed(1)
    return [torch.randint(2, 512, (length,), generator=draw) for length in lengths]


@pytest.mark.engine
def test_scores_of_unquantized_weights_are_those_of_transformers(session, stock):
    prose = (TINY / "heldout.txt").read_text(encoding="utf-8")
    # Choices that begin alike, one that begins another, and a text that does not fit.
    more = [("one two", " three"), ("one two", " three four"), ("", " five"), (prose, " and"), ("one", " two three")]
    requests = instances("loglikelihood", questions(40) + more)
    ours = session.lm().loglikelihood(requests, disable_tqdm=True)
    theirs = stock.loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert session.lm().finite


@pytest.mark.engine
def test_answers_and_whole_texts_are_those_of_transformers(session, stock):
    prose = (TINY / "heldout.txt").read_text(encoding="utf-8")
    options = [{"until": ["."], "max_gen_toks": 12}, {"until": ["e t"], "max_gen_toks": 20}]
    arguments = [(prose[start : start + 90], dict(o)) for start in (0, 200, 333) for o in options]
    ours = session.lm().generate_until(instances("generate_until", arguments), disable_tqdm=True)
    assert ours == stock.generate_until(instances("generate_until", arguments), disable_tqdm=True)
    assert len(set(ours)) > 2
    rolling = instances("loglikelihood_rolling", [(prose[:700],)])
    (total,) = session.lm().loglikelihood_rolling(rolling, disable_tqdm=True)
    assert total == pytest.approx(stock.loglikelihood_rolling(rolling, disable_tqdm=True)[0], rel=1e-5)


@pytest.mark.engine
def test_sampled_answers_come_again_with_their_seed_and_differ_with_another(session):
    asked = session.lm()._asked
    how = {"max_tokens": 12, "stops": [], "temperature": 1.5, "top_p": 0.95}
    prompts = [window.tolist() for window in ids(9, 9, 5)]
    first = asked.complete(prompts, **how, seed=7)
    assert asked.complete(prompts, **how, seed=7) == first
    assert asked.complete(prompts, **how, seed=8) != first
    greedy = asked.complete(prompts, **{**how, "temperature": 0.0}, seed=7)
    assert asked.complete(prompts, **{**how, "top_p": 1e-9}, seed=9) == greedy != first


@pytest.mark.engine
def test_distributions_of_unquantized_weights_are_those_of_transformers(session, plain):
    import torch

    windows = ids(3, 70, 1)
    with torch.inference_mode():
        logits = [plain[0](window[None]).logits[0] for window in windows]
    for window, found, expected in zip(windows, session.hidden(windows), logits, strict=True):
        assert torch.allclose(session.head(found), expected, atol=1e-3)
        assert torch.equal(session.head(found, 100, 200), session.head(found)[:, 100:200])
        assert torch.allclose(session.logits(window[None])[0], expected, atol=1e-3)
    kept = logits[1][-4:].topk(5).indices
    found = session.log_probabilities(windows[1], kept)
    assert found.dtype == torch.float64
    assert torch.allclose(found, logits[1][-4:].double().log_softmax(1).gather(1, kept), atol=1e-4)
    (top,) = session.top([windows[1]], 3)
    rows = logits[1][:-1].double().log_softmax(1)
    assert torch.equal(top.ids, rows.topk(3).indices)
    assert torch.allclose(top.true, rows.gather(1, windows[1][1:, None])[:, 0], atol=1e-3)


@pytest.mark.engine
def test_the_head_of_a_quantized_model_is_what_llama_cpp_itself_says(eight_bits, plain):
    import torch

    windows = ids(40, 7)
    hidden = eight_bits.hidden(windows)
    for window, numbers in zip(windows, hidden, strict=True):
        said = eight_bits.logits(window[None])[0]
        assert torch.equal(eight_bits.head(numbers[2:5]), said[2:5])
        assert torch.equal(eight_bits.head(numbers, 10, 20), said[:, 10:20])
        with torch.inference_mode():
            full = plain[0](window[None]).logits[0]
        # 8 bits are not 32, and not another model either.
        assert 1e-3 < float((said - full).abs().mean() / full.std()) < 0.1
    assert eight_bits.head_parameters().vocabulary == eight_bits.vocabulary == 512
    assert eight_bits.arithmetic == "float16"


@pytest.mark.engine
def test_the_stored_head_of_the_baseline_gives_the_same_logits(session):
    """A text eval applies the head in the Hugging Face checkpoint to llama.cpp's hidden states."""
    import torch
    from safetensors import safe_open

    parameters = session.head_parameters()
    with safe_open(TINY / "checkpoint" / "model.safetensors", "pt") as file:
        name = next(name for name in parameters.weights if name in file.keys())  # noqa: SIM118
        weight = file.get_tensor(name).to(getattr(torch, parameters.dtype))
    (hidden,) = session.hidden(ids(30))
    assert torch.allclose(hidden @ weight.T * parameters.multiply, session.head(hidden), atol=1e-4)


@pytest.mark.engine
def test_the_server_makes_the_ids_that_the_tokenizer_makes_and_stops_where_it_should(session, plain):
    tokenizer = plain[1]
    for text in ("The fox and the hen.", "  12 x² 東京\n\n", "<|endoftext|>again"):
        assert session.tokenize(text) == tokenizer(text).input_ids
    messages = [{"role": "user", "content": "hello there"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert session.chat(messages) == tokenizer(prompt, add_special_tokens=False).input_ids
    asked = tokenizer("The fox").input_ids
    assert session.stops(asked, tokenizer.eos_token_id)
    assert not session.stops(asked, asked[-1])


@pytest.mark.engine
def test_a_text_eval_measures_what_the_two_models_say_side_by_side(session, eight_bits, tmp_path):
    import torch

    from quantize.metrics import Text

    documents = (TINY / "heldout.txt").read_text("utf-8").split("\n---\n")[:3]
    (tmp_path / "prose.txt").write_text("\n---\n".join(documents), "utf-8")
    metric = Text(name="prose", path=str(tmp_path / "prose.txt"), window=64)
    measured = {}
    for arm, opened, reference in (("baseline", session, None), ("q8", eight_bits, tmp_path / "baseline")):
        (tmp_path / arm).mkdir()
        checkpoint = TINY / "checkpoint"
        job = EvaluateJob(
            arm, tmp_path / arm, "llamacpp", "cpu", lambda opened=opened: opened, 0, 48, None, lambda _: None,
            reference, checkpoint, lambda *_: None,
        )  # fmt: skip
        found = metric.measure(job)
        assert not found.hard_stops
        measured[arm] = {one.name: one.value for one in found.measurements}
    windows = [torch.tensor(session.encode(d)[at : at + 64]) for d in documents for at in range(0, 4096, 64)]
    windows = [window for window in windows if len(window) > 1]
    rows = [[s.logits(w[None])[0, :-1].double().log_softmax(1) for w in windows] for s in (session, eight_bits)]
    before, after = map(torch.cat, rows)
    kl = float((before.exp() * (before - after)).sum(1).mean())
    assert measured["q8"]["prose.kl_divergence"] == pytest.approx(kl, rel=0.01)
    true = torch.cat([window[1:] for window in windows])[:, None]
    for arm, logs in (("baseline", before), ("q8", after)):
        assert math.log(measured[arm]["prose.perplexity"]) == pytest.approx(
            -float(logs.gather(1, true).mean()), rel=1e-4
        )


@pytest.mark.engine
def test_other_batches_change_rounding_only(host, converted, session):
    requests = instances("loglikelihood", questions(15))
    other = F32.in_other_batches()
    assert other.n_ubatch < F32.n_ubatch
    opened = other.open(converted, "cpu", host)
    try:
        scores = [score for score, _ in opened.lm().loglikelihood(requests, disable_tqdm=True)]
    finally:
        opened.close()
    ours = [score for score, _ in session.lm().loglikelihood(requests, disable_tqdm=True)]
    assert scores == pytest.approx(ours, abs=1e-4)


@pytest.mark.engine
def test_memory_is_that_of_the_process_that_holds_the_weights(session):
    memory = session.memory()
    assert memory["weights"] == pytest.approx(787584 * 4, rel=0.01)
    assert 10_000_000 < memory["peak"] < 4_000_000_000


@pytest.mark.engine
def test_weights_that_are_not_numbers_surface(host, converted, tmp_path):
    import gguf
    import torch

    shutil.copytree(converted, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.gguf"
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(b"\x00\x00\xc0\x7f" * 4)
    opened = F32.open(tmp_path / "checkpoint", "cpu", host)
    try:
        ((score, _),) = opened.lm().loglikelihood(instances("loglikelihood", [("a fox", " b")]), disable_tqdm=True)
        assert math.isnan(score)
        opened.lm().generate_until(instances("generate_until", [("a fox", {"max_gen_toks": 2})]), disable_tqdm=True)
        assert not opened.lm().finite
        (window,) = ids(6)
        assert opened.log_probabilities(window, torch.tensor([[3, 4]])).isnan().all()
    finally:
        opened.close()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[: len(data) // 2], "cut short or damaged"),
        (lambda data: data[:600], "no complete GGUF"),
        (lambda data: data.replace(b"llama", b"lhama"), "does not know the model's architecture"),
    ],
)
def test_a_file_that_does_not_load_is_told_apart(host, converted, tmp_path, damage, told):
    shutil.copytree(converted, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.gguf"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(QuantizeError, match=told) as raised:
        F32.open(tmp_path / "checkpoint", "cpu", host)
    assert str(path) in str(raised.value)


@pytest.mark.engine
def test_a_killed_process_says_nothing_of_the_model(host, converted):
    opened = F32.open(converted, "cpu", host)
    try:
        os.kill(opened._facts["pid"], signal.SIGKILL)
        with pytest.raises(EngineLost, match="SIGKILL"):
            opened.logits(ids(4)[0][None])
    finally:
        opened.close()
    with pytest.raises(EngineLost, match="load_seconds"):
        F32.model_copy(update={"load_seconds": 0.01}).open(converted, "cpu", host)


@pytest.mark.engine
def test_a_llama_server_on_the_path_is_asked_where_the_recipe_says_so(
    host, converted, session, environment, tmp_path, monkeypatch
):
    """The program under that name here takes llama-server's options and serves with the package xllamacpp."""
    python, script = environment("llamacpp"), Path(client.__file__).with_name("_llamacpp_server.py")
    program = tmp_path / "llama-server"
    program.write_text(LLAMA_SERVER.format(python=python, script=script), encoding="utf-8")
    program.chmod(0o755)
    engine = LlamaCpp(server="llama-server")
    opened = engine.open(converted, "cpu", host)
    try:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(MissingDependency, match="no llama-server"):
            opened.tokenize("a fox")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert opened.tokenize("a fox") == session.tokenize("a fox")
    finally:
        opened.close()


@pytest.mark.engine
def test_a_build_without_gpu_support_is_told_on_a_gpu(host, converted):
    import subprocess

    python = host.interpreters["llamacpp"]
    asked = "import llama_cpp; print(llama_cpp.llama_supports_gpu_offload())"
    if subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout.strip() == "True":
        pytest.skip("this llama-cpp-python has GPU support")
    with pytest.raises(QuantizeError, match="GGML_CUDA"):
        F32.open(converted, "cuda", host)


@pytest.mark.engine
def test_a_text_beyond_the_context_is_refused(session):
    with pytest.raises(QuantizeError, match="n_ctx"):
        session.hidden(ids(1025))


def test_what_is_no_gguf_file_is_refused_before_anything_starts(tmp_path):
    nowhere = Host({}, tmp_path)
    with pytest.raises(QuantizeError, match="no GGUF model"):
        LlamaCpp().open(tmp_path, "cpu", nowhere)
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(QuantizeError, match="no GGUF file"):
        LlamaCpp().open(tmp_path, "cpu", nowhere)


def test_trees_with_more_leaves_than_sequences_are_cut_and_keep_every_request():
    from quantize.engines._llamacpp_asked import LlamaCppAsked

    class Client:
        facts = {"shares": True, "sequences": 4, "n_ctx": 512, "outputs": 512}  # noqa: RUF012

    asked = LlamaCppAsked(Client(), None, 512)
    requests = [(number, [2, 3, number % 5], [7, number, 9]) for number in range(30)]
    trees = list(asked._trees(requests))
    assert len(trees) > 1
    found = {}
    for tree in trees:
        assert len(set(range(len(tree.tokens))) - set(tree.parents)) <= 4
        for number, choice, after in tree.asked:
            found[number] = (walk(tree, tree.looks[after[0]]), choice)
    assert found == {number: (prompt, choice) for number, prompt, choice in requests}


def walk(tree: Pack, place: int) -> list[int]:
    """Tokens from the root to a place."""
    return [*walk(tree, tree.parents[place]), tree.tokens[place]] if place >= 0 else []
