"""Calibration tokens: full rows, the same every time, and plain words where the text is too short or broken."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from quantize.calibrators import CalibratorConfig, Self, Text
from quantize.errors import DataError

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
EOS = 0


def draw(calibrator, progress=lambda *_: None):
    import torch

    return torch.stack(calibrator.draw(TINY, "cpu", progress).rows)


def test_self_samples_full_rows_that_differ():
    import torch

    rows = draw(Self(samples=6, tokens=32, batch=4))
    assert rows.shape == (6, 32)
    assert rows.dtype == torch.int64
    assert len({tuple(row) for row in rows.tolist()}) == 6
    assert len(set(rows[:, 0].tolist())) == 6
    assert 0 <= int(rows.min()) <= int(rows.max()) < 512


def test_self_samples_the_same_rows_again_and_others_for_another_seed():
    import torch

    first, again, other = (draw(Self(samples=4, tokens=32, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_row_goes_on_after_an_end_of_text():
    rows = draw(Self(samples=16, tokens=256))
    assert (rows[:, :-1] == EOS).any()
    after = rows[:, 1:][rows[:, :-1] == EOS]
    assert (after != EOS).any()


def test_self_writes_what_the_model_finds_likely_unless_heated():
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)

    def surprise(rows):
        with torch.no_grad():
            return model(input_ids=rows, labels=rows).loss.item()

    usual, hot = (surprise(draw(Self(samples=8, tokens=64, temperature=t))) for t in (1.0, 3.0))
    assert usual < 2.5 < hot


def test_self_reports_its_progress_up_to_the_end():
    seen = []
    draw(Self(samples=4, tokens=16, batch=2), lambda *step: seen.append(step))
    done = [step[1] for step in seen if step[0] == "sampling"]
    assert done == sorted(done)
    assert seen[-1] == ("sampling", 64, 64)


def test_text_rows_are_documents_end_to_end_with_eos_between(tmp_path):
    from transformers import AutoTokenizer

    path = tmp_path / "a.jsonl"
    documents = [f"Number {i} keeps a dog.\u2028Yes." for i in range(30)]
    path.write_text("\n".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) for text in documents) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    packed = [i for text in documents for i in [*tokenizer(text).input_ids, EOS]]
    table = [packed[i : i + 16] for i in range(0, len(packed) - 15, 16)]
    rows = draw(Text(path=str(path), samples=len(table), tokens=16))
    assert rows.tolist() == table
    some = draw(Text(path=str(path), samples=5, tokens=16, seed=2)).tolist()
    assert all(row in table for row in some)
    assert some != draw(Text(path=str(path), samples=5, tokens=16, seed=3)).tolist()


def test_too_little_text_says_how_many_rows_there_are(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z")
    with pytest.raises(DataError, match=r"makes \d+ rows of 8 tokens, the recipe asks for 99\. Set samples to \d"):
        draw(Text(path=str(path), samples=99, tokens=8))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"text": "a"}\n{"text"', ":2: this is not JSON"),
        ('{"txt": "a"}', ":1: there is no 'text' and no 'messages' here; there is txt."),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, place):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=place):
        draw(Text(path=str(path)))


def test_a_missing_file_and_an_unknown_kind_of_file_are_named(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        Text(path=str(tmp_path / "none.txt")).identity()
    with pytest.raises(ValidationError, match="neither a"):
        Text(path="a.csv")


def test_the_identity_follows_the_texts_bytes_and_not_its_place(tmp_path):
    one, two, three = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    one.write_text("x")
    two.write_text("x")
    three.write_text("y")
    assert Text(path=str(one)).identity() == Text(path=str(two)).identity() != Text(path=str(three)).identity()


def test_a_config_survives_the_way_through_a_stage_file():
    adapter = TypeAdapter(CalibratorConfig)
    config = Self(samples=3, tokens=7)
    assert adapter.validate_python(json.loads(config.model_dump_json(by_alias=True))) == config
    assert adapter.validate_python({"kind": "self", "tokens": 7}).tokens_per_sample == 7


def test_the_documents_that_tokens_are_drawn_from_can_be_looked_at(tmp_path):
    """All of them, and not only the rows that were drawn: which those are depends on the tokenizer."""
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.txt"
    lines.write_text('{"text": "one\\ntwo"}\n\n{"text": "three"}\n', "utf-8")
    whole.write_text("one\ntwo\n", "utf-8")
    assert Text(path=str(lines), samples=1).texts() == ["one\ntwo", "three"]
    assert Text(path=str(whole)).texts() == ["one\ntwo\n"]
    assert Self().texts() == []
    with pytest.raises(DataError, match="No such file"):
        Text(path=str(tmp_path / "none.txt")).texts()


def test_allowing_an_overlap_changes_no_token_and_so_no_key(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    assert Text(path=str(path), allow_overlap=True).identity() == Text(path=str(path)).identity()
    assert not Text(path=str(path)).allow_overlap
    with pytest.raises(ValidationError, match="allow_overlap"):
        Self(allow_overlap=True)
