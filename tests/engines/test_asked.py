"""An engine that is asked for scores and completions of token ids is asked what lm-eval's own model would compute."""

import json
import math
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "tiny_llama"
#: Shorter than the model's own, so that texts are cut.
LENGTH = 96


class Plain:
    """One plain forward pass for each request."""

    max_length = LENGTH
    finite = True

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.seen = model, tokenizer, []

    def score(self, pairs):
        import torch

        self.seen.append([tuple(prompt) for prompt, _ in pairs])
        scores = []
        for prompt, choice in pairs:
            assert len(prompt) + len(choice) - 1 <= LENGTH
            with torch.inference_mode():
                logits = self.model(torch.tensor([prompt + choice[:-1]])).logits[0, -len(choice) :]
            rows = logits.log_softmax(-1)
            wanted = torch.tensor(choice)
            total = float(rows.gather(1, wanted[:, None]).sum())
            scores.append((total, bool((rows.argmax(-1) == wanted).all())))
        return scores

    def complete(self, prompts, *, max_tokens, stops, temperature, top_p, seed):
        import torch

        assert temperature == 0
        texts = []
        for prompt in prompts:
            ids = self.model.generate(torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False)[0]
            texts.append(self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
        return texts


@pytest.fixture(scope="module")
def loaded():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = TINY / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture
def stock(loaded):
    """The harness's own model."""
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = loaded
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=LENGTH, logits_cache=False)


@pytest.fixture
def asked(loaded):
    from quantize.engines._asked import AskedLM

    return AskedLM(Plain(*loaded), loaded[1])


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


def questions():
    items = [json.loads(line) for line in (TINY / "items.jsonl").read_text(encoding="utf-8").splitlines()[:12]]
    pairs = [(item["prompt"], choice) for item in items for choice in item["choices"]]
    prose = (TINY / "heldout.txt").read_text(encoding="utf-8")
    # Nothing before the choice; the end of a text before it; a blank that moves; more than fits; all that fits.
    odd = [("", " one"), ("<|endoftext|>a", " b"), ("a fox  ", "and b"), (prose[:900], prose[900:960])]
    return pairs + odd


def test_scores_are_those_of_the_harness_own_model(asked, stock):
    requests = instances("loglikelihood", questions())
    ours = asked.loglikelihood(requests, disable_tqdm=True)
    theirs = stock.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-5)


def test_whole_texts_are_those_of_the_harness_own_model(asked, stock):
    prose = (TINY / "heldout.txt").read_text(encoding="utf-8")
    requests = instances("loglikelihood_rolling", [(prose[:40],), (prose[40:1500],)])
    ours = asked.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(stock.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5)


def test_answers_are_those_of_the_harness_own_model(asked, stock):
    prose = (TINY / "heldout.txt").read_text(encoding="utf-8")
    options = [{"until": ["."], "max_gen_toks": 16}, {"until": ["\n", " the"], "max_gen_toks": 8, "do_sample": False}]
    arguments = [(prose[start : start + 120 + 400 * (start > 0)], dict(o)) for start in (0, 300, 700) for o in options]
    requests = instances("generate_until", arguments)
    ours = asked.generate_until(requests, disable_tqdm=True)
    assert ours == stock.generate_until(instances("generate_until", arguments), disable_tqdm=True)
    assert len(set(ours)) > 2


def test_conversations_and_names_are_those_of_the_harness_own_model(asked, stock):
    messages = [{"role": "user", "content": "hello"}]
    assert asked.apply_chat_template(messages) == stock.apply_chat_template(messages)
    assert asked.tokenizer_name == stock.tokenizer_name
    assert asked.max_gen_toks == stock.max_gen_toks
    assert asked.chat_template(True) == stock.chat_template(True)


def test_choices_of_one_prompt_are_asked_together(asked, monkeypatch):
    monkeypatch.setattr("quantize.engines._asked._PAIRS", 6)
    pairs = [(f"prompt {number} is", f" {word}") for word in "a b c d".split() for number in range(9)]
    asked.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    blocks = asked._asked.seen
    assert len(blocks) > 1
    assert sum(len(set(block)) for block in blocks) == 9
    assert max(map(len, blocks)) <= 6 + 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"max_gen_toks": 4, "top_k": 3}, "top_k"),
        ({"max_gen_toks": LENGTH}, "max_gen_toks"),
    ],
)
def test_an_answer_that_cannot_be_asked_for_is_refused(asked, arguments, told):
    from quantize.errors import DataError

    with pytest.raises(DataError, match=told):
        asked.generate_until(instances("generate_until", [("a", arguments)]), disable_tqdm=True)


def test_a_choice_without_tokens_or_too_long_is_refused(asked):
    from quantize.errors import DataError

    with pytest.raises(DataError, match="nothing is left"):
        asked._loglikelihood_tokens([(("ab", ""), [4], [])], disable_tqdm=True)
    with pytest.raises(DataError, match="reads 96"):
        asked._loglikelihood_tokens([(("ab", "c"), [4], [5] * (LENGTH + 1))], disable_tqdm=True)


def test_a_score_that_is_not_a_number_stays_one(asked, monkeypatch):
    monkeypatch.setattr(asked._asked, "score", lambda pairs: [(math.nan, False)] * len(pairs))
    ((score, _),) = asked.loglikelihood(instances("loglikelihood", [("a", " b")]), disable_tqdm=True)
    assert math.isnan(score)
