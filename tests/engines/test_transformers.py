"""The transformers engine on the tiny Llama: lm-eval's own numbers for less work, and a head that can be re-applied."""

import json
from pathlib import Path

import pytest

from quantize.engines import Transformers
from quantize.engines.transformers import TransformersSession, _batches
from quantize.errors import DataError, QuantizeError
from quantize.handed import Host, QuantizeJob
from quantize.methods import Rtn
from quantize.scheme import preset

TINY = Path(__file__).parents[1] / "tiny_llama"
CHECKPOINT = TINY / "checkpoint"


@pytest.fixture(scope="module")
def session():
    return Transformers().open(CHECKPOINT, "cpu")


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp("int8")
    job = QuantizeJob(
        CHECKPOINT, out, preset("W8A8"), ("lm_head",), None, "cpu", 0, lambda _: None, lambda *_: None, Host({}, out)
    )
    Rtn().quantize(job)
    return Transformers().open(out, "cpu")


@pytest.fixture(scope="module")
def stock(session):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=session.model, tokenizer=session.tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def uncached(session):
    """The stock harness without its logits cache, which mixes up requests that are one text cut at different places."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=session.model, tokenizer=session.tokenizer, batch_size=4, logits_cache=False)


def instances(pairs):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def questions(count=24):
    """Pairs of the tiny world's items: four choices to a prompt, most of one token, some of more."""
    lines = (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines[:: len(lines) // count]]
    return [(item["prompt"], choice) for item in items for choice in item["choices"]]


def close(scores):
    """Equal to 1e-4, or to 2e-6 of itself for texts so unlikely that float32 rounds their sum more coarsely."""
    return pytest.approx([score for score, _ in scores], abs=1e-4, rel=2e-6)


PROSE = "Hugo Lark lives in Farrow. Hugo Lark owns a book. Hugo Lark likes the colour grey."
SETS = {
    "shared prompts": questions(),
    "choices of unequal length": [
        (prompt, choice)
        for prompt in ("Hugo Lark lives in", PROSE, "7 plus 4 is")
        for choice in (" a", " Farrow", " Farrow. Hugo Lark owns a book. Hugo", " 11", " the colour")
    ],
    "prompts of one choice each": [(PROSE[:end], f" {end} dogs.") for end in range(1, len(PROSE), 5)],
    "a prompt that ends in a blank": [("7 plus 4 is ", choice) for choice in ("11", "12", "31.")],
    "a prompt that ends within a word": [("Hugo Lark lives in Far", choice) for choice in ("mer", "away", "rows")],
    "an empty prompt": [("", choice) for choice in ("Hugo", " Hugo Lark lives in Farrow.")],
    "the same pair twice": [("7 plus 4 is", " 11"), ("7 plus 4 is", " 12"), ("7 plus 4 is", " 11")],
    "a prompt beyond the context": [(PROSE * 60, choice) for choice in (" Hugo", " A wheel and a kite cost 19.")],
}
ONE_TEXT = {
    "short": [(PROSE[:end], PROSE[end:]) for end in range(1, len(PROSE), 5)],
    "beyond the context": [
        (f"{PROSE * 60} Hugo{a}", b)
        for a, b in ((" Lark", " lives in Farrow."), (" Lark lives", " in Farrow."), ("", " Lark lives in Farrow."))
    ],
}


@pytest.mark.parametrize("budget", [32, 8192])
@pytest.mark.parametrize("pairs", SETS.values(), ids=SETS.keys())
def test_log_likelihoods_equal_the_stock_harness(session, stock, pairs, budget):
    session = TransformersSession(session.model, session.tokenizer, budget)
    ours = session.lm().loglikelihood(instances(pairs), disable_tqdm=True)
    theirs = stock.loglikelihood(instances(pairs), disable_tqdm=True)
    assert [score for score, _ in ours] == close(theirs)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("pairs", ONE_TEXT.values(), ids=ONE_TEXT.keys())
def test_one_text_cut_at_different_places_is_scored_as_each_cut_alone(session, stock, pairs):
    together = session.lm().loglikelihood(instances(pairs), disable_tqdm=True)
    alone = [stock.loglikelihood(instances([pair]), disable_tqdm=True)[0] for pair in pairs]
    assert [score for score, _ in together] == close(alone)


def test_a_choice_that_the_tokenizer_joins_to_the_prompt_is_refused(session):
    """`Farrow` is one token, `Far` is two: no token of the choice would be scored, and its sum, 0, would win."""
    pairs = instances([("Hugo Lark lives in Far", "row"), ("Hugo Lark lives in Far", "mer")])
    with pytest.raises(DataError, match=r"nothing is left to score of the choice 'row' .*in Far'"):
        session.lm().loglikelihood(pairs, disable_tqdm=True)


def test_prompts_of_all_lengths_in_one_batch_do_not_touch_each_other(session, uncached):
    pairs = [pair for pairs in (SETS | ONE_TEXT).values() for pair in pairs]
    ours = session.lm().loglikelihood(instances(pairs), disable_tqdm=True)
    theirs = uncached.loglikelihood(instances(pairs), disable_tqdm=True)
    assert [score for score, _ in ours] == close(theirs)


def test_rolling_log_likelihoods_equal_the_stock_harness(session, stock):
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate((PROSE, PROSE * 60))]
    ours = session.lm().loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(stock.loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-4, rel=2e-6)


def test_quantized_activations_give_the_stock_numbers_too(int8):
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=int8.model, tokenizer=int8.tokenizer, batch_size=4)
    pairs = instances(questions(12))
    ours = [score for score, _ in int8.lm().loglikelihood(pairs, disable_tqdm=True)]
    # A rounding error of float32 may move an activation to the next of 256 steps: no equality to 1e-4 here.
    assert ours == pytest.approx([score for score, _ in theirs.loglikelihood(pairs, disable_tqdm=True)], abs=0.05)


