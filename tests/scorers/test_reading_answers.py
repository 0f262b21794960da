"""What each scorer finds in a text, and when it finds none."""

import json
import time

import pytest
from pydantic import TypeAdapter, ValidationError

from quantize.scorers import JsonSchema, Numeric, Pattern, ScorerConfig
from quantize.scoring import Given

SCORERS = TypeAdapter(ScorerConfig)
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "number"}}, "required": ["city"]}


def scored(config, answer, target=""):
    scorer = config if not isinstance(config, dict) else SCORERS.validate_python(config)
    (one,) = scorer.open(None).score([Given("a", "?", target, answer)])
    return one


def outcome(config, answer, target=""):
    """right, wrong, or none where no answer is found; and never a score for none."""
    one = scored(config, answer, target)
    assert one.problem is None
    if one.found is None:
        assert one.score == 0.0
        return "none"
    return {1.0: "right", 0.0: "wrong"}[one.score]


EXACT = [
    (" Paris\n", "Paris", "right"),
    ("paris", "Paris", "wrong"),
    ("Paris.", "Paris", "wrong"),
    (" \n", "Paris", "none"),
]
NORMALISED = [
    ("The  Eiffel-Tower!", "eiffel tower", "right"),
    ("ﬁne", "fine", "right"),
    ("Straße", "STRASSE", "right"),
    ("\uff21 cat", "the cat", "right"),
    ("don't", "dont", "right"),
    ("A", "a", "right"),
    ("the", "a", "wrong"),
    ("and/or", "and or", "right"),
    ("cats", "cat", "wrong"),
    ("thecat", "the cat", "wrong"),
    ("…!?", "x", "none"),
    ("", "x", "none"),
]
NUMERIC = [
    ({}, "First 3, so it is 42.", "42", "right"),
    ({}, "42, not 3", "42", "wrong"),
    ({"which": "first"}, "42, not 3", "42", "right"),
    ({}, "1,234,567 people", "1234567", "right"),
    ({}, "1,23", "23", "right"),
    ({}, "12,345.50", "12345.5", "right"),
    ({"thousands": "."}, "12.345,50 €", "12345,5", "right"),
    ({"thousands": ""}, "1,234", "234", "right"),
    ({"thousands": "'"}, "1'234", "1234", "right"),
    ({}, "1\u202f234", "1234", "right"),
    ({}, "minus: \u22125", "-5", "right"),
    ({}, "10-5", "5", "right"),
    ({}, "x=-5", "-5", "right"),
    ({}, "1e3", "1000", "right"),
    ({}, "\u0663\u0664", "34", "right"),
    ({}, ".5", "0.5", "right"),
    ({}, "$0.10", "0.1", "right"),
    ({}, "12345678901234567890123456789012", "12345678901234567890123456789013", "wrong"),
    ({}, "3.14", "3.15", "wrong"),
    ({"absolute": 0.01}, "3.14", "3.15", "right"),
    ({"absolute": 0.01}, "3.1399", "3.15", "wrong"),
    ({"relative": 0.01}, "990", "1000", "right"),
    ({"relative": 0.01}, "989.9", "1000", "wrong"),
    ({"relative": 0.01}, "-990", "1000", "wrong"),
    ({}, "forty-two", "42", "none"),
    ({}, "", "42", "none"),
]
PATTERN = [
    ({}, "Answer: 3\nAnswer: 4", "4", "right"),
    ({"which": "first"}, "Answer: 3\nAnswer: 4", "4", "wrong"),
    ({}, "answer: 4", "4", "none"),
    ({"ignore_case": True}, "ANSWER: x", "X", "right"),
    ({}, "Answer: The Cat", "cat", "wrong"),
    ({"normalise": True}, "Answer: The Cat", "cat", "right"),
    ({}, "no idea", "4", "none"),
]
JSON = [
    ({}, '{"city": "Paris"}', "", "right"),
    ({}, '{"city": 3}', "", "wrong"),
    ({}, 'Sure:\n```json\n{"city": "Paris"}\n```\nDone.', "", "right"),
    ({}, 'It is {x} {"city": "Paris"} I think', "", "right"),
    ({"strict": True}, 'It is {"city": "Paris"}', "", "none"),
    ({"strict": True}, ' {"city": "Paris"}\n', "", "right"),
    ({"fields": ["city"]}, '{"city": "Paris", "n": 3}', '{"city": "Paris"}', "right"),
    ({"fields": ["city"]}, '{"city": "Rome"}', '{"city": "Paris"}', "wrong"),
    ({"fields": ["n"]}, '{"city": "x", "n": 1.0}', '{"n": 1}', "right"),
    ({"fields": ["n"]}, '{"city": "x"}', '{"n": 1}', "wrong"),
    ({}, "[]", "", "wrong"),
    ({}, '{"city": NaN}', "", "none"),
    ({}, '{"city": 1e999}', "", "none"),
    ({}, "[" * 100_000, "", "none"),
    ({}, "{" * 100_000, "", "none"),
    ({}, "no JSON", "", "none"),
]


