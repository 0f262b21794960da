"""Conversations: asked by the model's own template, with exactly the ids that its tokenizer makes of them."""

import json
from datetime import datetime

import pytest
from chat_models import BOS, CHECKPOINT, TURNS, chat_model, sums, write_items
from program import command, tiny_recipe, write_recipe

from quantize.chat import chat_template
from quantize.engines import Transformers
from quantize.errors import DataError
from quantize.metrics import Items
from quantize.metrics._rows import read_rows

WITH_BOS = BOS + TURNS


@pytest.fixture
def heard(monkeypatch):
    """The ids that the model was given to go on from, and those that were scored, padding left out."""
    from quantize.engines._shared_prefix import SharedPrefixLM

    ids = []
    generate, score = SharedPrefixLM._model_generate, SharedPrefixLM._loglikelihood_tokens

    def watched(self, context, *arguments, **options):
        mask = options.get("attention_mask")
        rows = zip(context.tolist(), mask.tolist() if mask is not None else [[1] * context.shape[1]], strict=True)
        ids.extend([token for token, seen in zip(row, kept, strict=True) if seen] for row, kept in rows)
        return generate(self, context, *arguments, **options)

    def scored(self, requests, *arguments, **options):
        ids.extend(prompt + choice for _, prompt, choice in requests)
        return score(self, requests, *arguments, **options)

    monkeypatch.setattr(SharedPrefixLM, "_model_generate", watched)
    monkeypatch.setattr(SharedPrefixLM, "_loglikelihood_tokens", scored)
    return ids


@pytest.mark.parametrize("adds_bos", [True, False], ids=["tokenizer adds BOS", "tokenizer adds none"])
@pytest.mark.parametrize("template", [WITH_BOS, TURNS], ids=["template writes BOS", "template writes none"])
def test_the_engine_is_given_the_ids_that_the_tokenizer_makes_of_a_conversation(
    measured, tmp_path, heard, template, adds_bos
):
    """Not one BOS more, whoever writes it; special tokens of the template are tokens and not letters."""
    folder = chat_model(tmp_path / "model", template=template, adds_bos=adds_bos)
    session = Transformers().open(folder, "cpu")
    free = sums(3)
    chosen = [{**item, "id": f"choice-{i}", "choices": [" 1", " 2"], "answer": 0} for i, item in enumerate(sums(2))]
    for item in chosen:
        item["messages"] = [{"role": "user", "content": f"{item['id']} is"}]
    plain = {"id": "plain", "prompt": "3 plus 4 is", "answer": "7"}
    path = write_items(tmp_path / "items.jsonl", [*free, *chosen, plain])
    measured(Items(name="chat", path=path, max_new_tokens=2), session, baseline=folder)
    expected = [session.chat(item["messages"]) for item in free]
    expected += [session.chat(item["messages"]) + session.encode(" 1") for item in chosen]
    expected += [session.chat(item["messages"]) + session.encode(" 2") for item in chosen]
    expected.append(session.tokenize("3 plus 4 is"))
    assert sorted(heard) == sorted(expected)
    bos = session.tokenizer.bos_token_id
    chats = [ids for ids in heard if ids != expected[-1]]
    assert {ids.count(bos) for ids in chats} == {int(template == WITH_BOS)}
    assert expected[-1].count(bos) == int(adds_bos), "a plain prompt is still asked as the tokenizer has it"
    assert session.tokenizer.convert_tokens_to_ids("<|pad|>") in chats[0]


def test_rows_hold_the_text_that_was_asked(measured, baseline, tmp_path):
    path = write_items(tmp_path / "items.jsonl", sums(2))
    _, out = measured(Items(name="chat", path=path, max_new_tokens=2), baseline)
    prompts = {row["item_id"]: row["prompt"] for row in read_rows(out)}
    assert prompts["chat-1"] == "System: Answer briefly.\nUser: 1 plus 2 is\nAssistant:"