def test_generations_equal_the_stock_harness(session, stock):
    from lm_eval.api.instance import Instance

    how = {"until": ["."], "do_sample": False, "max_gen_toks": 12}
    prompts = ["Hugo Lark lives in", "7 plus 4 is", "The trade of Hugo Lark is that of", PROSE]
    asked = [Instance("generate_until", {}, (prompt, how), i) for i, prompt in enumerate(prompts)]
    ours = session.lm().generate_until(asked, disable_tqdm=True)
    assert ours == stock.generate_until(asked, disable_tqdm=True)
    assert all(text.strip() for text in ours)


@pytest.fixture
def forwarded(session):
    """The shapes of the ids of every forward pass."""
    shapes = []
    hook = session.model.register_forward_pre_hook(
        lambda _, inputs, named: shapes.append(tuple((inputs[0] if inputs else named["input_ids"]).shape)),
        with_kwargs=True,
    )
    yield shapes
    hook.remove()


def test_a_prompt_is_paid_once_for_all_its_choices(session, stock, forwarded):
    pairs = [(prompt, choice) for prompt in (PROSE, f"{PROSE} {PROSE}") for choice in (" a bee", " an owl", " a toad")]
    session.lm().loglikelihood(instances(pairs), disable_tqdm=True)  # proves that it may pack, once
    forwarded.clear()
    session.lm().loglikelihood(instances(pairs), disable_tqdm=True)
    ours = sum(rows * tokens for rows, tokens in forwarded)
    forwarded.clear()
    stock.loglikelihood(instances(pairs), disable_tqdm=True)
    assert ours < sum(rows * tokens for rows, tokens in forwarded) / 2


def test_short_prompts_are_not_padded_to_the_longest(session, forwarded):
    pairs = [(f"{n} plus 4 is", choice) for n in range(100, 160) for choice in (" 1", " 2")] + [
        (f"{PROSE} {PROSE}", ".")
    ]
    session.lm().loglikelihood(instances(pairs), disable_tqdm=True)
    real = sum(len(session.encode(prompt)) for prompt in {prompt for prompt, _ in pairs})
    assert sum(rows * tokens for rows, tokens in forwarded) < 2 * real


def test_a_forward_pass_stays_within_the_budget(session, forwarded):
    budget = 96
    TransformersSession(session.model, session.tokenizer, budget).lm().loglikelihood(
        instances(SETS["shared prompts"]), disable_tqdm=True
    )
    assert len(forwarded) > 2
    assert max(rows * tokens for rows, tokens in forwarded) <= budget


def test_activations_stay_quantized_when_weights_are_expanded(int8):
    import torch

    linears = [(n, m) for n, m in int8.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) > 1
    int8.logits(torch.tensor([[5, 6, 7]]))
    torch.manual_seed(0)
    with torch.inference_mode():
        for name, linear in linears:
            x = torch.randn(4, linear.in_features)
            plain = torch.nn.functional.linear(x, linear.weight)
            error = float((linear(x) - plain).abs().max() / plain.abs().max())
            assert (error == 0) if name == "lm_head" else (1e-4 < error < 0.05), name


