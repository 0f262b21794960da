"""The tiny Llama is fit for its purpose: it is small, its shapes suit every scheme, and rounding its weights costs it.

The other tests lean on this one: on a model whose weights do not matter, a broken method would pass them all.
"""

import json
import math
from pathlib import Path

import pytest
import text

from quantize.engines import Transformers
from quantize.handed import Host, QuantizeJob
from quantize.methods import Gptq, Rtn
from quantize.scheme import preset

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint"
LONGEST = 512


def open_checkpoint(checkpoint):
    return Transformers().open(checkpoint, "cpu")


@pytest.fixture(scope="module")
def session():
    return open_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def documents():
    return (HERE / "heldout.txt").read_text("utf-8").removesuffix("\n").split(text.SEPARATOR)


def surprise(session, documents):
    """(summed nll in nats, scored tokens) of each document."""
    import torch

    sums = []
    for document in documents:
        ids = torch.tensor([session.encode(document)[:LONGEST]])
        scores = session.logits(ids)[0, :-1].log_softmax(-1)
        sums.append((-float(scores.gather(1, ids[0, 1:, None]).sum()), ids.shape[1] - 1))
    return sums


def perplexity(sums):
    return math.exp(sum(nll for nll, _ in sums) / sum(tokens for _, tokens in sums))


@pytest.fixture(scope="module")
def surprises(tmp_path_factory, session, documents):
    """By arm: baseline, and W4A16 with groups of 128 by GPTQ and by RTN."""
    import torch

    ids = session.encode("\n".join(text.some(text.CALIBRATION_SEED, text.CALIBRATION_ROWS)))
    tokens = torch.tensor(ids[: len(ids) // 256 * 256]).reshape(-1, 256)[:64]
    found = {"baseline": surprise(session, documents)}
    for method in (Gptq(), Rtn()):
        out = tmp_path_factory.mktemp(method.kind)
        given = tokens if method.calibrated else None
        scheme = preset("W4A16")
        assert scheme.group_size == 128
        method.quantize(
            QuantizeJob(
                CHECKPOINT, out, scheme, ("lm_head",), given, "cpu", 0, lambda _: None, lambda *_: None, Host({}, out)
            )
        )
        found[method.kind] = surprise(open_checkpoint(out), documents)
    return found


def test_every_linear_takes_groups_of_128_and_a_head_has_at_least_32_dimensions(session):
    import torch

    linears = [module for module in session.model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 4 * 7 + 1
    assert all(size % 128 == 0 for linear in linears for size in linear.weight.shape)
    config = session.model.config
    assert config.hidden_size // config.num_attention_heads >= 32
    assert config.head_dim >= 32


def test_everything_that_the_repository_carries_of_it_is_small():
    carried = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert CHECKPOINT / "model.safetensors" in carried
    assert sum(path.stat().st_size for path in carried) <= 5_000_000


def test_the_files_are_what_the_generator_writes(documents):
    assert documents == text.some(text.HELDOUT_SEED, text.HELDOUT_DOCUMENTS)
    assert [json.loads(line) for line in (HERE / "items.jsonl").read_text("utf-8").splitlines()] == text.items()


def test_no_held_out_document_and_no_calibration_row_was_trained_on(documents):
    trained = set(text.training())
    assert len(documents) == text.HELDOUT_DOCUMENTS
    assert not trained & set(documents)
    calibration = text.some(text.CALIBRATION_SEED, text.CALIBRATION_ROWS)
    assert not (trained | set(documents)) & set(calibration)


def test_items_say_what_is_true_and_the_place_of_the_answer_says_nothing():
    items = text.items()
    assert len({item["id"] for item in items}) == len({item["prompt"] for item in items}) == len(items)
    places = [sum(item["answer"] == place for item in items) for place in range(4)]
    assert min(places) > len(items) / 8
    for item in items:
        words = item["prompt"].split()
        answer = item["choices"][item["answer"]].strip()
        if words[0] == "Mixing":
            assert answer == text.MIXES[tuple(sorted((words[1], words[3])))]
        elif words[-1] == "is" and words[1] == "plus":
            assert int(answer) == int(words[0]) + int(words[2])
        elif words[-1] == "cost":
            assert int(answer) == text.PRICES[words[1]] + text.PRICES[words[4]]


def test_it_knows_its_world_but_not_perfectly(surprises):
    """Far below the 512 of guessing; a model that could not get worse would show nothing."""
    assert 1.2 < perplexity(surprises["baseline"]) < 2.5


def test_rounding_hurts_and_gptq_hurts_less(surprises):
    assert perplexity(surprises["baseline"]) < perplexity(surprises["gptq"]) < perplexity(surprises["rtn"])


def test_gptq_beats_rtn_document_by_document(surprises):
    """A sign test at the one-sided 1 % level, so that one odd document does not decide."""
    from scipy.stats import binomtest

    better = sum(one < other for (one, _), (other, _) in zip(surprises["gptq"], surprises["rtn"], strict=True))
    assert binomtest(better, len(surprises["rtn"]), alternative="greater").pvalue < 0.01
