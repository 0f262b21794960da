"""A judge behind an endpoint, in a process of its own: what it is asked, what its word is worth, how it fails."""

import json
import time
import urllib.request

import pytest
from pydantic import ValidationError

from quantize.errors import DataError, EngineLost, MissingDependency, QuantizeError
from quantize.scorers import Judge, _chat_client
from quantize.scoring import Given

RIGHT, WRONG = Given("a", "2 + 2 =", "4", "4, I think"), Given("b", "3 + 3 =", "6", "7")
BY = "judge rules-rules-1 fp-1, template "


@pytest.fixture
def server(judge_server):
    return judge_server


@pytest.fixture(autouse=True)
def known_judge(server, monkeypatch):
    get(server, "/version?rules-1,fp-1")
    monkeypatch.setattr(_chat_client, "_PAUSE_SECONDS", 0.01)


def get(server, path):
    with urllib.request.urlopen(f"{server}{path}", timeout=10) as reply:
        return json.loads(reply.read())


@pytest.fixture
def judge(server):
    def made(model="rules", **changes):
        usual = {"prompt_template": "{answer}|{output}", "timeout": 10, "retries": 2}
        return Judge(url=f"{server}/v1", model=model, **{**usual, **changes})

    return made


def scored(scorer, *given, kept=None):
    opened = scorer.open(kept)
    try:
        return opened.score(given or (RIGHT, WRONG))
    finally:
        opened.close()


def asked(server, model):
    return [one for one in get(server, "/seen") if one["model"] == model]


def test_the_judge_is_asked_coldly_and_its_score_and_name_are_taken(judge, server):
    right, wrong = scored(judge(prompt_template="{answer}|{output} on {prompt} and {other}"))
    assert (right.score, right.found, right.problem) == (1.0, "4, I think", None)
    assert (wrong.score, wrong.found, wrong.problem) == (0.0, "7", None)
    assert right.by == wrong.by
    assert right.by.startswith(BY)
    request = asked(server, "rules")[-2:]
    assert {one["path"] for one in request} == {"/v1/chat/completions"}
    assert {(one["temperature"], one["max_tokens"]) for one in request} == {(0, 512)}
    contents = {one["messages"][0]["content"] for one in request}
    assert contents == {"4|4, I think on 2 + 2 = and {other}", "6|7 on 3 + 3 = and {other}"}


def test_what_is_filled_in_is_not_filled_again(judge, server):
    scored(judge("rules-literal"), Given("a", "p", "t", "say {answer} and {prompt}"))
    assert asked(server, "rules-literal")[0]["messages"][0]["content"] == "t|say {answer} and {prompt}"


def test_a_score_on_a_scale_is_a_share_of_it(judge):
    right, wrong = scored(judge("tenths", scale=(0, 10)))
    assert (right.score, wrong.score) == (1.0, 0.25)
    (beyond,) = scored(judge("tenths"), RIGHT)
    assert beyond.score == 0.0
    assert "no score from 0 to 1: …'Not bad. Score: 10'" in beyond.problem


def test_a_reply_without_a_score_is_a_problem_of_that_item(judge):
    (one,) = scored(judge("chatty"), RIGHT)
    assert (one.score, one.found) == (0.0, "4, I think")
    assert one.problem == "the judge's reply has no score from 0 to 1: …'I like it.'"
    assert one.by is not None


READ = [("1", 1.0), ("Score: 0.5.", 0.5), ("**1**", 1.0), ("7/1", None), ("0-1", None), ("1 of them", None), ("", None)]


@pytest.mark.parametrize(("text", "value"), READ)
def test_the_number_at_the_end_counts_unless_it_is_part_of_another(judge, text, value):
    from quantize.scorers._judging import _number, compiled

    assert _number(compiled(judge().reply), text) == value


