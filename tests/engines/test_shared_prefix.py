"""Requests share what they begin with where the model allows it, stay within the budgets, and never hide a NaN."""

import json
import random
from pathlib import Path

import pytest

from quantize.engines import Transformers
from quantize.engines._packing import Limits, packs
from quantize.engines.transformers import TransformersSession

TINY = Path(__file__).parents[1] / "tiny_llama"
VOCABULARY = 512
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
#: Families whose memory of a prompt differs: what is special about each, and whether choices can share it.
FAMILIES = {
    "Llama": ({}, True),
    "Mistral": ({"sliding_window": 6}, True),
    "Gemma3Text": ({"sliding_window": 6, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}, True),
    "OPT": ({"ffn_dim": 128, "word_embed_proj_dim": 64}, True),
    "Bloom": ({}, True),
    "Lfm2": ({"full_attn_idxs": [1]}, False),
    "Mamba": ({"state_size": 8}, False),
}
TITLES = {"Gemma3Text": "Gemma3ForCausalLM"}


@pytest.fixture(scope="module")
def tokenizer():
    """One token for each word w0, w1, ...; nothing else is asked of it here."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w1")


def build(family, **changes):
    """A random model with weights large enough that its answers differ."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**COMMON, **FAMILIES[family][0], **changes})
    model = getattr(transformers, TITLES.get(family, f"{family}ForCausalLM"))(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def requests(lengths, choices, seed=0):
    """As the harness hands them on: (texts, prompt ids, choice ids); all choices of a prompt of each length."""
    draw = random.Random(seed)

    def ids(n):
        return [draw.randrange(2, VOCABULARY) for _ in range(n)]

    asked = []
    for length in lengths:
        prompt = ids(length)
        asked += [(("", ""), prompt, ids(n)) for n in choices]
    draw.shuffle(asked)
    return asked


def stock(model, tokenizer, asked):
    from lm_eval.models.huggingface import HFLM

    alone = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, logits_cache=False)
    return alone._loglikelihood_tokens(asked, disable_tqdm=True)


def ours(model, tokenizer, asked, budget=8192):
    return TransformersSession(model, tokenizer, budget).lm()._loglikelihood_tokens(asked, disable_tqdm=True)


@pytest.fixture
def passes():
    """(rows, tokens) of every forward pass of a model."""
    hooks = []

    def watch(model):
        seen = []
        hooks.append(
            model.register_forward_pre_hook(
                lambda _, inputs, named: seen.append(tuple((inputs[0] if inputs else named["input_ids"]).shape)),
                with_kwargs=True,
            )
        )
        return seen

    yield watch
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored_as_by_the_stock_harness(family, tokenizer):
    """Recurrent states, sliding windows shorter than a prompt, absolute and relative positions."""
    model = build(family)
    asked = requests((1, 2, 5, 14, 33), (1, 1, 3, 5))
    scores = stock(model, tokenizer, asked)
    assert [score for score, _ in ours(model, tokenizer, asked)] == pytest.approx([s for s, _ in scores], abs=1e-4)
    assert len({round(score, 2) for score, _ in scores}) > len(asked) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_shared_exactly_where_its_memory_can_be_copied(family, tokenizer, passes):
    model = build(family)
    lm = TransformersSession(model, tokenizer, 8192).lm()
    # What packs of this depth are is proven here, once.
    lm._loglikelihood_tokens(requests((20,), (2, 2), seed=1), disable_tqdm=True)
    seen = passes(model)
    lm._loglikelihood_tokens(requests((20,), (2, 2, 2, 2)), disable_tqdm=True)
    assert (sum(rows * tokens for rows, tokens in seen) < 40) == FAMILIES[family][1]


def proven(model, tokenizer, depth):
    """An lm whose packs are known to hold to this depth."""
    lm = TransformersSession(model, tokenizer, 8192).lm()
    lm._loglikelihood_tokens(requests((depth,), (1, 2), seed=9), disable_tqdm=True)
    return lm


