"""Documents of every kind of file become rows as the recipe says, and nothing is padded or passed over in silence."""

from __future__ import annotations

import json
import shutil

import pytest
from program import TINY
from pydantic import ValidationError

from quantize.calibration import read_rows, save_rows, told
from quantize.calibrators import Text
from quantize.errors import DataError

CHECKPOINT = TINY / "checkpoint"
CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A dog."}]
RENDERED = "User: Who are you?\nAssistant: A dog.\n"
LONG = "The dog sees the cat. " * 20


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture
def write(tmp_path):
    """A function: rows -> the path of a JSONL or Parquet file of them."""

    def file(rows, suffix=".jsonl"):
        path = tmp_path / f"rows{suffix}"
        if suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        return str(path)

    return file


def draw(checkpoint=CHECKPOINT, **config):
    return Text(**config).draw(checkpoint, "cpu", lambda *_: None)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("rows", [[{"text": LONG, "id": 1}] * 3, [{"messages": CHAT}] * 9], ids=["texts", "chats"])
def test_a_file_of_either_kind_gives_the_same_rows(write, rows, suffix, tokenizer):
    drawn = draw(path=write(rows, suffix), samples=4, tokens=16)
    said = RENDERED if "messages" in rows[0] else LONG + tokenizer.eos_token
    whole = tokenizer(said * len(rows), add_special_tokens=False).input_ids
    table = [whole[start : start + 16] for start in range(0, len(whole) - 15, 16)]
    assert all(row.tolist() in table for row in drawn.rows)
    assert len(drawn.rows) == 4
    assert drawn.documents[0] == ("Who are you?\nA dog." if "messages" in rows[0] else LONG)
    assert drawn.facts == {"packing": "pack", "documents": len(rows), "empty": 0}


def test_a_truncated_row_is_one_document_and_a_short_one_is_not_padded(write, tokenizer):
    texts = ["A dog.", "", LONG, "The cat sees it.", "x"]
    drawn = draw(path=write([{"text": text} for text in texts]), samples=3, tokens=12, packing="truncate")
    assert [tokenizer.decode(row) for row in drawn.rows][:1] == ["A dog."]
    assert [len(row) for row in drawn.rows] == [
        min(12, len(tokenizer(text).input_ids)) for text in ("A dog.", LONG, "The cat sees it.")
    ]
    assert drawn.facts == {"packing": "truncate", "documents": 5, "empty": 1, "cut": 1}


def test_only_rows_that_were_drawn_count_as_cut(write):
    path = write([{"text": LONG}] * 5 + [{"text": "A dog sees a cat."}] * 5)
    cuts = {draw(path=path, samples=3, tokens=12, packing="truncate", seed=seed).facts["cut"] for seed in range(5)}
    assert len(cuts) > 1
    assert cuts <= {0, 1, 2, 3}


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_rows_come_back_from_disk_as_they_were_with_their_digests(write, tmp_path, packing):
    path = write([{"text": LONG[: 40 * n]} for n in range(1, 8)])
    drawn = draw(path=path, samples=5, tokens=20, packing=packing)
    save_rows(drawn.rows, tmp_path)
    kept = read_rows(tmp_path)
    assert [row.tolist() for row in kept] == [row.tolist() for row in drawn.rows]
    summary = told(drawn)
    assert summary["total_tokens"] == sum(map(len, kept))
    assert (summary["samples"], summary["tokens"], len(summary["rows"])) == (5, 20, 5)
    assert summary["shortest"] == min(map(len, kept))
    assert (summary["shortest"] < 20) == (packing == "truncate")
    assert summary["packing"] == packing


def test_a_chat_for_a_model_without_a_template_says_what_to_do(write, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(CHECKPOINT, bare)
    (bare / "chat_template.jinja").unlink()
    path = write([{"messages": CHAT}] * 9)
    with pytest.raises(DataError, match=r"no chat template .*Give the documents as `text` instead of `messages`"):
        draw(bare, path=path, samples=2, tokens=16)


def test_what_a_template_refuses_is_named_by_its_line(write, tmp_path):
    strict = tmp_path / "strict"
    shutil.copytree(CHECKPOINT, strict)
    (strict / "chat_template.jinja").write_text("{{ raise_exception('no system message, please') }}", "utf-8")
    path = write([{"text": LONG}, {"messages": [{"role": "system", "content": "Be kind."}, *CHAT]}])
    with pytest.raises(DataError, match="no system message, please") as caught:
        draw(strict, path=path, samples=1, tokens=16)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_field_may_be_named_and_one_that_is_not_there_is_an_error(write, suffix):
    path = write([{"body": LONG, "text": "other"}] * 3, suffix)
    assert draw(path=path, samples=1, tokens=16, field="body").documents[0] == LONG
    assert draw(path=path, samples=1, tokens=4).documents[0] == "other"
    with pytest.raises(DataError, match=r"there is no 'prompt' here; there is body, text\. Name the field"):
        draw(path=path, samples=1, tokens=16, field="prompt")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": 7}, "'text' is neither a string nor a list of messages, but a int"),
        ({"messages": ["Hi"]}, "a list, and not of"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "with a string each"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "a message has 'tool_calls'"),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({}, "there is no 'text' and no 'messages' here; there is nothing"),
    ],
)
def test_a_row_that_is_no_document_is_named_by_its_line(write, row, said):
    path = write([{"text": "a"}, row])
    with pytest.raises(DataError, match=said) as caught:
        Text(path=path).texts()
    assert caught.value.where == f"{path}:2"


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("text", "utf-8")
    with pytest.raises(DataError, match=r"cannot be read .*Name a readable UTF-8 text, JSONL or Parquet file"):
        Text(path=str(path)).texts()


@pytest.mark.parametrize("packing", ["pack", "truncate"])
@pytest.mark.parametrize(
    ("rows", "said"), [([], "holds no document"), ([{"text": " "}] * 40, "holds 40 documents, all empty")]
)
def test_calibration_without_a_word_is_an_error(write, rows, said, packing):
    with pytest.raises(DataError, match=rf"{said}\. Add text"):
        draw(path=write(rows), samples=2, tokens=8, packing=packing)


def test_a_new_setting_that_says_what_was_always_done_changes_no_key(write):
    path = write([{"text": "a"}])
    before = {"kind", "samples", "tokens", "seed", "type", "sha256"}
    assert set(Text(path=path).identity()) == before
    assert set(Text(path=path, packing="pack", field=None).identity()) == before
    assert set(Text(path=path, packing="truncate", field="text").identity()) == before | {"packing", "field"}


def test_plain_text_has_no_fields():
    with pytest.raises(ValidationError, match=r"a \.txt file is one document and has no `field`"):
        Text(path="a.txt", field="text")
