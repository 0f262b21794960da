"""Variants of known quality through the whole program: the good are promoted, the bad are not, the hopeless stop early.

The variants are one INT8 checkpoint under many names; what each answers is planted (`planted/sitecustomize.py`), so
that its true difference from the baseline is exact. All else is a real run: processes, looks, gates and registry.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from planted.plant import draw, planted
from program import TINY, command, tiny_recipe, write_recipe

from quantize.store import Store

MARGIN, ITEMS = 0.05, 600
#: Kind -> (share of items lost, share mended, how many variants). The true difference is mended - lost.
KINDS = {"same": (0.02, 0.02, 6), "worse": (MARGIN + 0.01, 0.01, 12), "broken": (3 * MARGIN + 0.01, 0.01, 4)}
VARIANTS = {f"{kind}-{number}": kind for kind, (_, _, count) in KINDS.items() for number in range(count)}


def more_items():
    """ITEMS items about the tiny Llama's world: three times as many as the file beside it has."""
    spec = importlib.util.spec_from_file_location("tiny_text", TINY / "text.py")
    assert spec is not None and spec.loader is not None
    text = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(text)
    text.ITEMS_PER_SLICE = ITEMS // 2
    return text.items()


def rows(store, name):
    """The rows of an arm's eval, `<arm> <eval>`, in the order answered."""
    import pyarrow.parquet as pq

    (directory,) = [path for path, manifest in Store(store).manifests("evaluate") if manifest.name == name]
    return pq.read_table(directory / "rows.parquet").to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_over_seeds_a_plant_is_worth_what_it_says(kind):
    items = more_items()
    loss, gain, _ = KINDS[kind]
    answers = {item["prompt"]: item["choices"][(item["answer"] + (n % 10 == 0)) % 4] for n, item in enumerate(items)}
    right = {item["prompt"]: item["choices"][item["answer"]] for item in items}
    draws = 100
    changes = []
    for seed in range(draws):
        plant = draw(items, answers, loss, gain, seed)
        changes += [(plant[p] == answer) - (answers[p] == answer) for p, answer in right.items()]
    share = len(changes)
    four_errors = 4 * ((loss + gain) / share) ** 0.5
    assert changes.count(-1) / share == pytest.approx(loss, abs=four_errors)
    assert changes.count(1) / share == pytest.approx(gain, abs=four_errors)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict[str, dict[str, str]], dict[str, dict]]:
    """A released run of all variants: (store, plants, what the run says of each variant)."""
    folder = tmp_path_factory.mktemp("planted")
    items = more_items()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    recipe = write_recipe(
        folder,
        tiny_recipe(
            variants=[{"name": name, "scheme": "W8A8", "method": {"kind": "rtn"}} for name in ("plain", *VARIANTS)],
            evals=[{"kind": "items", "name": "facts", "path": str(folder / "items.jsonl")}],
            gates=[{"kind": "noninferiority", "metric": "facts.accuracy", "margin": MARGIN}],
            registry={"kind": "mlflow", "name": "planted", "targets": {}},
        ),
    )
    # The plants are drawn against the baseline's answers, so those come first.
    plain = command("run", recipe, "--store", folder / "store", "--only", "plain", "--no-release")
    assert plain.returncode == 0, plain.stderr
    baseline = {row["prompt"]: row["answer"] for row in rows(folder / "store", "baseline facts")}
    assert len(baseline) == ITEMS
    plants = {
        name: draw(items, baseline, *KINDS[kind][:2], seed=seed) for seed, (name, kind) in enumerate(VARIANTS.items())
    }
    # Two dozen evaluations: minutes, on a busy machine many.
    result = command("run", recipe, "--store", folder / "store", "--json", seconds=1800, **planted(folder, plants))
    assert result.returncode in (0, 3, 4), result.stderr
    variants = {variant["name"]: variant for variant in json.loads(result.stdout)["variants"]}
    return folder / "store", plants, variants


def of_kind(variants, kind):
    return [variant for name, variant in variants.items() if VARIANTS.get(name) == kind]


def finding(variant):
    return next(f for f in variant["verdict"]["findings"] if f["kind"] == "noninferiority")


