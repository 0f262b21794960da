"""Engines that name the likeliest tokens only: what is compared is a lower bound, and still finds what is wrong."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch  # noqa: TID253 (every test here computes with it)

from quantize import proof
from quantize.engines import Transformers
from quantize.handed import Host, QuantizeJob
from quantize.methods import Rtn
from quantize.proof.answers import answer_differences
from quantize.proof.witness import read
from quantize.scheme import preset

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"


class Likeliest:
    """A session that says no more than an engine with `k` log-probabilities would, in float32."""

    distributions = "top"

    def __init__(self, session, k):
        self.session, self.k = session, k
        self.arithmetic, self.vocabulary = session.arithmetic, session.vocabulary

    def log_probabilities(self, ids, kept):
        exact = self.session.log_probabilities(ids, torch.arange(self.vocabulary).repeat(len(kept), 1))
        least = exact.topk(self.k).values[:, -1:]
        found = exact.gather(1, kept)
        return found.float().double().masked_fill(found < least, torch.nan)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantized")
    checkpoint, witness = root / "checkpoint", root / "witness"
    checkpoint.mkdir()
    witness.mkdir()
    note = partial(proof.record, tokenizer_dir=TINY, out=witness, checkpoint=checkpoint)
    scheme = replace(preset("W4A16"), group_size=64)
    job = QuantizeJob(
        TINY, checkpoint, scheme, ("lm_head",), None, "cpu", 0, note, lambda *_: None, host=Host({}, root)
    )
    Rtn().quantize(job)
    return root


@pytest.fixture(scope="module")
def sessions(quantized):
    """The quantized model, and the baseline: another model with answers like it."""
    host = Host({}, quantized)
    return [Transformers().open(place, "cpu", host) for place in (quantized / "checkpoint", TINY)]


@pytest.mark.parametrize("k", [1, 20, 500])
def test_the_same_model_passes_whatever_share_it_says(quantized, sessions, k):
    numbers = {}
    assert answer_differences(Likeliest(sessions[0], k), read(quantized / "witness"), "transformers", numbers) == []
    assert numbers["mean_kl"] <= 1e-9
    assert 0 < numbers["compared_mass"] <= 1


def test_what_is_compared_never_exceeds_the_divergence_of_the_whole(quantized, sessions):
    whole, bounds = {}, []
    witness = read(quantized / "witness")
    answer_differences(sessions[1], witness, "transformers", whole)
    for k in (1, 5, 50, 512):
        numbers = {}
        (sentence,) = answer_differences(Likeliest(sessions[1], k), witness, "transformers", numbers)
        assert "is at least" in sentence
        bounds.append(numbers["mean_kl"])
    assert bounds == sorted(bounds)
    assert bounds[-1] <= whole["mean_kl"] * (1 + 1e-5)
    assert bounds[2] > 0.5 * whole["mean_kl"] > 1e-4


def test_a_row_of_which_nothing_is_said_is_not_finite(quantized, sessions):
    class Lost(Likeliest):
        def log_probabilities(self, ids, kept):
            return torch.full(kept.shape, torch.nan, dtype=torch.float64)

    found = answer_differences(Lost(sessions[0], 5), read(quantized / "witness"), "transformers", {})
    assert found == ["logits are not finite at 128 of 128 positions"]


def test_a_smaller_vocabulary_is_named(quantized, sessions):
    small = Likeliest(sessions[0], 5)
    small.vocabulary = 300
    (sentence,) = answer_differences(small, read(quantized / "witness"), "transformers", {})
    assert sentence == "the vocabulary has 300 tokens, fewer than the model in memory had"
