"""Requests: exact lengths, beginnings that no two share, one list for one seed; a user's prompts, and bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantize.benchmark.requests import Prompts, Shape, Synthetic, read
from quantize.errors import DataError, UsageError

TOKENIZER = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
SHAPES = [Shape(input=24, output=8), Shape(input=61, output=16)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=True)


@pytest.fixture
def beginning(tmp_path):
    """The same tokenizer, which puts a token before every text, as a server's will."""
    folder = tmp_path / "beginning"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        folder.joinpath(name).write_bytes((TOKENIZER / name).read_bytes())
    data = json.loads((folder / "tokenizer.json").read_text())
    first = data["added_tokens"][0]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            first["content"]: {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def written(config, out: Path, count: int, seed: int = 1, tokenizer: Path = TOKENIZER, context: int | None = None):
    out.mkdir(exist_ok=True)
    note = config.write(out, tokenizer, count, seed, context)
    return note, read(out / "requests.jsonl")


def prompts(folder: Path, *lines: object) -> Prompts:
    path = folder / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Prompts(path=path, output_tokens=8)


def test_every_prompt_has_exactly_its_shape_in_tokens_the_shapes_in_turn(tmp_path, tokenizer):
    told, requests = written(Synthetic(shapes=SHAPES), tmp_path, 50)
    assert [(r.input_tokens, r.output_tokens) for r in requests] == [(24, 8), (61, 16)] * 25
    assert all(len(tokenizer(r.prompt).input_ids) == r.input_tokens for r in requests)
    assert (told.requests, told.longest, told.note) == (50, 77, None)
    assert len({r.id for r in requests}) == 50


def test_what_the_tokenizer_puts_before_a_text_counts(tmp_path, beginning, tokenizer):
    _, requests = written(Synthetic(shapes=SHAPES), tmp_path / "out", 10, tokenizer=beginning)
    assert {len(tokenizer(r.prompt).input_ids) for r in requests} == {23, 60}
    _, own = written(prompts(tmp_path, {"prompt": "Ada lives"}), tmp_path / "out", 1, tokenizer=beginning)
    assert own[0].input_tokens == len(tokenizer("Ada lives").input_ids) + 1


def test_no_two_prompts_begin_alike(tmp_path, tokenizer):
    _, requests = written(Synthetic(shapes=SHAPES), tmp_path, 300)
    assert len({tuple(tokenizer(r.prompt).input_ids[:8]) for r in requests}) == 300


def test_the_seed_decides_the_list_and_nothing_else_does(tmp_path):
    own = prompts(tmp_path, *({"prompt": f"Who is {n}?"} for n in range(9)))
    for config in (Synthetic(shapes=SHAPES), own):
        for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
            written(config, tmp_path / folder, 20, seed)
        first, same, other = ((tmp_path / name / "requests.jsonl").read_bytes() for name in "abc")
        assert first == same and first != other


@pytest.mark.parametrize("length", [2, 3, 5, 9])
def test_short_prompts_are_exact_too(tmp_path, tokenizer, length):
    _, requests = written(Synthetic(shapes=[Shape(input=length, output=2)]), tmp_path, 8)
    assert {len(tokenizer(r.prompt).input_ids) for r in requests} == {length}


def test_a_shape_that_no_prompts_can_have_is_refused_with_its_place(tmp_path, beginning):
    with pytest.raises(DataError, match=r"shapes.0: .* 1 tokens .*Ask for longer prompts, or for fewer requests"):
        written(Synthetic(shapes=[Shape(input=1, output=2)]), tmp_path / "a", 500)
    with pytest.raises(DataError, match=r"shapes.1: .* makes 2 tokens of the shortest prompt, and input is 1"):
        written(Synthetic(shapes=[SHAPES[0], Shape(input=1, output=2)]), tmp_path / "b", 2, tokenizer=beginning)


def test_a_shape_over_the_context_is_refused_before_anything_is_written(tmp_path):
    config = Synthetic(shapes=SHAPES)
    assert config.longest() == 77
    config.check(77)
    config.check(None)
    for refuse in (lambda: config.check(76), lambda: config.write(tmp_path, TOKENIZER, 4, 1, 76)):
        with pytest.raises(UsageError, match=r"requests.shapes.1: a prompt of 61 .*16 are 77, over the 76"):
            refuse()
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}.*tokenizer does not load"):
        Synthetic(shapes=SHAPES).write(tmp_path, tmp_path, 1, 1)


