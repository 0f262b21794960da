"""`quantize verify`: a flipped byte anywhere is found and named, and a copied store says the same elsewhere."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from program import TINY, command, seldom, tiny_recipe, write_recipe

from quantize.checking import Check, verify_run
from quantize.evidence import Evidence
from quantize.record import canonical_json, digest, file_sha256
from quantize.run import read_record
from quantize.seal import SEAL, read_seal, seal
from quantize.store import MANIFEST, Store
from quantize.verdict import Verdict

SEEDS = 100
#: What a finished run of the `finished` recipe is made of; a kind is the folder's kind and the file's name.
EXPECTED = {
    *(
        f"run {name}"
        for name in "run.json recipe.yaml recipe.resolved.json report.md report.html seal.json log".split()
    ),
    *(f"{kind} manifest.json" for kind in "fetch calibrate quantize prove evaluate judge".split()),
    *(f"fetch {name}" for name in "model.safetensors config.json tokenizer.json tokenizer_config.json".split()),
    *(f"quantize {name}" for name in "model.safetensors config.json tokenizer.json witness.safetensors".split()),
    *("calibrate tokens.safetensors", "prove proof.json"),
    *(f"judge {name}" for name in "evidence.json verdict.json rules.json".split()),
    *(f"evaluate {name}" for name in "rows.parquet measurements.json reference head.json".split()),
}


def kinds(run: Path, store: Path) -> dict[str, list[Path]]:
    """Every file of a run and of its artifacts with at least one byte, by kind."""
    found: dict[str, list[Path]] = {}
    sealed = read_seal(run)
    assert sealed is not None
    folders = [path for key in {**sealed.artifacts, **sealed.parts} if (path := Store(store).locate(key)) is not None]
    for folder in (run, *folders):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.stat().st_size > 0:
                name = "log" if path.suffix == ".log" else re.sub(r"-\d+\.safetensors$", "", path.name)
                found.setdefault(f"{'run' if folder == run else folder.parent.name} {name}", []).append(path)
    return dict(sorted(found.items()))


def problems(checks: list[Check]) -> list[str]:
    return [problem for check in checks for problem in check.problems]


def reseal(run: Path, store: Path) -> None:
    """What somebody does who wants a change to go unnoticed."""
    seal(run, Store(store), read_record(run).keys())


def overwrite(artifact: Path, name: str, text: str) -> None:
    """Change a file of an artifact, and its manifest so that it fits."""
    (artifact / name).write_text(text, encoding="utf-8")
    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry |= {"sha256": file_sha256(artifact / name), "size": (artifact / name).stat().st_size}
    (artifact / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def held(finished, tmp_path_factory):
    """A copy of the finished store that holds the model's files itself: (run folder, store)."""
    store = tmp_path_factory.mktemp("held") / "store"
    shutil.copytree(finished[0], store, symlinks=False)
    return store / "runs" / finished[1]["run"], store


@pytest.fixture
def run(copied, finished):
    return copied / "runs" / finished[1]["run"]


@pytest.mark.slow
def test_every_kind_of_file_of_a_run_is_among_those_that_are_damaged(held):
    found = kinds(*held)
    assert set(found) >= EXPECTED
    assert len(found) <= SEEDS
    assert {list(found)[seed % len(found)] for seed in range(SEEDS)} == set(found)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_one_flipped_byte_in_any_file_is_found_and_the_file_is_named(held, seed):
    """The kind goes round, so that each is drawn; file, place and bits are random."""
    draw = random.Random(seed)
    found = kinds(*held)
    path = draw.choice(found[list(found)[seed % len(found)]])
    before = path.read_bytes()
    data = bytearray(before)
    data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    path.write_bytes(bytes(data))
    try:
        told = problems(verify_run(held[0], Store(held[1])))
    finally:
        path.write_bytes(before)
    assert any(str(path) in problem for problem in told), f"{path}: {told}"


def test_an_undamaged_run_has_no_problem_and_is_verified_in_seconds(held):
    started = time.monotonic()
    checks = verify_run(held[0], Store(held[1]))
    assert problems(checks) == []
    assert {"verdict of int8: pass", "verdict of int4-gptq: pass"} <= {check.what for check in checks}
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", ["report.md", "logs/judge-int8.log", "recipe.yaml", "run.json"])
def test_a_file_that_is_gone_is_named(run, copied, name):
    (run / name).unlink()
    assert any(problem.startswith(f"{run / name}: missing") for problem in problems(verify_run(run, Store(copied))))


def test_a_file_that_was_added_is_named(run, copied):
    (run / "logs" / "more.log").write_text("more", encoding="utf-8")
    (told,) = problems(verify_run(run, Store(copied)))
    assert told.startswith(f"{run / 'logs/more.log'}: not in the seal")


def test_an_artifact_that_is_gone_is_named(run, copied):
    key = next(v for v in read_record(run).variants if v.name == "int8").stages["prove"]
    shutil.rmtree(copied / "prove" / key[:24])
    checks = {check.what: check.problems for check in verify_run(run, Store(copied))}
    assert "not in the store" in checks[f"artifact {key[:12]}"][0]
    assert "proof" in checks["verdict of int8: pass"][0]
    assert checks["verdict of int4-gptq: pass"] == ()


