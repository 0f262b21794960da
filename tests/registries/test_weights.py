"""Weights that go past the MLflow server: what lies where, what a pull finds, and what a crash leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import Server
from program import command, seldom, tiny_recipe, write_recipe
from release_world import Result, World

from quantize import operate
from quantize.claims import check_claims, listed_files
from quantize.errors import RecipeError, RegistryError, StorageError
from quantize.history import check_journal, history, status
from quantize.pull import pull
from quantize.recipe import load
from quantize.registry import MANIFEST_FILE

pytest_plugins = ["release_fixtures", "bucket_fixtures"]

FIRST = Result("fp8", b"first" * 200_000)
SECOND = Result("fp8", b"second" * 90_000)
SMALL = Result("int4", b"small" * 10_000)


@pytest.fixture
def remote(server, bucket, tmp_path):
    """A world on the shared MLflow server whose weights go to a bucket of its own."""
    return World(tmp_path, server.address, model=f"w-{tmp_path.name}", weights=f"s3://{bucket}/models")


@pytest.fixture
def shared(world, tmp_path):
    """A world with an embedded database whose weights go to a shared folder."""
    (tmp_path / "share").mkdir()
    world.weights = (tmp_path / "share").as_uri()
    return world


@pytest.fixture(params=["embedded database, shared folder", "server, bucket"])
def either(request):
    return request.getfixturevalue("shared" if "folder" in request.param else "remote")


def live(world: World) -> None:
    """Two releases, a rollback and a promotion by hand."""
    world.release(FIRST, Result("int4", b"broken", "fail"))
    world.release(SECOND, SMALL)
    operate.rollback(world.registry, "fp8", None, "customers complain", "eva")
    operate.promote(world.registry, "fp8", "4", "it was not the model", "eva", force=True)


def facts(world: World) -> list[tuple[object, ...]]:
    rows = [(v.variant, v.state, v.artifact_digest, v.aliases, v.weight_bytes) for v in status(world.registry)]
    told = [(e.what, e.variant, e.version, e.aliases, e.against, e.actor) for e in history(world.registry)]
    return [*rows, *sorted(told, key=str)]


def judged(out: Path) -> dict[str, bytes]:
    """The files of a version that was pulled, without those that say how to serve it."""
    names = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("serving/")}


def bytes_at(server: Server) -> int:
    return sum(path.stat().st_size for path in server.files.rglob("*") if path.is_file())


def digest_of(world: World, version: str) -> str:
    return next(v.artifact_digest for v in world.registry.versions() if v.version == version)


def test_no_weights_pass_the_server(server, remote, buckets, bucket):
    """Red when `publish` logs the checkpoint besides."""
    before, weights = bytes_at(server), set(server.files.rglob("model.safetensors"))
    remote.release(FIRST)
    assert bytes_at(server) - before < len(FIRST.weights) / 10
    assert set(server.files.rglob("model.safetensors")) == weights
    under = f"models/{remote.model}/{digest_of(remote, '2')}"
    objects = {name.removeprefix(f"{under}/"): size for name, size in buckets.objects(bucket).items() if under in name}
    assert set(objects) == {"config.json", "extra/tokenizer.json", "model.safetensors", MANIFEST_FILE}
    assert objects["model.safetensors"] == len(FIRST.weights)
    assert remote.registry.versions()[1].tags["weights_uri"] == f"s3://{bucket}/{under}"


@pytest.mark.slow
def test_a_whole_life_ends_in_the_same_state_wherever_the_weights_are(empty_database, either, tmp_path):
    (tmp_path / "plain").mkdir()
    shutil.copy(empty_database, tmp_path / "plain" / "mlflow.db")
    plain = World(tmp_path / "plain", f"sqlite:///{tmp_path}/plain/mlflow.db")
    live(plain)
    live(either)
    assert facts(either) == facts(plain)
    assert not check_journal(either.registry).problems
    for version in either.registry.versions():
        check_claims(either.registry, version)


def test_pull_brings_the_same_files_as_from_the_server(either, empty_database, tmp_path):
    (tmp_path / "plain").mkdir()
    shutil.copy(empty_database, tmp_path / "plain" / "mlflow.db")
    plain = World(tmp_path / "plain", f"sqlite:///{tmp_path}/plain/mlflow.db")
    for world, name in ((plain, "one"), (either, "two")):
        world.release(FIRST)
        pull(world.registry, "production", tmp_path / name)
    assert judged(tmp_path / "one") == judged(tmp_path / "two")
    assert judged(tmp_path / "two")["model.safetensors"] == FIRST.weights
    assert (tmp_path / "two" / "serving" / "README.md").exists()


def test_pull_by_name_needs_no_recipe(shared, tmp_path):
    shared.release(FIRST)
    result = command("pull", "tiny@production", tmp_path / "out", "--registry", shared.uri)
    assert result.returncode == 0, result.stderr
    assert judged(tmp_path / "out")["model.safetensors"] == FIRST.weights


@pytest.mark.parametrize("damage", ["a byte flips", "a file goes"])
def test_pull_finds_what_changed_in_the_bucket_and_leaves_nothing(remote, buckets, bucket, tmp_path, damage):
    """Red when `pull` believes a bucket."""
    remote.release(FIRST)
    key = f"models/{remote.model}/{digest_of(remote, '2')}/model.safetensors"
    if damage == "a byte flips":
        wrong = FIRST.weights[:-1] + bytes([FIRST.weights[-1] ^ 1])
        buckets.client().put_object(Bucket=bucket, Key=key, Body=wrong)
    else:
        buckets.client().delete_object(Bucket=bucket, Key=key)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((RegistryError, StorageError), match=r"model\.safetensors(: there is no such| is not the file)"):
        pull(remote.registry, "fp8", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_fetched_for_a_list_that_is_not_the_judged_one(remote, buckets, tmp_path):
    remote.release(FIRST)
    remote.registry.tag("2", {"artifact_digest": "0" * 64})
    buckets.clear()
    with pytest.raises(RegistryError, match="list of files is not the one that was judged"):
        pull(remote.registry, "fp8", tmp_path / "out")
    assert buckets.requests("GET") == buckets.requests("HEAD") == []


def test_weights_that_were_moved_are_found_by_the_tag(shared, tmp_path):
    shared.release(FIRST)
    (tmp_path / "share" / "tiny").rename(tmp_path / "moved")
    shared.registry.tag("2", {"weights_uri": f"{(tmp_path / 'moved').as_uri()}/{digest_of(shared, '2')}"})
    pull(shared.registry, "fp8", tmp_path / "out")
    assert judged(tmp_path / "out")["model.safetensors"] == FIRST.weights


def test_a_tag_with_credentials_is_refused_and_not_repeated(shared, tmp_path):
    shared.release(FIRST)
    shared.registry.tag("2", {"weights_uri": "s3://key:hunter2@bucket/x"})
    with pytest.raises(StorageError, match="no credentials") as error:
        pull(shared.registry, "fp8", tmp_path / "out")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("path", ["../evil.py", "/etc/evil", "a/../../evil", "."])
def test_a_list_that_names_a_path_out_is_refused(path):
    with pytest.raises(RegistryError, match="its list of files names"):
        listed_files(json.dumps({"files": [{"path": path, "size": 1, "sha256": "0" * 64}]}), "version 1")


def test_what_mlflow_alone_loads_is_the_list_and_where_the_files_are(remote, bucket, tmp_path):
    remote.release(FIRST)
    script = "import sys, mlflow; print(mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2]))"
    (tmp_path / "out").mkdir()
    subprocess.run(
        [sys.executable, "-c", script, f"models:/{remote.model}@production", tmp_path / "out"],
        env={**os.environ, "MLFLOW_TRACKING_URI": remote.uri},
        check=True,
    )
    found = judged(tmp_path / "out")
    assert set(found) >= {MANIFEST_FILE, "README.md"}
    assert f"s3://{bucket}/models/{remote.model}/{digest_of(remote, '2')}" in found["README.md"].decode()
    assert not [name for name in found if name.endswith("safetensors")]


def crash(fault: str, world: World) -> None:
    os.environ["QUANTIZE_FAULT"] = fault
    world.release(FIRST)


FAULTS = ["storage.put@4", "storage.put@5", "storage.sealed@2", "release.published"]


@pytest.mark.parametrize("fault", seldom(FAULTS, often=("storage.put@5",)))
def test_a_release_that_was_killed_at_its_weights_sends_the_rest_and_makes_one_version(remote, buckets, bucket, fault):
    """The baseline's three files come first, so the fourth is the variant's first."""
    process = multiprocessing.get_context("spawn").Process(target=crash, args=(fault, remote))
    process.start()
    process.join(180)
    assert process.exitcode == -signal.SIGKILL
    there = {name for name in buckets.objects(bucket) if not name.endswith(MANIFEST_FILE)}
    buckets.clear()
    remote.release(FIRST)
    sent = {path.removeprefix(f"/{bucket}/") for path, _ in buckets.requests("PUT")}
    assert not sent & there, "what was there is not sent again"
    assert [(v.variant, v.state) for v in remote.registry.versions()] == [("baseline", "baseline"), ("fp8", "promoted")]
    assert len(buckets.objects(bucket)) == 8


def test_the_same_run_again_asks_nothing_of_the_bucket(remote, buckets):
    remote.release(FIRST)
    buckets.clear()
    remote.release(FIRST)
    assert not any(buckets.requests(method) for method in ("GET", "HEAD", "PUT", "POST", "DELETE"))


def test_a_bucket_that_refuses_at_release_costs_no_evidence_and_the_next_run_sends(remote, buckets):
    buckets.behave(status=["403 no", "AccessDenied"])
    with pytest.raises(StorageError, match="access is refused"):
        remote.release(FIRST)
    assert list((remote.folder / "store").rglob("run.json"))
    assert remote.registry.versions() == []
    buckets.behave()
    assert remote.release(FIRST).variants[0].decision.action == "promote"
    assert remote.registry.aliases()["production"] == "2"


def test_another_list_at_that_place_is_named_and_left_alone(shared, tmp_path):
    _, record = shared.run(FIRST)
    place = tmp_path / "share" / "tiny" / record.variants[0].verdict.artifact_digest
    place.mkdir(parents=True)
    (place / MANIFEST_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(StorageError, match=f"the {MANIFEST_FILE} there is another one"):
        shared.release(FIRST)
    assert (place / MANIFEST_FILE).read_text(encoding="utf-8") == "{}"


def recipe(folder: Path, weights: str) -> Path:
    target = {"production": {"from": ["int8"], "prefer": "bytes"}}
    return write_recipe(
        folder, tiny_recipe(registry={"kind": "mlflow", "name": "tiny", "weights": weights, "targets": target})
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("s3://key:hunter2@bucket/prefix", "an address holds no credentials"),
        ("s3://bucket/p?token=hunter2", "an address has neither a query nor a fragment"),
        ("/mnt/share", "write s3://bucket/prefix"),
    ],
)
def test_a_recipe_with_another_kind_of_address_is_refused_at_its_line(tmp_path, weights, said):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:\d+ registry\.weights: {said}") as error:
        load(recipe(tmp_path, weights), ())
    assert "hunter2" not in str(error.value)


def test_plan_asks_the_place_before_any_time_is_spent_and_leaves_nothing_there(tmp_path, buckets, bucket):
    (tmp_path / "good").mkdir()
    good = command("plan", recipe(tmp_path / "good", f"s3://{bucket}/models"), "--store", tmp_path / "store")
    assert good.returncode == 0, good.stderr
    assert buckets.requests("PUT")
    assert buckets.objects(bucket) == {}
    for verb in ("plan", "run"):
        bad = command(verb, recipe(tmp_path, "s3://nowhere-at-all/models"), "--store", tmp_path / "store")
        assert bad.returncode == 2
        assert "registry.weights: s3://nowhere-at-all/models/tiny/quantize-probe: there is no such bucket" in bad.stderr
    assert not list((tmp_path / "store").rglob("manifest.json"))