def test_prompts_are_asked_as_they_are_each_once_with_their_own_lengths(tmp_path, tokenizer):
    own = prompts(tmp_path, {"prompt": "Who is Ada?", "output_tokens": 3}, {"prompt": "  two\u2028lines "}, "")
    told, requests = written(own, tmp_path, 2)
    assert {(r.prompt, r.output_tokens) for r in requests} == {("Who is Ada?", 3), ("  two\u2028lines ", 8)}
    assert all(r.input_tokens == len(tokenizer(r.prompt).input_ids) for r in requests)
    assert told.note is None and told.longest == max(r.input_tokens + r.output_tokens for r in requests)


def test_prompts_that_are_too_few_come_again_with_a_mark_in_front_and_it_is_said(tmp_path):
    own = prompts(tmp_path, {"prompt": "a b"}, {"prompt": "c d"}, {"prompt": "a b"}, {"prompt": "[2] c d"})
    told, requests = written(own, tmp_path, 9)
    texts = [r.prompt for r in requests]
    assert len(set(texts)) == 9
    assert all(text in ("a b", "c d") or text.startswith("[") for text in texts)
    assert "3 prompts and 9 requests" in told.note and "mark like '[2] '" in told.note
    asked = [text.split("] ")[-1] for text in texts]
    assert 4 <= asked.count("a b") <= 5  # two of four lines, two rounds and one more


def test_prompts_have_the_identity_of_what_they_say_and_not_of_their_file(tmp_path):
    (tmp_path / "other").mkdir()
    one = prompts(tmp_path, {"prompt": "a"}, {"prompt": "b", "output_tokens": 8})
    same = prompts(tmp_path / "other", {"output_tokens": 8, "prompt": "a"}, "", {"prompt": "b"})
    assert one.identity() == same.identity() and str(tmp_path) not in json.dumps(one.identity())
    assert one.identity() != one.model_copy(update={"output_tokens": 9}).identity()
    assert one.identity() != prompts(tmp_path / "other", {"prompt": "a"}, {"prompt": "c"}).identity()
    assert Synthetic().identity() != Synthetic(shapes=SHAPES).identity()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": ', "not JSON"),
        ('["a"]', "a prompt is a JSON object"),
        ({"text": "a"}, "no key 'text'"),
        ({"output_tokens": 4}, "the key 'prompt' is missing"),
        ({"prompt": "  "}, "a text that is not empty"),
        ({"prompt": ["a"]}, "a text that is not empty"),
        ({"prompt": "a", "output_tokens": 1}, "'output_tokens' is 1"),
        ({"prompt": "a", "output_tokens": True}, "'output_tokens' is True"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_spent(tmp_path, line, says):
    own = prompts(tmp_path, {"prompt": "a"}, line)
    for use in (own.identity, lambda: own.check(None), lambda: written(own, tmp_path, 2)):
        with pytest.raises(DataError) as error:
            use()
        assert f"prompts.jsonl:2: {says}"[:14] in str(error.value) and says in str(error.value)


def test_files_that_are_empty_absent_or_no_text_are_named(tmp_path):
    for change, says in (
        (lambda path: path.write_text("\n\n"), "there are no prompts"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
        (lambda path: path.unlink(), "cannot be read"),
    ):
        own = prompts(tmp_path, {"prompt": "a"})
        change(own.path)
        with pytest.raises(DataError, match=f"prompts.jsonl: .*{says}"):
            own.identity()


def test_a_prompt_over_the_context_is_named_with_its_line_and_the_limit(tmp_path, tokenizer):
    long = "Ada lives in green. " * 10
    own = prompts(tmp_path, {"prompt": "a"}, {"prompt": long})
    length = len(tokenizer(long).input_ids)
    written(own, tmp_path / "fits", 2, context=length + 8)
    with pytest.raises(
        DataError, match=f"prompts.jsonl:2: the prompt has {length} tokens and its answer 8, .* over the"
    ):
        written(own, tmp_path / "over", 1, context=length + 7)  # though one request would not have needed it
    assert own.longest() == 9
    with pytest.raises(DataError, match=r"prompts.jsonl:1: .* over the 8"):
        own.check(8)


def test_a_changed_list_of_requests_is_refused_with_its_line(tmp_path):
    written(Synthetic(shapes=SHAPES), tmp_path, 2)
    path = tmp_path / "requests.jsonl"
    path.write_text(path.read_text() + '{"id": "r"}\n')
    with pytest.raises(DataError, match=r"requests.jsonl:3: this line is no request"):
        read(path)