def test_another_template_is_another_eval(measured, tmp_path):
    path = write_items(tmp_path / "items.jsonl", sums(2))
    metric, found = Items(name="chat", path=path, max_new_tokens=2), []
    for number, template in enumerate([TURNS, TURNS, TURNS.replace("assistant:", "answer:")]):
        folder = chat_model(tmp_path / str(number), template=template, adds_bos=False)
        found.append(measured(metric, Transformers().open(folder, "cpu"), baseline=folder))
    digests = [arm.dataset_digest for arm, _ in found]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(DataError, match="asked different things"):
        metric.compare(found[0][1], found[2][1], 0.0)


def test_a_model_without_a_template_is_named_before_it_is_loaded(job_for, tmp_path):
    folder = chat_model(tmp_path / "model", template=None, adds_bos=False)
    path = write_items(tmp_path / "items.jsonl", sums(2))
    with pytest.raises(DataError, match=r"has no chat template .*Give the items a `prompt`") as caught:
        Items(name="chat", path=path).measure(job_for(lambda: pytest.fail("the model was loaded"), baseline=folder))
    assert caught.value.where == str(folder)


def test_plan_knows_that_a_model_has_no_template(tmp_path):
    folder = chat_model(tmp_path / "model", template=None, adds_bos=False)
    evals = [{"kind": "items", "name": "facts", "path": write_items(tmp_path / "items.jsonl", sums(80))}]
    recipe = write_recipe(tmp_path, tiny_recipe(model={"kind": "directory", "path": str(folder)}, evals=evals))
    said = command("plan", recipe, "--store", tmp_path / "store")
    assert said.returncode != 0
    assert "evals.facts: its items are conversations (`messages`), and the model has no chat template" in said.stderr
    (folder / "chat_template.jinja").write_text(TURNS, "utf-8")
    said = command("plan", recipe, "--store", tmp_path / "store")
    assert "chat template" not in said.stderr


def test_a_template_that_refuses_the_conversation_names_the_item(job_for, tmp_path):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TURNS
    folder = chat_model(tmp_path / "model", template=refuses, adds_bos=False)
    path = write_items(tmp_path / "items.jsonl", sums(2))
    with pytest.raises(DataError, match="does not take the conversation: no system here") as caught:
        Items(name="chat", path=path).measure(job_for(lambda: pytest.fail("the model was loaded"), baseline=folder))
    assert caught.value.where == "item 'chat-0'"


def test_a_template_that_asks_for_the_date_is_told_the_same_one_every_day(tmp_path):
    folder = chat_model(tmp_path / "m", template="{{ strftime_now('%d %B %Y %H') }}", adds_bos=False)
    said = chat_template(folder, "").render([("user", "What day is it?")], "a")
    assert said == "26 July 2024 12" != datetime.now().strftime("%d %B %Y %H")  # noqa: DTZ005


def test_each_item_ends_where_it_says_and_may_be_as_long_as_it_says(measured, baseline, tmp_path):
    free = [
        {"id": "line", "prompt": "7 plus 4 is", "answer": "x"},
        {"id": "long", "prompt": "7 plus 4 is", "answer": "x", "stop": [], "max_tokens": 30},
        {"id": "short", "prompt": "8 plus 4 is", "answer": "x", "stop": [], "max_tokens": 3},
        {"id": "word", "prompt": "9 plus 4 is", "answer": "x", "stop": ["plus"], "max_tokens": 30},
    ]
    free[1]["prompt"] = "7 plus 5 is"
    path = write_items(tmp_path / "items.jsonl", free)
    _, out = measured(Items(name="free", path=path, max_new_tokens=12), baseline)
    rows = {row["item_id"]: row for row in read_rows(out)}
    assert rows["line"]["tokens"] <= 12
    assert "\n" in rows["long"]["answer"] and 12 < rows["long"]["tokens"] <= 30
    assert rows["short"]["tokens"] == 3 and rows["short"]["parsed"] == 0.0
    assert "plus" not in rows["word"]["answer"] and rows["word"]["answer"]