@pytest.mark.parametrize("way", ["fails", "busy", "cuts"])
def test_what_may_pass_is_tried_again(judge, server, way):
    started = time.monotonic()
    (one,) = scored(judge(f"{way}-2"), RIGHT)
    assert (one.score, one.problem) == (1.0, None)
    assert len(asked(server, f"{way}-2")) == 3
    assert (time.monotonic() - started > 2) == (way == "busy"), "it waits as long as it is asked to"


def test_a_judge_that_times_out_is_tried_again_and_then_the_stage_fails(judge, server):
    (one,) = scored(judge("hangs-1", timeout=0.5), RIGHT)
    assert one.score == 1.0
    with pytest.raises(EngineLost, match=r"did not answer in 3 tries: no answer in 0\.5 seconds\. Run again") as caught:
        scored(judge("hangs-99", timeout=0.5), RIGHT)
    assert caught.value.where == f"{server}/v1/chat/completions"
    assert len(asked(server, "hangs-99")) == 3


def test_a_judge_that_sends_a_byte_at_a_time_is_out_of_time_too(judge):
    started = time.monotonic()
    with pytest.raises(EngineLost, match=r"no answer in 0\.5 seconds"):
        scored(judge("drips", timeout=0.5, retries=1), RIGHT)
    assert time.monotonic() - started < 10


def test_nobody_there_is_said(judge):
    with pytest.raises(EngineLost, match=r"did not answer in 1 tries: .*refused"):
        scored(Judge(url="http://127.0.0.1:9", model="m", prompt_template="{output}", retries=0), RIGHT)


def test_what_was_judged_before_a_failure_is_kept_and_asked_no_more(judge, server, tmp_path):
    scorer = judge("fails-0", at_once=1)
    scored(scorer, RIGHT, kept=tmp_path)
    lost = Given("c", "5 + 5 =", "10", "the judge dies at this one")
    (file,) = tmp_path.iterdir()
    broken = scorer.model_copy(update={"url": "http://127.0.0.1:9", "retries": 0})
    with pytest.raises(EngineLost):
        scored(broken, RIGHT, WRONG, lost, kept=tmp_path)
    assert len(asked(server, "fails-0")) == 1
    # A kill in the middle of a line.
    with file.open("ab") as text:
        text.write(b'{"key": "half')
    found = scored(scorer, RIGHT, WRONG, RIGHT, kept=tmp_path)
    assert [one.score for one in found] == [1.0, 0.0, 1.0]
    assert [one["messages"][0]["content"] for one in asked(server, "fails-0")] == ["4|4, I think", "6|7"]
    again = scored(scorer, RIGHT, WRONG, kept=tmp_path)
    assert again == found[:2]
    assert [one["messages"][0]["content"] for one in asked(server, "fails-0")] == ["4|4, I think", "6|7"]


def test_an_answer_that_is_given_twice_is_judged_once(judge, server):
    scored(judge("rules-once"), RIGHT, RIGHT, Given("other", "2 + 2 =", "4", "4, I think"))
    assert len(asked(server, "rules-once")) == 1


