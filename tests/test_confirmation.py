"""A confirmation: an eval that only passing variants are shown, which must repeat what it confirms."""

from __future__ import annotations

from typing import Any

import pytest
from program import TINY, problems_of, tiny_recipe, write_recipe

from quantize.recipe import load


def two_evals(*gated: str, advisory: bool = False) -> dict[str, Any]:
    """The tiny recipe with a second eval, `fresh`, and a gate on each eval that is named."""
    gates = [{"kind": "noninferiority", "metric": f"{name}.accuracy", "margin": 0.05} for name in gated]
    gates += [{"kind": "noninferiority", "metric": "fresh.accuracy", "advisory": True}] if advisory else []
    evals = [{"kind": "items", "name": name, "path": str(TINY / "items.jsonl")} for name in ("facts", "fresh")]
    return tiny_recipe(evals=evals, gates=gates, confirmation="fresh")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (two_evals("facts"), "no gate looks at 'fresh', so it confirms nothing"),
        (two_evals("facts", advisory=True), "no gate looks at 'fresh', so it confirms nothing"),
        (two_evals("fresh"), "every gate looks at 'fresh': a confirmation needs another eval to pass first"),
    ],
)
def test_a_confirmation_that_could_confirm_nothing_is_refused_at_its_line(tmp_path, recipe, says):
    path = write_recipe(tmp_path, recipe)
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.startswith("confirmation:"))
    found = problems_of(path)
    assert f"recipe.yaml:{number} confirmation: {says}" in found
    assert all(problem.startswith(f"recipe.yaml:{number} confirmation: ") for problem in found)


@pytest.mark.parametrize(
    ("again", "confirmed"),
    [
        ({}, True),
        ({"margin": 0.02}, True),
        ({"alpha": 0.01}, True),
        ({"margin": 0.06}, False),
        ({"margin": 0.02, "alpha": 0.1}, False),
        ({"metric": "fresh.accuracy/sums"}, False),
        ({"metric": "fresh.parsed"}, False),
    ],
)
def test_a_confirmation_repeats_every_blocking_test_at_least_as_strictly(tmp_path, again, confirmed):
    """Red when any gate on the confirmation will do: the other evals' attempts are counted nowhere."""
    recipe = two_evals("facts", "fresh")
    recipe["gates"][1] |= again
    path = write_recipe(tmp_path, recipe)
    if confirmed:
        assert load(path).recipe.confirmation == "fresh"
    else:
        (problem,) = problems_of(path)
        assert problem.endswith(
            "facts.accuracy is not confirmed: attempts count on 'fresh' alone, so it needs a blocking test of "
            "fresh.accuracy with a margin of 0.05 and an alpha of 0.05 at most"
        )


def test_each_slice_is_confirmed_by_itself_and_what_blocks_nothing_needs_no_confirmation(tmp_path):
    recipe = two_evals("facts", "fresh")
    recipe["gates"].append({"kind": "noninferiority", "metric": "facts.accuracy/sums", "margin": 0.1, "alpha": 0.1})
    (problem,) = problems_of(write_recipe(tmp_path, recipe))
    assert "facts.accuracy/sums is not confirmed" in problem
    assert problem.endswith("fresh.accuracy/sums with a margin of 0.1 and an alpha of 0.1 at most")
    recipe["gates"][-1]["advisory"] = True
    recipe["gates"].append({"kind": "limit", "metric": "facts.harmful_flips", "at_most": 0.1, "advisory": False})
    assert load(write_recipe(tmp_path, recipe)).recipe.confirmation == "fresh"


def test_a_confirmation_with_a_gate_of_its_own_is_run_last(tmp_path):
    recipe = load(write_recipe(tmp_path, two_evals("fresh", "facts"))).recipe
    assert [metric.name for metric in recipe.ordered_evals()] == ["facts", "fresh"]
    assert recipe.spending("int8", 3).attempt_at("fresh.accuracy") == 3
    assert recipe.spending("int8", 3).attempt_at("facts.accuracy") == 1