@pytest.mark.parametrize("choices", [1, 4, 9])
def test_a_prompt_and_each_further_choice_cost_their_own_tokens_only(tokenizer, passes, choices):
    """And no choice's last token: nothing is asked of what would follow it."""
    model = build("Llama")
    lm = proven(model, tokenizer, 40)
    seen = passes(model)
    lm._loglikelihood_tokens(requests((20,), [5] * choices), disable_tqdm=True)
    assert seen == [(1, 20 + choices * 4)]


def test_a_preamble_of_many_prompts_is_computed_once(tokenizer, passes):
    model = build("Llama")
    preamble = list(range(10, 40))
    asked = [(("", ""), [*preamble, 100 + n], [200 + n, 300]) for n in range(8)]
    expected = stock(model, tokenizer, asked)
    lm = proven(model, tokenizer, 60)
    seen = passes(model)
    found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    assert seen == [(1, 30 + 8 * 2)]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_the_vocabulary_is_spread_out_only_where_a_score_is_read(tokenizer):
    model = build("Llama")
    lm = proven(model, tokenizer, 60)
    places = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, __: places.append(inputs[0].shape[:-1].numel()))
    lm._loglikelihood_tokens(requests((30, 50), (1, 1, 3)), disable_tqdm=True)
    hook.remove()
    assert sum(places) == 2 * (1 + 2)


def test_no_pack_is_trusted_deeper_than_a_window_of_its_model(tokenizer, passes):
    """A tree's mask would show what the window hides; these requests continue from a cache."""
    model = build("Mistral", sliding_window=24)
    lm = proven(model, tokenizer, 20)
    seen = passes(model)
    asked = requests((10, 40), (3, 3))
    expected = stock(model, tokenizer, asked)
    del seen[:]
    found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert seen == [(1, 10 + 2 * 2), (1, 40), (2, 2)]