@pytest.mark.parametrize(("answer", "target", "expected"), EXACT)
def test_exact_compares_texts(answer, target, expected):
    assert outcome({"kind": "exact"}, answer, target) == expected


@pytest.mark.parametrize(("answer", "target", "expected"), NORMALISED)
def test_normalised_compares_words(answer, target, expected):
    assert outcome({"kind": "normalised"}, answer, target) == expected


@pytest.mark.parametrize(("options", "answer", "target", "expected"), NUMERIC)
def test_numeric_compares_values(options, answer, target, expected):
    assert outcome({"kind": "numeric", **options}, answer, target) == expected


@pytest.mark.parametrize(("options", "answer", "target", "expected"), PATTERN)
def test_a_pattern_finds_the_answer(options, answer, target, expected):
    assert outcome({"kind": "regex", "pattern": r"Answer: ([^\n]+)", **options}, answer, target) == expected


@pytest.mark.parametrize(("options", "answer", "target", "expected"), JSON)
def test_json_is_found_validated_and_compared(options, answer, target, expected):
    assert outcome({"kind": "json_schema", "schema": CITY, **options}, answer, target) == expected


def test_true_is_not_one():
    schema = {"kind": "json_schema", "schema": {}, "fields": ["n"]}
    assert outcome(schema, '{"n": true}', '{"n": 1}') == "wrong"


def test_a_schema_that_refers_elsewhere_is_never_fetched():
    one = scored({"kind": "json_schema", "schema": {"$ref": "http://127.0.0.1:9/a.json"}}, "{}")
    assert one.score == 0.0
    assert "the schema cannot be applied" in one.problem


def test_a_pattern_that_never_ends_costs_its_time_and_no_more():
    pattern = Pattern(pattern="^((?:a|aa)+)$", seconds=0.2)
    started = time.monotonic()
    one = scored(pattern, "a" * 5000 + "b", "x")
    assert time.monotonic() - started < 5
    assert (one.score, one.found) == (0.0, None)
    assert one.problem == "the pattern did not come to an end within 0.2 seconds"


BAD = [
    ({"kind": "regex", "pattern": "("}, "is no regular expression"),
    ({"kind": "regex", "pattern": "a"}, "has 0 groups: the answer is what the one group"),
    ({"kind": "regex", "pattern": "(a)(b)"}, "has 2 groups"),
    ({"kind": "json_schema", "schema": {"type": "txet"}}, "this is no JSON schema: 'txet'"),
    ({"kind": "numeric", "absolute": -1}, "greater than or equal to 0"),
    ({"kind": "choice", "normalise": "acc_norm"}, "'raw', 'per_token' or 'per_byte'"),
]


@pytest.mark.parametrize(("config", "words"), BAD)
def test_a_scorer_that_cannot_work_is_refused_when_the_recipe_is_read(config, words):
    with pytest.raises(ValidationError, match="(?s)" + words.replace("(", r"\(")):
        SCORERS.validate_python(config)


TARGETS = [
    ({"kind": "numeric"}, "42", None),
    ({"kind": "numeric"}, "-1,234.5", None),
    ({"kind": "numeric"}, "about 42", "'answer' is 'about 42', which is not one number"),
    ({"kind": "numeric"}, "4 2", "not one number"),
    ({"kind": "numeric"}, "", "not one number"),
    ({"kind": "normalised"}, "?!", "no word"),
    ({"kind": "regex", "pattern": "(a)"}, " ", "the text that the pattern must find"),
    ({"kind": "json_schema", "schema": {}}, "", None),
    ({"kind": "json_schema", "schema": {}, "fields": ["a"]}, '{"b": 1}', "no JSON object with the field 'a'"),
    ({"kind": "choice"}, "x", "`choice` scores items that have 'choices'"),
]


@pytest.mark.parametrize(("config", "target", "problem"), TARGETS)
def test_an_answer_that_nothing_can_be_compared_with_is_named(config, target, problem):
    found = SCORERS.validate_python(config).problem(target)
    assert found is None if problem is None else problem in found


def test_no_two_settings_have_one_identity():
    configs = [
        Numeric(),
        Numeric(absolute=0.1),
        Numeric(which="first"),
        Pattern(pattern="(a)"),
        Pattern(pattern="(b)"),
        JsonSchema(schema=CITY),
        JsonSchema(schema=CITY, fields=("city",)),
    ]
    assert len({json.dumps(config.identity(), sort_keys=True) for config in configs}) == len(configs)