@pytest.mark.slow
def test_every_variant_answered_as_planted(run):
    store, plants, _ = run
    for name, plant in plants.items():
        answered = rows(store, f"{name} facts")
        assert {row["prompt"]: row["answer"] for row in answered} == {
            row["prompt"]: plant[row["prompt"]] for row in answered
        }


@pytest.mark.slow
def test_variants_that_are_as_good_as_the_baseline_are_promoted(run):
    decisions = [variant["decision"]["action"] for variant in of_kind(run[2], "same")]
    assert decisions == ["promote"] * KINDS["same"][2]


@pytest.mark.slow
def test_variants_at_the_margin_are_promoted_no_more_often_than_alpha_allows(run):
    """True null hypotheses: a false promotion has a probability of at most 5 % each."""
    from scipy.stats import binom

    worse = of_kind(run[2], "worse")
    promoted = sum(variant["decision"]["action"] == "promote" for variant in worse)
    assert len(worse) == KINDS["worse"][2]
    assert binom.sf(promoted - 1, len(worse), 0.05) > 0.001
    assert promoted < len(worse) / 2


@pytest.mark.slow
def test_hopeless_variants_are_rejected_before_half_of_the_items(run):
    for variant in of_kind(run[2], "broken"):
        assert variant["verdict"]["outcome"] == "fail"
        assert variant["decision"]["action"] == "reject"
        assert finding(variant)["numbers"]["stopped"] == "fail"
        assert finding(variant)["numbers"]["n"] < ITEMS / 2


@pytest.mark.slow
def test_what_early_stopping_saves_is_not_answered(run):
    """Rows exist for the answered items alone, and the baseline has all."""
    store, _, variants = run
    for name, variant in variants.items():
        assert len(rows(store, f"{name} facts")) == finding(variant)["numbers"]["n"]
    assert len(rows(store, "baseline facts")) == ITEMS


@pytest.mark.slow
def test_the_confirmation_is_shown_to_no_variant_that_has_not_passed_before_and_decides_the_one_that_has(tmp_path):
    items = more_items()
    sets = {"facts": items[::2], "fresh": items[1::2]}
    for name, chosen in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in chosen), encoding="utf-8")
    recipe = write_recipe(
        tmp_path,
        tiny_recipe(
            variants=[
                {"name": name, "scheme": "W8A8", "method": {"kind": "rtn"}} for name in ("bad", "unclear", "late")
            ],
            evals=[{"kind": "items", "name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in sets],
            gates=[{"kind": "noninferiority", "metric": f"{name}.accuracy", "margin": MARGIN} for name in sets],
            registry={"kind": "mlflow", "name": "confirmed", "targets": {}},
            confirmation="fresh",
        ),
    )
    lost = {"bad": lose(sets["facts"], 0.25), "unclear": lose(sets["facts"], 0.05), "late": lose(sets["fresh"], 0.25)}
    result = command("run", recipe, "--store", tmp_path / "store", "--json", "--no-release", **planted(tmp_path, lost))
    assert result.returncode == 3, result.stderr
    variants = {variant["name"]: variant for variant in json.loads(result.stdout)["variants"]}
    assert {name: variant["verdict"]["outcome"] for name, variant in variants.items()} == {
        "bad": "fail",
        "unclear": "inconclusive",
        "late": "fail",
    }
    arms = {
        manifest.name.split()[0]
        for _, manifest in Store(tmp_path / "store").manifests("look")
        if "fresh" in manifest.name
    }
    assert arms == {"baseline", "late"}
    said = {
        name: {f["metric"]: f["outcome"] for f in v["verdict"]["findings"] if f["metric"].endswith("accuracy")}
        for name, v in variants.items()
    }
    assert said["late"] == {"facts.accuracy": "pass", "fresh.accuracy": "fail"}
    assert said["bad"] == {"facts.accuracy": "fail", "fresh.accuracy": "inconclusive"}


def lose(items, share):
    """A wrong answer to this share of the items; the others are the model's own."""
    right = {item["prompt"]: item["choices"][item["answer"]] for item in items}
    plant = draw([*items], right, share, 0.0, seed=1)
    return {prompt: choice for prompt, choice in plant.items() if choice != right[prompt]}