@pytest.mark.parametrize("missing", ["mask", "depths"])
def test_a_model_that_ignores_a_pack_s_mask_or_depths_is_found_out(tokenizer, missing):
    model = build("Llama")
    asked = requests((9, 30), (1, 4, 4))
    expected = stock(model, tokenizer, asked)

    def deaf(_model, inputs, named):
        mask = named.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            named = {**named, {"mask": "attention_mask", "depths": "position_ids"}[missing]: None}
        return inputs, named

    hook = model.register_forward_pre_hook(deaf, with_kwargs=True)
    found = ours(model, tokenizer, asked)
    hook.remove()
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("way", ["packed", "continued", "stock"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_trained_model_is_scored_alike_on_every_way(monkeypatch, way, attention):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from quantize.engines import _packed

    session = Transformers().open(TINY / "checkpoint", "cpu")
    session.model.set_attn_implementation(attention)
    items = [json.loads(line) for line in (TINY / "items.jsonl").read_text().splitlines()]
    asked = [
        Instance("loglikelihood", {}, (item["prompt"], choice), number)
        for number, item in enumerate(item for item in items if item.get("choices"))
        for choice in item["choices"]
    ][:200]
    scored = []
    score = _packed.score
    monkeypatch.setattr(_packed, "score", lambda model, pack: scored.append(len(pack.asked)) or score(model, pack))
    lm = session.lm()
    lm._reach = lm._reach if way == "packed" else 0
    lm._shares = way != "stock"
    alone = HFLM(pretrained=session.model, tokenizer=session.tokenizer, batch_size=16)
    expected = alone.loglikelihood(asked, disable_tqdm=True)
    found = lm.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert sum(scored) == (len(asked) if way == "packed" else 0)
    assert len(asked) > 50 and {greedy for _, greedy in found} == {True, False}


def path(pack, place):
    """Tokens from the first to this place."""
    return [*path(pack, pack.parents[place]), pack.tokens[place]] if place >= 0 else []


@pytest.mark.parametrize("limits", [Limits(1, 1, 1), Limits(30, 60, 12), Limits(64, 1000, 1000)])
def test_packs_hold_every_request_once_and_keep_to_their_limits(limits):
    drawn = requests((1, 3, 9, 20), (1, 2, 5, 5)) + requests((9,), (4,) * 30)
    asked = [(index, prompt, choice) for index, (_, prompt, choice) in enumerate(drawn)]
    answered = {}
    for pack in packs(asked, limits):
        assert len(pack.asked) == 1 or (len(pack.tokens) <= limits.tokens and len(pack.looks) <= limits.looks)
        assert [len(path(pack, place)) - 1 for place in range(len(pack.tokens))] == pack.depths
        for index, choice, after in pack.asked:
            assert index not in answered
            answered[index] = ([path(pack, pack.looks[look]) for look in after], choice)
    assert answered == {i: ([prompt + choice[:n] for n in range(len(choice))], choice) for i, prompt, choice in asked}


@pytest.mark.parametrize("budget", [16, 64, 300])
def test_no_budget_changes_a_score(tokenizer, budget):
    model = build("Llama")
    asked = requests((1, 4, 40), (1, 2, 9)) + requests((250,), (3, 9), seed=1) + requests((1,), range(1, 12), seed=2)
    expected = stock(model, tokenizer, asked)
    found = ours(model, tokenizer, asked, budget)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("lengths", [(1,), (250,)], ids=["many choices after one token", "beyond the context"])
def test_one_prompt_with_many_long_choices_stays_within_the_budget(tokenizer, passes, lengths):
    """Rolling log-likelihoods are such a set: every document is a choice after the same single token."""
    model = build("Llama")
    lm = TransformersSession(model, tokenizer, 600).lm()
    seen = passes(model)
    lm._loglikelihood_tokens(requests(lengths, [60] * 20), disable_tqdm=True)
    assert max(rows * tokens for rows, tokens in seen) <= 600
    assert len(seen) < 20


def test_logits_of_one_pass_stay_within_their_bound(tokenizer, passes, monkeypatch):
    from quantize.engines import _shared_prefix

    monkeypatch.setattr(_shared_prefix, "_LOGITS", 100 * VOCABULARY)
    model = build("Llama")
    lm = TransformersSession(model, tokenizer, 8192).lm()
    seen = passes(model)
    lm._loglikelihood_tokens(requests((2, 3), [30] * 10), disable_tqdm=True)
    assert max(rows * tokens for rows, tokens in seen) <= 100


def greedy(model, tokenizer, prompt, count):
    """The likeliest next token, `count` times, by whole passes."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    given = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[given:])


def generate(lm, prompts, count):
    from lm_eval.api.instance import Instance

    how = {"until": ["nothing"], "do_sample": False, "max_gen_toks": count}
    asked = [Instance("generate_until", {}, (prompt, how), i) for i, prompt in enumerate(prompts)]
    return lm.generate_until(asked, disable_tqdm=True)


def test_a_generation_is_the_greedy_one_whatever_stands_beside_it(tokenizer):
    model = build("Llama")
    prompts = [" ".join(f"w{(7 * i * n) % 500 + 3}" for i in range(1, n)) for n in (2, 3, 9, 30)]
    lm = TransformersSession(model, tokenizer, 8192).lm()
    assert generate(lm, prompts, 6) == [greedy(model, tokenizer, prompt, 6) for prompt in prompts]
    assert lm.finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_noticed_while_generating(tokenizer, value):
    import torch

    model = build("Llama")
    lm = TransformersSession(model, tokenizer, 8192).lm()
    with torch.no_grad():
        model.lm_head.weight[9] = value
    generate(lm, ["w5 w6 w7"], 3)
    assert not lm.finite
    assert not model.lm_head._forward_hooks


def test_a_logit_that_is_not_finite_shows_in_the_log_likelihoods(tokenizer):
    import math

    import torch

    model = build("Llama")
    lm = TransformersSession(model, tokenizer, 8192).lm()
    with torch.no_grad():
        model.lm_head.weight[9] = float("nan")
    assert all(math.isnan(score) for score, _ in lm._loglikelihood_tokens(requests((3, 9), (1, 3)), disable_tqdm=True))
