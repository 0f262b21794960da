"""The MLflow registry on an embedded database and on a real server: the same answers, and errors that help."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from quantize.errors import DataError, RegistryError
from quantize.registries import Mlflow, alias_problem
from quantize.registries._client import public, sanitize
from quantize.registry import MANIFEST_FILE
from quantize.verdict import Decision

pytest_plugins = ["release_fixtures"]

CREATOR = """
import sys
from pathlib import Path
from quantize.registries import Mlflow
registry = Mlflow(name="m", uri=sys.argv[1])
run = registry.start_run(sys.argv[3], None, {})
print(registry.publish(Path(sys.argv[2]), "{}", sys.argv[3], run, {"state": "registered"}).version)
"""


@pytest.fixture(params=["embedded", "server"])
def registry(request, tmp_path):
    """A registry that nobody has used yet."""
    if request.param == "embedded":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "mlflow.db")
        return Mlflow(name="m", uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "mlartifacts"))
    return Mlflow(name=f"m-{tmp_path.name}", uri=request.getfixturevalue("server").address)


@pytest.fixture
def checkpoint(tmp_path):
    """A few files in the shape of a checkpoint, one of them in a folder."""
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    (folder / "sub" / "more.json").write_text("{}", encoding="utf-8")
    return folder


def published(registry, checkpoint, variant="int8", **tags):
    run = registry.start_run(variant, None, {"variant": variant})
    return registry.publish(checkpoint, '{"files": []}', variant, run, {"state": "registered", **tags})


def client(registry):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)


def test_a_registry_that_was_never_used_is_empty_and_asking_makes_nothing(registry, tmp_path):
    (tmp_path / "mlflow.db").unlink(missing_ok=True)
    assert registry.versions() == []
    assert registry.aliases() == {}
    assert not (tmp_path / "mlflow.db").exists()


def test_a_published_version_comes_back_with_its_tags_aliases_and_bytes(registry, checkpoint, tmp_path):
    first = published(registry, checkpoint, "baseline", artifact_digest="d1")
    second = published(registry, checkpoint, "int8", artifact_digest="d2")
    registry.set_alias("int8", second.version)
    registry.tag(second.version, {"state": "promoted"})
    versions = registry.versions()
    assert [(v.version, v.variant, v.state, v.artifact_digest, v.aliases) for v in versions] == [
        ("1", "baseline", "registered", "d1", ()),
        ("2", "int8", "promoted", "d2", ("int8",)),
    ]
    assert versions[1].run_id == second.run_id != first.run_id
    assert registry.aliases() == {"int8": "2"}
    registry.download("2", tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    expected = {p.relative_to(checkpoint).as_posix(): p.read_bytes() for p in checkpoint.rglob("*.*")}
    assert found == {**expected, MANIFEST_FILE: b'{"files": []}'}


def test_consumers_load_a_version_by_its_alias_with_mlflow_alone(registry, checkpoint, tmp_path):
    published(registry, checkpoint)
    registry.set_alias("production", "1")
    script = "import sys, mlflow; print(mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2]))"
    address = f"models:/{registry.name}@production"
    (tmp_path / "out").mkdir()
    subprocess.run(
        [sys.executable, "-c", script, address, tmp_path / "out"],
        env={**os.environ, "MLFLOW_TRACKING_URI": registry.uri},
        check=True,
    )
    weights = next((tmp_path / "out").rglob("model.safetensors"))
    assert weights.read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_runs_hold_parameters_metrics_files_and_the_decision(registry, tmp_path):
    parent = registry.start_run("parent", None, {})
    child = registry.start_run("int8", parent, {"variant": "int8"})
    rows = tmp_path / "rows.parquet"
    rows.write_bytes(b"rows")
    params = {f"p{i}": "x" * 7000 for i in range(120)}
    metrics = {f"facts.accuracy/slice {i}": i / 200 for i in range(150)} | {"kl@50%": 0.5, "a//b": 1.0}
    registry.log(child, params, metrics, {"rows/facts": [rows]})
    decision = Decision(
        variant="int8",
        action="promote",
        outcome="pass",
        sentence="s",
        verdict_digest="v",
        artifact_digest="a",
        model="m",
        model_version="2",
        previous_version=None,
        aliases={},
        decided_at="2026-01-01T00:00:00+00:00",
        actor="somebody",
        run=child,
    )
    registry.log_decision(child, decision)
    registry.end_run(child, "FINISHED")
    run = client(registry).get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["quantize.action"] == "promote"
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 120
    assert run.data.metrics["facts.accuracy/slice 149"] == 149 / 200
    assert (run.data.metrics["kl_50_"], run.data.metrics["a/b"]) == (0.5, 1.0)
    assert {file.path for file in client(registry).list_artifacts(child)} == {"decision.json", "rows"}
    assert [file.path for file in client(registry).list_artifacts(child, "rows/facts")] == ["rows/facts/rows.parquet"]


def test_a_logged_file_comes_back_with_its_bytes_and_one_that_is_not_there_is_named(registry, tmp_path):
    run = registry.start_run("int8", None, {})
    (tmp_path / "rows.parquet").write_bytes(bytes(range(256)))
    registry.log(run, {}, {}, {"rows/facts": [tmp_path / "rows.parquet"]})
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    fetched = registry.fetch(run, "rows/facts/rows.parquet", tmp_path / "one")
    assert fetched.is_relative_to(tmp_path / "one")
    assert fetched.read_bytes() == bytes(range(256))
    with pytest.raises(DataError, match=f"MLflow run {run}.*holds no rows/prose/rows.parquet"):
        registry.fetch(run, "rows/prose/rows.parquet", tmp_path / "two")


def test_clients_that_publish_at_once_all_get_a_version_of_their_own(registry, checkpoint, tmp_path):
    (tmp_path / "mlflow.db").unlink(missing_ok=True)  # on an embedded database, they also lay it out at once

    def publish(name):
        command = [sys.executable, "-c", CREATOR, registry.uri, checkpoint, name]
        code = command[2].replace('"m"', repr(registry.name))
        return subprocess.run([*command[:2], code, *command[3:]], capture_output=True, text=True)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(publish, ["a", "b", "c"]))
    assert [result.stderr for result in results] == [""] * 3
    assert sorted(result.stdout.strip() for result in results) == ["1", "2", "3"]


def test_what_does_not_exist_is_a_registry_error(registry, checkpoint):
    published(registry, checkpoint)
    with pytest.raises(RegistryError, match="MLflow refuses"):
        registry.set_alias("int8", "9")
    with pytest.raises(RegistryError, match="MLflow refuses"):
        registry.tag("9", {"state": "x"})


def test_a_deleted_experiment_is_not_used_again(registry):
    run = registry.start_run("r", None, {})
    client(registry).delete_experiment(client(registry).get_run(run).info.experiment_id)
    with pytest.raises(RegistryError, match=r"deleted.*Restore it"):
        registry.start_run("r", None, {})


def test_a_dead_server_is_said_so_within_seconds_and_without_credentials():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    registry = Mlflow(name="m", uri=f"http://somebody:secret@127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(RegistryError, match="does not answer") as caught:
        registry.versions()
    assert time.monotonic() - started < 10
    assert "secret" not in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)


def test_a_server_that_dies_later_is_said_so_within_seconds(monkeypatch, tmp_path):
    """The first question was answered; the next one meets nobody."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as web:
        thread = Thread(target=web.handle_request)
        thread.start()
        registry = Mlflow(name="m", uri=f"http://127.0.0.1:{web.server_port}")
        from quantize.registries import _client

        _client._client(registry.uri)
        thread.join()
    started = time.monotonic()
    with pytest.raises(RegistryError, match="does not answer"):
        registry.versions()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "file:///tmp/mlruns", "postgresql://user:secret@host/db", "sqlite://", "sqlite:///", "http://[::1"],
)
def test_an_address_that_cannot_be_released_to_is_refused_with_those_that_can(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=r"not an address.*https://host:port.*sqlite:///") as caught:
        Mlflow(name="m", uri=uri).versions()
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_said_so_within_seconds(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database" * 100, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(RegistryError, match="not a database"):
        Mlflow(name="m", uri=f"sqlite:///{tmp_path}/mlflow.db").versions()
    assert time.monotonic() - started < 10


def test_an_embedded_registry_keeps_its_files_beside_its_database(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    registry = Mlflow(name="m", uri=f"sqlite:///{tmp_path}/a störe/mlflow.db")
    published(registry, checkpoint)
    assert list((tmp_path / "a störe" / "mlartifacts").rglob("model.safetensors"))
    assert list(Path.cwd().iterdir()) == []
    registry.download("1", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_a_checkpoint_of_links_is_published_as_the_files_they_point_at(registry, checkpoint, tmp_path):
    """The store refers to a local model's weights instead of holding them."""
    (tmp_path / "links").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "links" / name).symlink_to(checkpoint / name)
    published(registry, tmp_path / "links", "baseline")
    (checkpoint / "model.safetensors").rename(tmp_path / "moved")
    registry.download("1", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "moved").read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_tags_and_parameters_may_be_empty(registry, checkpoint):
    version = published(registry, checkpoint, lower="")
    registry.tag(version.version, {"rollback_pending": ""})
    assert {registry.versions()[0].tags[key] for key in ("lower", "rollback_pending")} == {""}
    run = registry.start_run("r", None, {})
    registry.log(run, {"note": ""}, {}, {})
    assert client(registry).get_run(run).data.params == {"note": ""}


def test_names_that_mlflow_would_refuse_are_refused_in_the_recipe():
    for name in ("a.b", "v1", "7", "latest", "x-previous", "x-candidate", ""):
        assert alias_problem(name)
        with pytest.raises(ValidationError):
            Mlflow(name="m", targets={name: {"from": ["int8"]}})
    assert alias_problem("int4-gptq") is None


def test_credentials_and_odd_characters_are_taken_out():
    assert public("https://u:p@host:5000/x") == "https://host:5000/x"
    assert public("https://u:p@ss@host:5000/x") == "https://host:5000/x"
    assert public("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    assert sanitize("a%b/../c//d:e") == "a_b/c/d_e"
    assert sanitize("x" * 300) == "x" * 250
    assert sanitize("//") == "_"
