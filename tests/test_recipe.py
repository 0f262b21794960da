"""Recipes: what is in the repository is valid, and what is wrong is said with its place and the nearest right name."""

# ruff: noqa: E501 (a table of cases reads best with one case a line)
from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import TINY, command, problems_of, tiny_recipe, write_recipe

from quantize.errors import RecipeError
from quantize.recipe import Recipe, json_schema, load

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
GPTQ = {"name": "int4", "scheme": "W4A16", "method": {"kind": "gptq"}}


def changed(folder: Path, address: str, value: Any) -> Path:
    """The tiny recipe, written with one value changed (or taken away, for `...`)."""
    recipe = tiny_recipe()
    *parents, last = address.split(".")
    node: Any = recipe
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return write_recipe(folder, recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_recipe_in_the_repository_is_valid_and_names_the_schema(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    label, _, schema = first.partition("$schema=")
    assert label == "# yaml-language-server: "
    assert (path.parent / schema).resolve() == ROOT / "recipes" / "recipe.schema.json"
    assert load(path).recipe.version == 1


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"demo", "llama-awq"}


def test_the_schema_in_the_repository_is_the_one_that_the_program_prints():
    kept = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert kept == json_schema(), "run: quantize schema > recipes/recipe.schema.json"


@pytest.mark.parametrize(
    ("address", "value", "says"),
    [
        ("modle", 1, "modle: there is no key 'modle' here. Did you mean 'model'?"),
        ("model.pth", "x", "model.pth: there is no key 'pth' here. Did you mean 'path'?"),
        ("variants.0.group_sise", 64, "variants.0.group_sise: there is no key 'group_sise' here. Did you mean 'group_size'?"),
        ("variants.0.method.bits", 4, "variants.0.method.bits: there is no key 'bits' here. Known: kind."),
        ("gates.0.margn", 0.1, "gates.0.margn: there is no key 'margn' here. Did you mean 'margin'?"),
        ("registry.target", {}, "registry.target: there is no key 'target' here. Did you mean 'targets'?"),
        ("resources.thread", 1, "resources.thread: there is no key 'thread' here. Did you mean 'threads'?"),
        ("version", ..., "version: the key 'version' is missing"),
        ("model.path", ..., "model.path: the key 'path' is missing"),
        ("variants.0.scheme", ..., "variants.0: a variant has either a `scheme` or `config_groups`"),
        ("gates.0.metric", ..., "gates.0.metric: the key 'metric' is missing"),
        ("model.kind", ..., "model: the key 'kind' is missing: one of directory, gguf, hub, lora, package"),
        ("evals.0.kind", ..., "evals.0: the key 'kind' is missing: one of items, lm_eval, text"),
        ("model.kind", "directry", "model.kind: 'directry' is not a kind. Did you mean 'directory'?"),
        ("variants.0.method.kind", "rtm", "variants.0.method.kind: 'rtm' is not a kind. Did you mean 'rtn'?"),
        ("evals.0.kind", "item", "evals.0.kind: 'item' is not a kind. Did you mean 'items'?"),
        ("registry.kind", "wandb", "registry.kind: 'wandb' is not known here: it is one of mlflow"),
        ("variants.0.scheme", "W4A61", "variants.0.scheme: 'W4A61' is not a preset. Did you mean 'W4A16'?"),
        ("variants.0.scheme", "smallest", "variants.0.scheme: 'smallest' is not a preset. The presets are FP8, FP8_DYNAMIC, FP8_BLOCK,"),
        ("gates.0.metric", "fact.accuracy", "gates.0.metric: 'fact' is not an eval of this recipe. Did you mean 'facts'?"),
        ("gates.0.metric", "facts.acuracy", "gates.0.metric: the eval 'facts' measures no 'acuracy'. Did you mean 'facts.accuracy'?"),
        ("registry.targets.production.from", ["int9"], "from.0: 'int9' is not a variant of this recipe. Did you mean 'int8'?"),
        ("gates.0.advisory", True, "gates: every gate is advisory"),
        ("gates.0.margin", "high", "gates.0.margin: input should be a valid number"),
        ("gates.0.margin", -0.02, "gates.0.margin: input should be greater than 0"),
        ("gates.0.margin", 0, "gates.0.margin: input should be greater than 0"),
        ("gates.0.margin", 1, "gates.0.margin: input should be less than 1"),
        ("gates.0.margin", 2, "gates.0.margin: input should be less than 1"),
        ("gates.0.alpha", 0.5, "gates.0.alpha: input should be less than or equal to 0.2"),
        ("gates.0.margin", float("nan"), "gates.0.margin: "),
        ("early_stopping", {"look": 0}, "early_stopping.look: input should be greater than or equal to 8"),
        ("early_stopping", {"look": 5000}, "early_stopping.look: input should be less than or equal to 4096"),
        ("early_stopping", {"look": 48.5}, "early_stopping.look: input should be a valid integer"),
        ("early_stopping", {"share": 0}, "early_stopping.share: input should be greater than 0"),
        ("early_stopping", {"share": 1}, "early_stopping.share: input should be less than 1"),
        ("early_stopping", {"shares": 0.2}, "early_stopping.shares: there is no key 'shares' here. Did you mean 'share'?"),
        ("early_stopping", {"enabled": "perhaps"}, "early_stopping.enabled: input should be a valid boolean"),
        ("noise_floor", "loud", "noise_floor: input should be a valid boolean"),
        ("evals.0.generations", 0, "evals.0.generations: input should be greater than or equal to 1"),
        ("evals.0.generations", 65, "evals.0.generations: input should be less than or equal to 64"),
        ("evals.0.generations", 4, "evals.0: several generations at temperature 0 are all the same: set a temperature"),
        ("evals.0.temperature", -1, "evals.0.temperature: input should be greater than or equal to 0"),
        ("confirmation", "fact", "confirmation: 'fact' is not an eval of this recipe. Did you mean 'facts'?"),
        ("confirmation", "facts", "confirmation: every gate looks at 'facts': a confirmation needs another eval to pass first"),
        ("registry.trade", {"smaller_by": 0.3}, "registry.trade.margin: the key 'margin' is missing"),
        ("registry.trade", {"smaller_by": 1, "margin": 0.1}, "registry.trade.smaller_by: input should be less than 1"),
        ("registry.trade", {"smaller_by": 0.3, "margin": 0}, "registry.trade.margin: input should be greater than 0"),
        ("variants.0.name", "noise-floor", "variants.0.name: a variant may not be called 'noise-floor'"),
        ("seed", [1], "seed: input should be a valid integer"),
        ("variants", "int8", "variants: input should be a valid list"),
        ("variants", [], "variants: list should have at least 1 item"),
        ("variants.0", "int8", "variants.0: input should be"),
        ("resources.device", "gpu", "resources.device: 'gpu' is not known here: it is one of auto, cpu, cuda"),
        ("version", 2, "version: this recipe is of version 2 and this program reads 1; a newer quantize reads it: upgrade"),
        ("version", 0, "version: this recipe is of version 0 and this program reads 1; there never was one: write"),
        ("version", "one", "version: 'one' is not known here: it is one of 1"),
        ("name", "Tiny Model", "name: 'Tiny Model' is not a name"),
        ("variants.0.group_size", 64, "variants.0: group_size has no meaning for W8A8"),
        ("variants.0.method", {"kind": "gptq"}, "variants.0.method: gptq needs `calibration:`"),
        ("variants.0.name", "production", "variants.0.name: a variant may not be called 'production'"),
        ("variants.0.name", "baseline", "variants.0.name: a variant may not be called 'baseline'"),
        ("variants.0.name", "int8.v2", "variants.0.name: 'int8.v2' is an alias in the registry"),
        ("variants.0.name", "latest", "variants.0.name: 'latest' means a version to MLflow"),
        ("variants.0.name", "v3", "variants.0.name: 'v3' means a version to MLflow"),
        ("variants.0.name", "a-previous", "variants.0.name: 'a-previous' ends like the aliases"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_said_with_its_place_and_the_nearest_right_name(tmp_path, address, value, says):
    found = problems_of(changed(tmp_path, address, value))
    assert any(says in problem and problem.startswith("recipe.yaml:") for problem in found), found


def test_without_early_stopping_no_share_of_alpha_is_set_aside(make_recipe):
    assert load(make_recipe()).recipe.spending("int8", 1).early == 0.2
    assert load(make_recipe(early_stopping={"share": 0.5})).recipe.spending("int8", 1).early == 0.5
    off = load(make_recipe(early_stopping={"share": 0.5, "enabled": False})).recipe
    assert off.spending("int8", 1).early == 0


def test_a_problem_names_the_line_of_the_key(tmp_path):
    path = changed(tmp_path, "variants.0.scheme", "W4A61")
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "W4A61" in line)
    assert problems_of(path) == [
        f"recipe.yaml:{number} variants.0.scheme: 'W4A61' is not a preset. Did you mean 'W4A16'?"
    ]


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path):
    recipe = tiny_recipe(seed=-1, variants=[{**GPTQ, "schem": "W4A16"}, {**GPTQ, "scheme": "W5A16"}])
    recipe["gates"][0]["metric"] = "fact.accuracy"
    path = write_recipe(tmp_path, recipe)
    with path.open("a", encoding="utf-8") as file:
        file.write("name: again\n")
    found = problems_of(path)
    for place in (
        "variants.0.schem:", "variants.1.scheme:", "variants.1.name:", "variants.0.method:", "gates.0.metric:",
        "registry.targets.production.from.0:", "seed:", "name: the key is given twice",
    ):  # fmt: skip
        assert sum(f" {place}" in problem for problem in found) == 1, (place, found)
    numbers = [int(problem.removeprefix("recipe.yaml:").split()[0]) for problem in found]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("key", ["variants", "evals"])
def test_a_name_used_twice_is_refused_where_it_is_used_again(tmp_path, key):
    path = write_recipe(tmp_path, tiny_recipe(**{key: tiny_recipe()[key] * 2}))
    (problem,) = problems_of(path)
    assert f" {key}.1.name: another " in problem


@pytest.mark.parametrize("place", ["version", "model.path", "variants.0.scheme", "registry.targets.production"])
def test_a_key_given_twice_is_refused(tmp_path, place):
    text = yaml.safe_dump(tiny_recipe(), sort_keys=False, default_flow_style=False)
    key = place.split(".")[-1]
    lines = text.splitlines()
    index = next(i for i, line in enumerate(lines) if line.strip().removeprefix("- ").startswith(f"{key}:"))
    indent = len(lines[index]) - len(lines[index].lstrip("- "))
    lines.insert(index + 1, " " * indent + f"{key}: 1")
    if key == "production":
        lines[index], lines[index + 1] = lines[index + 1], lines[index]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert any(f"recipe.yaml:{index + 2} {place}: the key is given twice" == p for p in problems_of(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1\nname: [tiny\nmodel: {}\n", "recipe.yaml:3: this is not YAML"),
        ("version: 1\n\tname: x\n", "recipe.yaml:2: this is not YAML"),
        ("version: 1\nname: \x00\n", "recipe.yaml:2: this is not YAML"),
        ("version: 1\n---\nversion: 1\n", "recipe.yaml:2: this is not YAML"),
        ("", "recipe.yaml:1: a recipe is a mapping"),
        ("- 1\n- 2\n", "recipe.yaml:1: a recipe is a mapping"),
        ("just text\n", "recipe.yaml:1: a recipe is a mapping"),
        ("version: 1\nvariants: &a [*a]\n", "recipe.yaml:2 variants.0: the value contains itself"),
        ("? [1]\n: 2\n", "recipe.yaml:1: this is not YAML"),
        ("a: " + "[" * 3000, "recipe.yaml:1: this is not YAML"),
        ("version: 1\n2: 3\n", "recipe.yaml:2 2: YAML reads this key"),
        ("version: 1\nname: 2024-01-01\n", "recipe.yaml:2 name: input should be a valid string"),
    ],
)
def test_text_that_is_no_recipe_is_said_to_be_none(tmp_path, text, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert any(problem.startswith(says) for problem in problems_of(path)), problems_of(path)


def test_a_tag_that_would_run_code_is_refused_and_not_run(tmp_path):
    path, proof = tmp_path / "recipe.yaml", tmp_path / "ran"
    path.write_text(f'version: 1\nname: !!python/object/apply:os.mkdir ["{proof}"]\n', encoding="utf-8")
    (problem,) = problems_of(path)
    assert problem.startswith("recipe.yaml:2: ")
    assert not proof.exists()


def test_a_file_that_is_not_text_is_said_so(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "cannot be read as UTF-8" in problems_of(path)[0]


def test_a_missing_recipe_is_said_with_those_beside_it(make_recipe: Callable[..., Path]):
    path = make_recipe()
    (problem,) = problems_of(path.with_name("recip.yaml"))
    assert "there is no such recipe" in problem
    assert "recipe.yaml" in problem


@pytest.mark.parametrize(
    "text", [None, "", "version: [1\n", "version: 1\nname: !!python/name:os.system\n", "version: 1\nmodle: 2\n"]
)
def test_the_program_ends_with_2_and_no_traceback(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    result = command("plan", path, "--store", tmp_path / "store")
    assert result.returncode == 2
    assert result.stdout == ""
    assert all(line.startswith(str(path)) for line in result.stderr.splitlines())
    assert not (tmp_path / "store").exists()


def test_an_override_finds_list_items_by_index_and_by_name(make_recipe):
    path = make_recipe(variants=[{"name": "int4", "scheme": "W4A16", "method": {"kind": "rtn"}}],
                       registry={"kind": "mlflow", "name": "tiny"})  # fmt: skip
    by_index = load(path, ("variants.0.group_size=64",)).recipe
    by_name = load(path, ("variants.int4.group_size=64", "gates.0.margin=0.1", "resources.threads=3")).recipe
    assert by_index.variants[0].group_size == by_name.variants[0].group_size == 64
    assert by_name.gates[0].margin == 0.1
    assert by_name.resources.threads == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("modle.path=x", "--set modle.path (modle): there is no key 'modle' here. Did you mean 'model'?"),
        ("variants.int9.scheme=W8A8", "--set variants.int9.scheme=W8A8: the list has no item 'int9' (it has int8)"),
        ("variants.7.scheme=W8A8", "the list has no item '7' (it has int8)"),
        ("name.first=x", "--set name.first=x: 'first' is below a plain value"),
        ("seed", "--set seed: write it as key=value"),
        ("=1", "--set =1: write it as key=value"),
        ("seed=[1", "--set seed=[1: '[1' is not a YAML value"),
        ("seed=x", "--set seed (seed): input should be a valid integer"),
        ("variants.int8.scheme=W8A9", "--set variants.int8.scheme (variants.0.scheme): 'W8A9' is not a preset. Did you mean 'W8A8'?"),
        ("variants.int8={name: int8, scheme: W8, method: {kind: rtn}}", "--set variants.int8 (variants.0.scheme): 'W8' is not"),
        ("resources.gpus.x=1", "--set resources.gpus.x (resources.gpus): there is no key 'gpus' here."),
    ],
)  # fmt: skip
def test_a_wrong_override_is_said_by_its_flag(make_recipe, override, says):
    assert any(says in problem for problem in problems_of(make_recipe(), override)), problems_of(
        make_recipe(), override
    )


def test_a_path_in_a_recipe_is_relative_to_the_recipe_and_one_of_an_override_to_the_current_directory(
    tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    path = write_recipe(tmp_path / "there", tiny_recipe(model={"kind": "directory", "path": "model"}))
    monkeypatch.chdir(tmp_path / "here")
    assert load(path).recipe.model.path == str(tmp_path / "there" / "model")
    assert load(Path("../there/recipe.yaml")).recipe.model.path == str(tmp_path / "here" / "../there/model")
    for override in ("model.path=model", "model={kind: directory, path: model}"):
        assert load(path, (override,)).recipe.model.path == str(tmp_path / "here" / "model")
    evals = "evals=[{kind: items, name: facts, path: items.jsonl}]"
    assert load(path, (evals,)).recipe.evals[0].path == str(tmp_path / "here" / "items.jsonl")
    assert load(path, (f"model.path={tmp_path}",)).recipe.model.path == str(tmp_path)


def places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The address of every value of a recipe."""
    found = [place] if place else []
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return found + [below for key, value in children for below in places(value, (*place, key))]


@pytest.mark.parametrize(
    "odd",
    [None, True, 0, -1, 1.5, float("inf"), "", "x", "a.b/c", [], [1], [[]], {}, {"kind": "x"}, {"kind": []}, {"a": {}}],
)
def test_an_odd_value_anywhere_is_told_with_a_place_and_never_ends_in_a_crash(tmp_path, odd):
    whole = tiny_recipe(
        calibration={"kind": "self"},
        engine={"kind": "transformers"},
        resources={"threads": 2},
        early_stopping={"enabled": True, "look": 32, "share": 0.2},
        confirmation="facts",
    )
    whole["registry"]["trade"] = {"smaller_by": 0.3, "margin": 0.02}
    for place in places(whole):
        recipe = copy.deepcopy(whole)
        node: Any = recipe
        for part in place[:-1]:
            node = node[part]
        node[place[-1]] = odd
        path, problems = write_recipe(tmp_path, recipe), []
        try:
            load(path)
        except RecipeError as error:
            problems = error.problems
        assert all(problem.startswith(f"{path}:") for problem in problems)


def test_moving_a_recipe_does_not_change_its_digest(tmp_path):
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = write_recipe(tmp_path / name, tiny_recipe(model={"kind": "directory", "path": "model"}))
        digests.add(load(path).digest)
    assert len(digests) == 1
    assert load(path, ("seed=1",)).digest not in digests


def test_a_recipe_made_in_python_is_held_to_the_same_rules():
    good = tiny_recipe()
    assert Recipe.model_validate(good).name == "tiny"
    assert Recipe.model_validate(Recipe.model_validate(good)) == Recipe.model_validate(good)
    with pytest.raises(ValueError, match="not an eval of this recipe"):
        Recipe.model_validate(tiny_recipe(gates=[{"kind": "noninferiority", "metric": "x.accuracy"}]))
    assert (TINY / "items.jsonl").is_file()


def test_an_address_of_a_registry_with_a_password_is_refused_and_not_repeated(tmp_path):
    registry = {"kind": "mlflow", "name": "m", "uri": "https://eva:hunter2@mlflow.example"}
    path = write_recipe(tmp_path, tiny_recipe(registry=registry))
    with pytest.raises(RecipeError, match=r"registry\.uri: an address holds no credentials") as caught:
        load(path)
    assert "hunter2" not in str(caught.value)