def text_ids(session):
    import torch

    return torch.tensor([session.encode(PROSE), session.encode(PROSE)[::-1]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_of_the_hidden_states_gives_the_logits(dtype):
    import torch

    session = Transformers(dtype=dtype).open(CHECKPOINT, "cpu")
    ids = text_ids(session)
    hidden, logits = torch.stack(session.hidden(list(ids))), session.logits(ids)
    assert hidden.shape == (*ids.shape, 128)
    assert hidden.dtype == getattr(torch, dtype)
    assert float((session.head(hidden) - logits).abs().max()) < 1e-4


def test_the_head_of_a_slice_is_that_slice_of_the_logits(session):
    import torch

    hidden = session.hidden(list(text_ids(session)))[0]
    whole = session.head(hidden)
    parts = [session.head(hidden, start, min(start + 100, 512)) for start in range(0, 512, 100)]
    assert [part.shape[1] for part in parts] == [100, 100, 100, 100, 100, 12]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert whole.shape[1] == session.head_parameters().vocabulary == 512


def windows_of_all_lengths(session):
    import torch

    ids = torch.tensor(session.encode(PROSE) * 8)
    return [ids[start : start + length] for start, length in enumerate((7, 90, 2, 64, 90, 13, 31, 88, 3))]


@pytest.mark.parametrize("budget", [1, 100, 300, 8192])
def test_hidden_states_do_not_depend_on_the_batch(session, budget):
    import torch

    windows = windows_of_all_lengths(session)
    together = TransformersSession(session.model, session.tokenizer, budget).hidden(windows)
    assert [len(states) for states in together] == [len(ids) for ids in windows]
    for states, ids in zip(together, windows, strict=True):
        assert torch.allclose(states, session.hidden([ids])[0], atol=1e-4)


def test_windows_share_forward_passes_within_the_budget(session, forwarded):
    windows = windows_of_all_lengths(session)
    TransformersSession(session.model, session.tokenizer, 200).hidden(windows)
    assert len(forwarded) < len(windows)
    assert max(rows * tokens for rows, tokens in forwarded) <= 200
    assert sum(rows for rows, _ in forwarded) == len(windows)


def test_short_windows_do_not_pay_for_the_padding_of_long_ones():
    lengths = [500, 20, 490, 20, 510, *[20] * 40]
    batches = list(_batches(lengths, 100_000))
    computed = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    assert computed < 1.1 * sum(lengths)
    assert len(batches) == 2
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))


def test_hidden_states_come_without_the_logits_of_every_position(session):
    """The head sees one position of a batch, so that no tensor of positions by vocabulary is ever made."""
    seen = []
    head = session.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape)))
    try:
        session.hidden(list(text_ids(session)))
    finally:
        hook.remove()
    assert seen == [(1, 1, 512)]


def test_other_batches_are_smaller_and_nothing_else_changes():
    engine = Transformers(dtype="float32", max_batch_tokens=4096)
    other = engine.in_other_batches()
    assert other.max_batch_tokens < engine.max_batch_tokens
    assert other.model_dump(exclude={"max_batch_tokens"}) == engine.model_dump(exclude={"max_batch_tokens"})
    assert Transformers(max_batch_tokens=1).in_other_batches().max_batch_tokens == 1


def family(name):
    """A random two-layer model of a family that does something to its logits."""
    import torch
    import transformers

    torch.manual_seed(0)
    common = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    special = {
        "Gemma2": {"final_logit_softcapping": 0.3},
        "Cohere": {"logit_scale": 0.25},
        "Granite": {"logits_scaling": 8.0},
    }
    config = getattr(transformers, f"{name}Config")(**common, **special[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.get_output_embeddings().parameters():
        torch.nn.init.normal_(parameter)
    return TransformersSession(model, None, 8192)


@pytest.mark.parametrize(
    ("name", "multiply", "cap"), [("Gemma2", 1, 0.3), ("Cohere", 0.25, None), ("Granite", 1 / 8, None)]
)
def test_logit_scales_and_soft_caps_are_applied(name, multiply, cap):
    import torch

    session = family(name)
    ids = torch.arange(3, 23).reshape(2, 10)
    logits = session.logits(ids)
    hidden = torch.stack(session.hidden(list(ids)))
    assert float((session.head(hidden) - logits).abs().max()) < 1e-4 * float(logits.abs().max())
    assert torch.allclose(session.head(hidden, 20, 40), logits[..., 20:40], atol=1e-4 * float(logits.abs().max()))
    assert (session.head_parameters().multiply, session.head_parameters().cap) == (multiply, cap)


def test_a_head_that_does_something_unknown_is_refused():
    import torch

    session = family("Granite")
    session.model.config.logits_scaling, session.model.config.logit_scale = 1.0, 1.0
    session.model.config.final_logit_softcapping = 0.01
    with pytest.raises(QuantizeError, match="GraniteForCausalLM does more than a matrix"):
        session.hidden([torch.tensor([3, 4, 5])])


def weights_of(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC"])
def test_the_model_answers_with_quantized_activations_and_not_with_its_weights_alone(tmp_path, scheme):
    """The same weights without activation quantization are nearer to the baseline, and answer otherwise."""
    import torch
    from compressed_tensors.quantization import disable_quantization

    host, no_witness, kept = Host({}, tmp_path), lambda _: None, ("lm_head",)
    Rtn().quantize(
        QuantizeJob(CHECKPOINT, tmp_path, preset(scheme), kept, None, "cpu", 0, no_witness, lambda *_: None, host)
    )
    session = Transformers().open(tmp_path, "cpu")
    assert set(weights_of(tmp_path)) > {"model.layers.0.mlp.up_proj.weight_scale"}
    ids = text_ids(session)[:1]
    exact, both = Transformers().open(CHECKPOINT, "cpu").logits(ids), session.logits(ids)
    session.model.apply(disable_quantization)
    weights_alone = session.logits(ids)
    assert not torch.allclose(both, weights_alone, atol=1e-2)
    assert float((weights_alone - exact).abs().mean()) < float((both - exact).abs().mean())
