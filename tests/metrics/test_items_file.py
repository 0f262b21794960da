"""Eval items as users write them: what is read, and that each bad line is named."""

import json
from pathlib import Path

import pytest

from quantize.errors import DataError
from quantize.metrics import Items

TINY = Path(__file__).parents[1] / "tiny_llama"
GOOD = {"id": "a", "prompt": "1 plus 1 is", "choices": [" 2", " 3"], "answer": 0}
FREE = {"id": "b", "prompt": "1 plus 1 is", "answer": "2"}


def without(*keys):
    return {key: value for key, value in GOOD.items() if key not in keys}


def items(tmp_path, *lines, name="items.jsonl"):
    """A metric over a file of these lines, objects or raw text."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return Items(name="mine", path=str(path))


BAD = {
    "broken JSON": ('{"id": "b", "prompt"', "this line is not JSON"),
    "no object": ("[1, 2]", "an item is a JSON object"),
    "an unknown key": ({**GOOD, "id": "b", "anwser": 1}, "there is no key 'anwser' in an item. Keys: answer, choices"),
    "no id": (without("id"), "the key 'id' is missing"),
    "no prompt": ({**without("prompt"), "id": "b"}, "the key 'prompt' is missing"),
    "no answer": ({**without("answer"), "id": "b"}, "the key 'answer' is missing"),
    "a number as id": ({**GOOD, "id": 7}, "'id' must be a text"),
    "an empty prompt": ({**GOOD, "id": "b", "prompt": " "}, "'prompt' must be a text that is not empty"),
    "an empty slice": ({**GOOD, "id": "b", "slice": ""}, "'slice' must be a text that is not empty"),
    "no text": ({**GOOD, "id": "b", "prompt": "\ud800"}, "half of a surrogate pair"),
    "one choice": ({**GOOD, "id": "b", "choices": [" 2"]}, "at least two texts"),
    "an empty choice": ({**GOOD, "id": "b", "choices": [" 2", ""]}, "at least two texts"),
    "equal choices": ({**GOOD, "id": "b", "choices": [" 2", " 2"]}, "two choices are the same"),
    "an answer beyond": ({**GOOD, "id": "b", "answer": 2}, "the answer 2 is no choice. Give its index, 0 to 1"),
    "an answer before": ({**GOOD, "id": "b", "answer": -1}, "the answer -1 is no choice"),
    "a truth as answer": ({**GOOD, "id": "b", "answer": True}, "the answer True is no choice"),
    "an unknown answer": ({**GOOD, "id": "b", "answer": " 4"}, "the answer ' 4' is no choice"),
    "an empty answer": ({**FREE, "answer": " "}, "'answer' is the text that must be generated"),
    "an answer of two lines": ({**FREE, "answer": "2\nor 3"}, "'answer' has several lines"),
    "an index alone": ({**FREE, "answer": 2}, "'answer' is the text that must be generated"),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, words):
    raw = line if isinstance(line, str) else json.dumps(line)
    metric = items(tmp_path, GOOD, "", raw)
    with pytest.raises(DataError) as caught:
        metric.identity()
    assert caught.value.where == f"{tmp_path / 'items.jsonl'}:3"
    assert words in str(caught.value)


def test_a_cluster_that_only_some_items_have_is_named_at_the_first_line_without(tmp_path):
    """An item that stands alone by oversight would count as an independent one."""
    lines = [{**GOOD, "id": "a", "cluster": "p"}, {**GOOD, "id": "b", "prompt": "2"}, "", {**FREE, "id": "c"}]
    metric = items(tmp_path, *lines)
    with pytest.raises(DataError, match=r"item 'b' has no cluster and others have \(2 of 3 have none\)") as caught:
        metric.identity()
    assert caught.value.where == f"{tmp_path / 'items.jsonl'}:2"
    items(tmp_path, *({**line, "cluster": "p"} for line in lines if line))
    assert metric.cluster_sizes() == [3]


def test_clusters_are_counted_over_all_items_and_within_a_slice(tmp_path):
    groups = [("p", "s"), ("q", "s"), ("p", "s"), ("p", None), ("r", "t")]
    lines = [
        {**GOOD, "id": f"{i}", "prompt": f"{i}", "cluster": c, **({"slice": s} if s else {})}
        for i, (c, s) in enumerate(groups)
    ]
    metric = items(tmp_path, *lines)
    assert sorted(metric.cluster_sizes()) == [1, 1, 3]
    assert sorted(metric.cluster_sizes("s")) == [1, 2]
    assert metric.cluster_sizes("t") == [1]
    assert metric.slices() == ("s", "t")


def test_an_id_that_is_used_twice_is_named_with_both_places(tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "two.jsonl").write_text(f"{json.dumps(FREE)}\n{json.dumps(GOOD)}\n")
    with pytest.raises(DataError) as caught:
        Items(name="mine", path=str(tmp_path)).cluster_sizes()
    assert caught.value.where == f"{tmp_path / 'two.jsonl'}:2"
    assert f"the id 'a' was used at {tmp_path / 'one.jsonl'}:1 already" in str(caught.value)


TWIN = {**GOOD, "id": "z", "answer": 1, "slice": "other"}


@pytest.mark.parametrize("clusters", [(None, None), ("p", "q")])
def test_two_items_that_ask_the_same_are_named_with_both_lines(tmp_path, clusters):
    """Under two ids they would count as two; another answer or slice makes no other question."""
    lines = [
        {**line, **({"cluster": cluster} if cluster else {})}
        for line, cluster in zip((GOOD, FREE, TWIN), (clusters[0], clusters[0], clusters[1]), strict=True)
    ]
    with pytest.raises(DataError, match="item 'z' asks the same as 'a'") as caught:
        items(tmp_path, *lines).identity()
    assert caught.value.where == f"{tmp_path / 'items.jsonl'}:3"
    assert f"({tmp_path / 'items.jsonl'}:1)" in str(caught.value)
    assert "Remove one, or give both the same cluster" in str(caught.value)


def test_items_that_ask_the_same_are_one_unit_where_they_share_a_cluster(tmp_path):
    metric = items(tmp_path, *({**line, "cluster": "p"} for line in (GOOD, TWIN)), {**FREE, "cluster": "q"})
    assert sorted(metric.cluster_sizes()) == [1, 2]


def test_the_same_prompt_with_other_choices_asks_something_else(tmp_path):
    assert items(tmp_path, GOOD, {**TWIN, "choices": [" 2", " 4"]}, FREE).cluster_sizes() == [1, 1, 1]


def test_only_what_is_answered_freely_can_be_unreadable(tmp_path):
    """A gate on `parsed` has so many items, and not those that are chosen from."""
    free = [{**FREE, "id": f"f{i}", "prompt": f"{i}", "slice": "s" if i else "t"} for i in range(3)]
    metric = items(tmp_path, GOOD, *free)
    assert metric.cluster_sizes() == [1] * 4
    assert metric.cluster_sizes(quantity="parsed") == [1] * 3
    assert metric.cluster_sizes("s", "parsed") == [1] * 2
    assert items(tmp_path, GOOD, name="chosen.jsonl").cluster_sizes(quantity="parsed") == []


def test_the_dataset_is_what_is_asked_in_whatever_order_and_under_whatever_name(tmp_path):
    """Attempts are counted on it: a shuffled file, another name or other sampling is no new eval set."""
    one = items(tmp_path, GOOD, FREE, name="one.jsonl")
    other = items(tmp_path, FREE, GOOD, name="other.jsonl")
    renamed = other.model_copy(update={"name": "new", "max_new_tokens": 7, "temperature": 0.5})
    assert one.dataset() == other.dataset() == renamed.dataset()
    assert one.dataset() != items(tmp_path, GOOD, {**FREE, "answer": "3"}, name="third.jsonl").dataset()


def test_a_missing_file_an_empty_one_and_a_folder_without_items_are_named(tmp_path):
    for name, words in {"none.jsonl": "no such eval set", "*.jsonl": "no such eval set"}.items():
        with pytest.raises(DataError, match=words) as caught:
            Items(name="mine", path=str(tmp_path / name)).cluster_sizes()
        assert caught.value.where == str(tmp_path / name)
    with pytest.raises(DataError, match=r"holds no \.jsonl file"):
        Items(name="mine", path=str(tmp_path)).cluster_sizes()
    with pytest.raises(DataError, match="there are no items"):
        items(tmp_path, "", "").cluster_sizes()
    (tmp_path / "items.jsonl").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        Items(name="latin", path=str(tmp_path)).cluster_sizes()


def test_a_line_separator_within_a_text_does_not_end_the_line(tmp_path):
    metric = items(
        tmp_path, *({**GOOD, "id": f"{i}", "prompt": f"one{mark}two"} for i, mark in enumerate("\u2028\x85"))
    )
    assert len(metric.cluster_sizes()) == 2


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(item).encode() for item in (GOOD, FREE)))
    assert len(Items(name="mine", path=str(path)).cluster_sizes()) == 2


def test_a_folder_and_a_glob_are_read_as_one_set(tmp_path):
    lines = (TINY / "items.jsonl").read_text().splitlines()
    for number in range(2):
        (tmp_path / f"part-{number}.jsonl").write_text("\n".join(lines[number::2]))
    (tmp_path / "README.md").write_text("not items")
    whole = Items(name="mine", path=str(TINY / "items.jsonl"))
    for path in (tmp_path, tmp_path / "part-*.jsonl"):
        parts = Items(name="mine", path=str(path))
        assert sum(parts.cluster_sizes()) == sum(whole.cluster_sizes()) == 200
        assert sum(parts.cluster_sizes("facts")) == sum(whole.cluster_sizes("facts")) == 100
    assert len(whole.cluster_sizes("other")) == 0


def test_an_answer_may_be_given_as_its_text(tmp_path):
    by_index = items(tmp_path, {**GOOD, "answer": 1}, name="index.jsonl").identity()
    by_text = items(tmp_path, {**GOOD, "answer": " 3"}, name="text.jsonl").identity()
    assert by_index == by_text
    assert by_index != items(tmp_path, GOOD, name="other.jsonl").identity()


def test_the_identity_follows_what_is_asked_and_not_where_it_stands(tmp_path):
    one = items(tmp_path, GOOD, FREE, name="one.jsonl").identity()
    assert one == items(tmp_path, json.dumps(GOOD, indent=None), "", FREE, name="two.jsonl").identity()
    for change in ({"prompt": "2 plus 0 is"}, {"choices": [" 2", " 4"]}, {"slice": "sums"}):
        assert one != items(tmp_path, {**GOOD, **change}, FREE, name=f"{change}.jsonl").identity()
    together = [items(tmp_path, {**GOOD, "cluster": "c"}, {**FREE, "cluster": c}, name=f"{c}.jsonl") for c in "cd"]
    assert one != together[0].identity() != together[1].identity() != one
    for how in ({"max_new_tokens": 8}, {"temperature": 0.5}, {"temperature": 0.5, "generations": 2}):
        assert one != Items(name="mine", path=str(tmp_path / "one.jsonl"), **how).identity()


def test_a_changed_file_is_read_again(tmp_path):
    metric = items(tmp_path, GOOD)
    assert len(metric.cluster_sizes()) == 1
    items(tmp_path, GOOD, FREE)
    assert len(metric.cluster_sizes()) == 2
