"""Recipes of several files: one recipe, as if it had been written whole, and errors that name the file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from program import TINY, command, problems_of, tiny_recipe

from quantize.recipe import json_schema, load


def write(path: Path, data: dict[str, object] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def parts(*keys: str) -> tuple[dict[str, object], dict[str, object]]:
    """The tiny recipe in two: the named keys, and the others."""
    whole = tiny_recipe()
    return {key: whole[key] for key in keys}, {key: value for key, value in whole.items() if key not in keys}


def test_a_recipe_in_pieces_is_the_recipe_written_whole(tmp_path):
    common, own = parts("version", "model", "gates", "registry", "resources")
    write(tmp_path / "common.yaml", common)
    pieces = load(write(tmp_path / "recipe.yaml", {"include": ["common.yaml"], **own}))
    whole = load(write(tmp_path / "whole.yaml", tiny_recipe()))
    assert pieces.recipe == whole.recipe
    assert pieces.digest == whole.digest


def test_mappings_are_merged_and_all_else_is_replaced_by_what_lies_above(tmp_path):
    lists = {"gates": [{"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.2}]}
    write(tmp_path / "base.yaml", {**tiny_recipe(early_stopping={"look": 16, "share": 0.1}), "seed": 3})
    write(tmp_path / "night.yaml", {"early_stopping": {"look": 32}, **lists})
    own = {"include": ["base.yaml", "night.yaml"], "early_stopping": {"enabled": False}, "seed": 4}
    recipe = load(write(tmp_path / "recipe.yaml", own)).recipe
    stopping = recipe.early_stopping
    assert (stopping.enabled, stopping.look, stopping.share) == (False, 32, 0.1)
    assert [gate.margin for gate in recipe.gates] == [0.2]
    assert recipe.seed == 4


def test_a_mapping_of_another_kind_takes_the_place_of_the_old_one(tmp_path):
    write(tmp_path / "base.yaml", tiny_recipe(model={"kind": "hub", "repo": "org/model", "revision": "v1"}))
    own = {"include": ["base.yaml"], "model": {"kind": "directory", "path": str(TINY / "checkpoint")}}
    assert load(write(tmp_path / "recipe.yaml", own)).recipe.model.kind == "directory"
    pinned = {"include": ["base.yaml"], "model": {"revision": "v2"}}
    model = load(write(tmp_path / "pinned.yaml", pinned)).recipe.model
    assert (model.repo, model.revision) == ("org/model", "v2")


def test_paths_are_relative_to_the_file_that_they_stand_in(tmp_path):
    shutil.copyfile(TINY / "items.jsonl", write(tmp_path / "shared" / "items.jsonl", ""))
    write(tmp_path / "shared" / "evals.yaml", {"evals": [{"kind": "items", "name": "facts", "path": "items.jsonl"}]})
    write(tmp_path / "shared" / "deep" / "base.yaml", {"include": ["../evals.yaml"], **parts("evals")[1]})
    loaded = load(write(tmp_path / "mine" / "recipe.yaml", {"include": ["../shared/deep/base.yaml"]}))
    assert Path(loaded.recipe.evals[0].path).samefile(tmp_path / "shared" / "items.jsonl")
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "shared", copied / "shared")
    shutil.copytree(tmp_path / "mine", copied / "mine")
    assert load(copied / "mine" / "recipe.yaml").digest == loaded.digest, "where it lies is no part of it"


def test_an_error_names_the_file_and_the_line_where_the_value_stands(tmp_path):
    _, own = parts("variants")
    text = "# variants\nvariants:\n  - {name: int8, scheme: W4A61, method: {kind: rtn}}\n"
    write(tmp_path / "common.yaml", text)
    path = write(tmp_path / "recipe.yaml", {"include": ["common.yaml"], **own, "sed": 1})
    problems = problems_of(path)
    assert problems[0].startswith("recipe.yaml:") and "'sed'" in problems[0]
    assert problems[1].startswith(f"{tmp_path}/common.yaml:3 variants.0.scheme: 'W4A61' is not a preset")
    assert len(problems) == 2


def test_a_line_that_was_replaced_is_not_named_any_more(tmp_path):
    write(tmp_path / "common.yaml", tiny_recipe())
    own = "include: [common.yaml]\n\n\nvariants:\n  - {name: a, method: {kind: rtn}}\n"
    (problem, *_) = problems_of(write(tmp_path / "recipe.yaml", own), "registry.targets={}")
    assert problem.startswith("recipe.yaml:5 variants.0")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"recipe.yaml": "include: [nope.yaml]"}, "recipe.yaml:1 include.0: there is no file"),
        ({"recipe.yaml": "include: common.yaml"}, "recipe.yaml:1 include: give a list of files"),
        ({"recipe.yaml": "include: [1]"}, "recipe.yaml:1 include: give a list of files"),
        ({"recipe.yaml": "include: [recipe.yaml]"}, "recipe.yaml:1 include.0: a file cannot include itself"),
        (
            {"recipe.yaml": "include: [a.yaml]", "a.yaml": "seed: 1\ninclude: [sub/../recipe.yaml]", "sub/x": ""},
            "a.yaml:2 include.0: a file cannot include itself",
        ),
        ({"recipe.yaml": "include: [a.yaml]", "a.yaml": "x: [\n"}, "a.yaml:2: this is not YAML"),
        ({"recipe.yaml": "include: [a.yaml]", "a.yaml": "- x\n"}, "a.yaml:1: a recipe is a mapping"),
        ({"recipe.yaml": "include: [sub]", "sub/x": ""}, "recipe.yaml:1 include.0:"),
    ],
)
def test_a_file_that_cannot_be_included_is_named_where_it_is_asked_for(tmp_path, files, says):
    for name, text in files.items():
        write(tmp_path / name, text)
    (problem,) = problems_of(tmp_path / "recipe.yaml")
    assert says in problem


def test_files_that_include_each_other_without_end_are_refused(tmp_path):
    for depth in range(12):
        write(tmp_path / f"{depth}.yaml", {"include": [f"{depth + 1}.yaml"]})
    (problem,) = problems_of(tmp_path / "0.yaml")
    assert problem == f"{tmp_path}/8.yaml:2 include.0: files are included 8 deep at most"


def test_set_lies_over_every_file_and_does_not_include(tmp_path):
    write(tmp_path / "common.yaml", tiny_recipe())
    path = write(tmp_path / "recipe.yaml", {"include": ["common.yaml"]})
    assert load(path, ("variants.int8.scheme=W4A16", "seed=7")).recipe.seed == 7
    (problem,) = problems_of(path, "include=[other.yaml]")
    assert "files are included before --set" in problem


def test_the_copy_that_a_run_keeps_is_the_merged_recipe_and_hides_what_is_secret(tmp_path):
    notify = {"notify": [{"kind": "webhook", "url": "https://chat.example/secret-part"}]}
    write(tmp_path / "common.yaml", tiny_recipe(release=notify))
    loaded = load(write(tmp_path / "recipe.yaml", {"include": ["common.yaml"], "seed": 5}))
    assert "secret-part" not in loaded.text
    kept = yaml.safe_load(loaded.text)
    assert "include" not in kept and kept["seed"] == 5 and kept["variants"][0]["name"] == "int8"
    assert loaded.text.startswith(f"# Merged by quantize from {tmp_path}/recipe.yaml, {tmp_path}/common.yaml\n")
    copy = write(tmp_path / "copy.yaml", loaded.text.replace("https://hidden/...", "https://chat.example/other"))
    assert load(copy).recipe.variants == loaded.recipe.variants


def test_an_editor_knows_include_and_asks_no_file_for_what_another_may_say():
    import jsonschema

    schema = json_schema()
    jsonschema.validate({"include": ["common.yaml"], "seed": 1}, schema)
    with pytest.raises(jsonschema.ValidationError, match="required"):
        jsonschema.validate({"seed": 1}, schema)


def test_plan_takes_a_recipe_of_two_files(tmp_path):
    common, own = parts("version", "model", "registry")
    write(tmp_path / "common.yaml", common)
    path = write(tmp_path / "recipe.yaml", {"include": ["common.yaml"], **own})
    result = command("plan", path, "--store", tmp_path / "store", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["recipe"] == "tiny"
