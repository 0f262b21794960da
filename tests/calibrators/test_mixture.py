"""A mixture takes rows of each part in exact proportion, and says what each part gave."""

from __future__ import annotations

import json
import random

import pytest
from program import TINY, problems_of, tiny_recipe, write_recipe
from pydantic import TypeAdapter, ValidationError

from quantize.calibrators import CalibratorConfig, Mixture

ADAPTER = TypeAdapter(CalibratorConfig)
SELF = {"kind": "self"}


@pytest.fixture
def files(tmp_path):
    """Two files, of words that tell them apart."""
    for name in ("dog", "cat"):
        lines = [json.dumps({"text": f"The {name} sees number {n}. " * 5}) for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    return {name: {"kind": "text", "path": str(tmp_path / f"{name}.jsonl")} for name in ("dog", "cat")}


def mixture(*parts, **settings):
    return {"kind": "mixture", "parts": [{"weight": weight, "from": source} for weight, source in parts], **settings}


@pytest.mark.parametrize("seed", range(40))
def test_shares_are_whole_add_up_and_are_within_one_row_of_exact(seed):
    chance = random.Random(seed)
    weights = [chance.uniform(0.5, 10) for _ in range(chance.randint(2, 6))]
    samples = chance.randint(120, 300)
    rows = Mixture.model_validate(mixture(*((weight, SELF) for weight in weights), samples=samples)).shares()
    assert sum(rows) == samples
    assert all(abs(got - samples * weight / sum(weights)) < 1 for got, weight in zip(rows, weights, strict=True))


def test_the_row_that_is_left_goes_to_the_largest_remainder_and_among_equals_to_the_first():
    assert Mixture.model_validate(mixture((1, SELF), (1, SELF), samples=5)).shares() == [3, 2]
    assert Mixture.model_validate(mixture((7, SELF), (2, SELF), (1, SELF), samples=8)).shares() == [6, 1, 1]


def test_each_part_gives_its_share_of_rows_and_tells_of_it(files):
    made = ADAPTER.validate_python(
        mixture((3, files["dog"]), (1, {**files["cat"], "packing": "truncate"}), samples=8, tokens=24)
    )
    drawn = made.draw(TINY / "checkpoint", "cpu", lambda *_: None)
    assert [part["samples"] for part in drawn.facts["parts"]] == [6, 2]
    assert [part["packing"] for part in drawn.facts["parts"]] == ["pack", "truncate"]
    assert sum(part["total_tokens"] for part in drawn.facts["parts"]) == sum(map(len, drawn.rows))
    assert sum("dog" in document for document in drawn.documents) == 40
    again = made.draw(TINY / "checkpoint", "cpu", lambda *_: None)
    assert [row.tolist() for row in again.rows] == [row.tolist() for row in drawn.rows]


def test_a_mixture_goes_to_its_stage_and_back_and_its_key_follows_the_parts(files):
    made = ADAPTER.validate_python(mixture((1, files["dog"]), (1, SELF), samples=8, tokens=24))
    sent = json.loads(made.pinned().model_dump_json(by_alias=True))
    assert ADAPTER.validate_python(sent) == made
    assert made.identity() == ADAPTER.validate_python(sent).identity()
    other = ADAPTER.validate_python(mixture((1, files["cat"]), (1, SELF), samples=8, tokens=24))
    assert other.identity() != made.identity()
    assert made.texts() == ADAPTER.validate_python(files["dog"]).texts()


@pytest.mark.parametrize(
    ("parts", "settings", "said"),
    [
        ([(1, SELF)], {}, "at least 2"),
        ([(1, {**SELF, "samples": 3}), (1, SELF)], {}, "samples is said once, by the mixture"),
        ([(1, {**SELF, "tokens": 32}), (1, SELF)], {}, "tokens is said once, by the mixture"),
        ([(100, SELF), (1, SELF)], {"samples": 10}, "of kind self with weight 1 gets no row"),
        ([(0, SELF), (1, SELF)], {}, "greater than 0"),
        ([(1, {"kind": "mixture"}), (1, SELF)], {}, "'mixture'"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused_with_what_to_change(parts, settings, said):
    with pytest.raises(ValidationError, match=said):
        ADAPTER.validate_python(mixture(*parts, **settings))


def gptq(**settings):
    return {"name": "int4", "scheme": "W4A16", "method": {"kind": "gptq"}, **settings}


@pytest.mark.parametrize(
    ("calibration", "variant", "said"),
    [
        (None, gptq(calibration={"samples": 4}), "variants.0.calibration: another size needs `calibration:`"),
        (SELF, gptq(calibration={}), "say samples, tokens or both"),
        (
            SELF,
            {"name": "int8", "scheme": "W8A8", "method": {"kind": "rtn"}, "calibration": {"samples": 4}},
            "looks at no tokens: leave calibration out",
        ),
        (mixture((9, SELF), (1, SELF)), gptq(calibration={"samples": 2}), "with weight 1 gets no row"),
        (
            {"kind": "text", "path": "a.jsonl", "packing": "truncate"},
            gptq(method={"kind": "autoawq"}),
            "autoawq joins all rows and cuts them anew, so they must be of one length: set `packing: pack`",
        ),
    ],
)
def test_a_variants_calibration_that_does_not_fit_the_recipes_is_refused(tmp_path, calibration, variant, said):
    recipe = tiny_recipe(calibration=calibration, variants=[variant], registry={"kind": "mlflow", "name": "tiny"})
    assert any(said in problem for problem in problems_of(write_recipe(tmp_path, recipe)))