def test_another_question_to_the_judge_is_another_judgement(judge, tmp_path):
    for scorer in (judge(), judge(prompt_template="{answer}|{output}!"), judge(version="rules-rules-1 fp-1")):
        scored(scorer, RIGHT, kept=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    identities = [judge().identity(), judge(prompt_template="{output}").identity(), judge("other").identity()]
    assert len({json.dumps(one) for one in identities}) == 3
    moved = judge(timeout=5, retries=1, at_once=2, api_key_env="KEY").model_copy(update={"url": "http://x"})
    assert moved.identity() == judge().identity(), "how it is reached is no part of it"


def test_another_version_has_another_name_and_one_that_is_not_wanted_is_an_error(judge, server):
    (before,) = scored(judge(), RIGHT)
    get(server, "/version?rules-1,fp-2")
    (after,) = scored(judge(), RIGHT)
    assert before.by != after.by
    (blind,) = scored(judge(by_fingerprint=False), RIGHT)
    assert blind.by.startswith("judge rules-rules-1, template ")
    with pytest.raises(QuantizeError, match="the judge is 'rules-rules-1 fp-2' now, and the recipe names 'rules-1'"):
        scored(judge(version="rules-1"), RIGHT)


def test_the_key_is_sent_and_never_told(judge, server, monkeypatch):
    with pytest.raises(MissingDependency, match="the variable JUDGE_KEY, which holds the judge's key, is not set"):
        scored(judge(api_key_env="JUDGE_KEY"), RIGHT)
    monkeypatch.setenv("JUDGE_KEY", "a-secret-key")
    scored(judge("rules-key", api_key_env="JUDGE_KEY"), RIGHT)
    assert asked(server, "rules-key")[0]["key"] == "Bearer a-secret-key"
    monkeypatch.setenv("JUDGE_KEY", "another-secret")
    with pytest.raises(DataError, match=r"the judge refuses: 401 .*no such key: Bearer \*\*\*") as caught:
        scored(judge("rules-key", api_key_env="JUDGE_KEY"), RIGHT)
    assert "another-secret" not in str(caught.value)
    assert len(asked(server, "rules-key")) == 2, "a refusal is not tried again"


FORBIDDEN = Given("f", "5 + 5 =", "10", "forbidden")


@pytest.mark.parametrize("code", [400, 413, 422])
def test_an_answer_that_the_judge_refuses_is_a_problem_of_that_item(judge, server, tmp_path, monkeypatch, code):
    monkeypatch.setenv("JUDGE_KEY", "a-secret-key")
    scorer = judge(f"picky-{code}", api_key_env="JUDGE_KEY")
    right, refused, wrong = scored(scorer, RIGHT, FORBIDDEN, WRONG, kept=tmp_path)
    assert [(one.score, one.problem) for one in (right, wrong)] == [(1.0, None), (0.0, None)]
    assert (refused.score, refused.found, refused.by) == (0.0, "forbidden", None)
    assert refused.problem.startswith(f"the judge refuses: {code} ")
    assert "context_length_exceeded" in refused.problem and "a-secret-key" not in refused.problem
    # What was judged before says that the judge answers others; what it refused is asked again another time.
    (again,) = scored(scorer, FORBIDDEN, kept=tmp_path)
    assert again == refused
    assert len(asked(server, f"picky-{code}")) == 4


def test_a_judge_that_refuses_every_answer_is_an_error(judge):
    with pytest.raises(DataError, match=r"the judge refuses: 400 .*context_length_exceeded"):
        scored(judge("picky-400"), FORBIDDEN)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_judge_that_refuses_whoever_asks_is_an_error(judge, code):
    with pytest.raises(DataError, match=f"the judge refuses: {code}"):
        scored(judge(f"picky-{code}"), RIGHT, FORBIDDEN)


def test_a_redirect_is_not_followed_with_the_key(judge, server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-secret-key")
    with pytest.raises(DataError, match="the judge refuses: 302"):
        scored(judge("moved", api_key_env="JUDGE_KEY"), RIGHT)
    assert asked(server, "elsewhere") == []


def test_what_is_no_chat_completion_is_said(judge):
    with pytest.raises(DataError, match="none of OpenAI's chat completions"):
        scored(judge("wrong"), RIGHT)


BAD = [
    ({"prompt_template": "{answer}"}, "has no {output}: the judge would not see what the model said"),
    ({"scale": (1, 1)}, "scale goes from worst to best"),
    ({"reply": "[0-9]"}, "has 0 groups"),
    ({"api_key_env": "sk-123"}, "String should match pattern"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_a_judge_that_cannot_be_asked_is_refused_when_the_recipe_is_read(judge, changes, words):
    with pytest.raises(ValidationError) as caught:
        judge(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("url", ["api.example.com", "file:///etc/passwd", "https://me:secret@example.com"])
def test_only_a_plain_address_is_one(url):
    with pytest.raises(ValidationError, match="not the address of an endpoint"):
        Judge(url=url, model="m", prompt_template="{output}")