@pytest.mark.parametrize("text", ["{}", "[]", "", "null", '{"seal":{},"sha256":""}'])
def test_a_seal_that_is_none_is_refused_and_all_else_is_checked(run, copied, text):
    (run / SEAL).write_text(text, encoding="utf-8")
    checks = verify_run(run, Store(copied))
    (told,) = problems(checks)
    assert told.startswith(str(run / SEAL))
    assert "verdict of int8: pass" in {check.what for check in checks}


def test_a_seal_with_another_spelling_or_an_unknown_key_is_refused(run, copied):
    document = json.loads((run / SEAL).read_bytes())
    more = {**document["seal"], "more": 1}
    for data in (
        json.dumps(document).encode(),
        canonical_json({**document, "more": 1}),
        canonical_json({"seal": more, "sha256": digest(more)}),
    ):
        (run / SEAL).write_bytes(data)
        (told,) = problems(verify_run(run, Store(copied)))
        assert told.startswith(str(run / SEAL))


def test_a_run_without_a_seal_is_said_to_be_one_and_its_verdicts_are_recomputed(run, copied):
    (run / SEAL).unlink()
    checks = verify_run(run, Store(copied))
    (told,) = problems(checks)
    assert "interrupted before it was sealed" in told
    assert "Run the same recipe again" in told
    judge = copied / "judge" / read_record(run).variants[0].stages["judge"][:24]
    (judge / MANIFEST).write_text("{}", encoding="utf-8")
    assert any(str(judge / MANIFEST) in problem for problem in problems(verify_run(run, Store(copied))))


def test_forged_evidence_is_found_though_manifest_seal_and_record_were_made_to_fit(run, copied):
    record = read_record(run)
    variant = record.variants[0]
    assert variant.evidence is not None
    forged = [c.model_copy(update={"difference": c.difference + 1e-3}) for c in variant.evidence.comparisons]
    evidence: Evidence = variant.evidence.model_copy(update={"comparisons": forged})
    judge = copied / "judge" / variant.stages["judge"][:24]
    overwrite(judge, "evidence.json", evidence.model_dump_json())
    reseal(run, copied)
    told = problems(verify_run(run, Store(copied)))
    assert [problem.partition(":")[0] for problem in told] == [str(judge / "evidence.json")]
    variants = [variant.model_copy(update={"evidence": evidence}), *record.variants[1:]]
    text = record.model_copy(update={"variants": variants}).model_dump_json()
    (run / "run.json").write_text(text, encoding="utf-8")
    reseal(run, copied)
    told = problems(verify_run(run, Store(copied)))
    assert [problem.partition(":")[0] for problem in told] == [str(judge / "evidence.json"), "run.json"]


def test_a_record_that_says_another_verdict_than_its_artifact_is_found_though_it_was_sealed(run, copied):
    record = read_record(run)
    verdict: Verdict = record.variants[0].verdict.model_copy(update={"outcome": "fail"})
    variants = [record.variants[0].model_copy(update={"verdict": verdict}), *record.variants[1:]]
    text = record.model_copy(update={"variants": variants}).model_dump_json()
    (run / "run.json").write_text(text, encoding="utf-8")
    reseal(run, copied)
    (told,) = problems(verify_run(run, Store(copied)))
    assert told.startswith("run.json: recomputed from the rows the verdict is pass")


UNSEALED = ["run.record_written", "run.record_kept", "run.seal_written"]


@pytest.mark.parametrize("name", seldom(UNSEALED, often=("run.record_kept",)))
def test_a_run_killed_before_its_seal_says_so_and_the_next_one_is_whole(copied, finished, name):
    recipe = finished[2]
    killed = command("run", recipe, "--store", copied, "--no-release", QUANTIZE_FAULT=name)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = command("verify", "--store", copied)
    assert result.returncode == 1
    assert "Run the same recipe" in result.stdout + result.stderr
    again = command("run", recipe, "--store", copied, "--no-release", "--json")
    assert json.loads(again.stdout)["ran"] == []
    result = command("verify", "--store", copied)
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run whose store was copied, and whose model and evals are gone: (run's name, `cp -rL`, `cp -r`)."""
    home, other = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("other")
    shutil.copytree(TINY / "checkpoint", home / "model")
    shutil.copy(TINY / "items.jsonl", home / "items.jsonl")
    recipe = tiny_recipe(
        model={"kind": "directory", "path": str(home / "model")},
        evals=[{"kind": "items", "name": "facts", "path": str(home / "items.jsonl")}],
    )
    result = command("run", write_recipe(home, recipe), "--store", home / "store", "--no-release", "--json")
    assert result.returncode == 0, result.stderr
    shutil.copytree(home / "store", other / "whole", symlinks=False)
    shutil.copytree(home / "store", other / "links", symlinks=True)
    shutil.rmtree(home)
    return json.loads(result.stdout)["run"], other / "whole", other / "links"


def test_a_copied_store_verifies_in_another_place_with_model_evals_and_recipe_gone(moved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, store, _ = moved
    checks = verify_run(store / "runs" / name, Store(store))
    assert problems(checks) == []
    assert "verdict of int8: pass" in {check.what for check in checks}


def test_files_that_a_copied_store_only_refers_to_are_named_with_the_mend_and_the_verdict_is_recomputed(moved):
    name, _, store = moved
    checks = verify_run(store / "runs" / name, Store(store))
    told = problems(checks)
    assert len(told) == sum(path.is_symlink() for path in store.rglob("*")) > 0
    assert all("cp -rL" in problem for problem in told)
    assert {check.what: check.problems for check in checks}["verdict of int8: pass"] == ()
