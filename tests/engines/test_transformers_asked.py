"""What a proof asks of the transformers engine: distributions, ids of conversations, stops, memory."""

from pathlib import Path

import pytest

from quantize.engines import Transformers
from quantize.errors import QuantizeError

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
PROSE = "Hugo Lark lives in Farrow. Hugo Lark owns a book. Hugo Lark likes the colour grey."


@pytest.fixture(scope="module")
def session():
    return Transformers().open(CHECKPOINT, "cpu")


def test_log_probabilities_are_those_of_the_last_positions(session):
    import torch

    ids = torch.tensor(session.encode(PROSE))
    kept = torch.tensor([[7, 300, 0]] * 5)
    expected = session.logits(ids[None])[0, -5:].double().log_softmax(1).gather(1, kept)
    assert torch.equal(session.log_probabilities(ids, kept), expected)


def test_a_position_whose_logits_are_not_finite_is_all_nan():
    import torch

    broken = Transformers().open(CHECKPOINT, "cpu")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[3] = torch.nan
    found = broken.log_probabilities(torch.tensor([5, 6, 7]), torch.tensor([[1, 2]] * 2))
    assert bool(found.isnan().all())


def test_generation_stops_at_the_end_of_text_and_at_no_other_token(session):
    ids = session.encode("Hugo Lark lives in")
    assert session.stops(ids, session.tokenizer.eos_token_id)
    assert not session.stops(ids, session.encode(" Farrow")[0])


def test_generation_stops_at_every_token_that_the_checkpoint_names(session, monkeypatch):
    ids = session.encode("Hugo Lark lives in")
    monkeypatch.setattr(session.model.generation_config, "eos_token_id", [0, 9])
    assert session.stops(ids, 0)
    assert session.stops(ids, 9)
    assert not session.stops(ids, 10)


def test_a_conversation_becomes_the_ids_of_its_template_with_the_answers_beginning(session):
    ids = session.chat([{"role": "user", "content": "Where does Hugo Lark live?"}])
    assert session.tokenizer.decode(ids) == "User: Where does Hugo Lark live?\nAssistant:"


def test_a_conversation_that_the_template_does_not_take_is_an_error(session):
    with pytest.raises(QuantizeError, match="the chat template does not take the conversation"):
        session.chat([{"content": "No one says this."}])


def test_memory_counts_the_weights_and_what_the_process_took(session):
    found = session.memory()
    assert found["weights"] > 4 * 780_000
    assert found["peak"] > found["weights"]