@pytest.mark.parametrize("form", ["free", "choices", "chat"])
def test_an_item_that_the_engine_cannot_read_whole_is_refused_before_any_is_asked(
    measured, baseline, tmp_path, heard, form
):
    words = " ".join(["one and"] * 600)
    long = {
        "free": {"id": "long", "prompt": words, "answer": "x"},
        "choices": {"id": "long", "prompt": words, "choices": [" a", " b"], "answer": 0},
        "chat": {"id": "long", "messages": [{"role": "user", "content": words}], "answer": "x"},
    }[form]
    path = write_items(tmp_path / "items.jsonl", [*sums(3), long])
    with pytest.raises(DataError, match=r"the item is too long: it has 1\d+ tokens.* the engine reads 1024") as error:
        measured(Items(name="free", path=path, max_new_tokens=4), baseline)
    assert error.value.where == "item 'long'"
    assert heard == []


def test_an_item_that_just_fits_is_read_whole(measured, baseline, tmp_path, heard):
    ids = baseline.encode(" one" * 2000)[:1020]
    prompt = baseline.tokenizer.decode(ids)
    assert len(baseline.encode(prompt)) == 1020
    path = write_items(tmp_path / "items.jsonl", [{"id": "long", "prompt": prompt, "answer": "x"}])
    metric = Items(name="free", path=path, max_new_tokens=4)
    measured(metric, baseline)
    assert [len(row) for row in heard] == [1020]
    with pytest.raises(DataError, match="its answer may have 5, and the engine reads 1024"):
        measured(metric.model_copy(update={"max_new_tokens": 5}), baseline)


CHAT = {"id": "b", "messages": [{"role": "user", "content": "1 plus 1 is"}], "answer": "2"}
BAD = {
    "both": ({**CHAT, "prompt": "x"}, "a 'prompt' or 'messages', not both"),
    "no list": ({**CHAT, "messages": "x"}, "'messages' is a list of messages"),
    "none": ({**CHAT, "messages": []}, "'messages' is a list of messages, and not empty"),
    "no role": ({**CHAT, "messages": [{"content": "x"}]}, "a message has a 'role' and a 'content'"),
    "a tool": ({**CHAT, "messages": [{"role": "user", "content": "x", "name": "y"}]}, "and nothing else"),
    "parts": ({**CHAT, "messages": [{"role": "user", "content": [{"text": "x"}]}]}, "role and content are texts"),
    "blank": ({**CHAT, "messages": [{"role": "user", "content": " "}]}, "the messages say nothing"),
    "answered": ({**CHAT, "messages": [{"role": "assistant", "content": "2"}]}, "there is nothing to answer"),
    "an empty stop": ({**CHAT, "stop": [""]}, "'stop' is a list of texts, none of them empty"),
    "a stop alone": ({**CHAT, "stop": "."}, "'stop' is a list of texts"),
    "no tokens": ({**CHAT, "max_tokens": 0}, "'max_tokens' is a whole number of at least 1"),
    "a truth": ({**CHAT, "max_tokens": True}, "'max_tokens' is a whole number of at least 1"),
    "a stop for choices": ({**CHAT, "choices": ["a", "b"], "answer": 0, "stop": ["."]}, "'stop' has no meaning"),
    "asked twice": ({**CHAT, "id": "c"}, "item 'c' asks the same as 'a'"),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_conversation_is_named_with_its_line(tmp_path, line, words):
    path = tmp_path / "items.jsonl"
    path.write_text(f"{json.dumps({**CHAT, 'id': 'a'})}\n{json.dumps(line)}\n", "utf-8")
    with pytest.raises(DataError, match=words) as caught:
        Items(name="mine", path=str(path)).identity()
    assert caught.value.where == f"{path}:2"


def test_a_stop_and_a_length_make_another_eval(tmp_path):
    def identity(**more):
        return Items(name="m", path=write_items(tmp_path / "items.jsonl", sums(2, **more))).identity()["items"]

    assert len({identity(), identity(stop=["."]), identity(max_tokens=9), identity(stop=[])}) == 4


def test_an_eval_that_says_nothing_new_keeps_its_identity():
    """What was measured before items knew of conversations is found again."""
    metric = Items(name="facts", path=str(CHECKPOINT.parent / "items.jsonl"))
    asked = "d784160f4234732b22b4e001b9ec8754de27c39d4027ccdf239c9751ed02703b"
    settings = {"kind": "items", "max_new_tokens": 64, "generations": 1, "temperature": 0.0}
    assert metric.identity() == {**settings, "items": asked}
    assert metric.dataset() == asked
