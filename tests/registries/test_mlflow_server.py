"""A model's whole life on a real `mlflow server` that keeps the artifacts, and the server's death."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from mlflow_server import Server, serving
from release_world import Result, World

from quantize import operate
from quantize.errors import RegistryError
from quantize.history import history, status
from quantize.pull import pull
from quantize.registries import Mlflow
from quantize.registry import MANIFEST_FILE
from quantize.release import release_run

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
SMALL = Result("int4", b"small" * 10)


def address(server: Server) -> str:
    """With a name and a password, which a server without accounts does not ask for and nothing may print."""
    return f"http://user:secret@127.0.0.1:{server.port}"


@pytest.fixture
def remote(server, tmp_path):
    """A world with a model of its own on the shared server."""
    return World(tmp_path, address(server), model=f"m-{tmp_path.name}")


def live(world: World) -> None:
    """Two releases, two rollbacks, a run that may not promote again, a promotion by hand."""
    world.release(FIRST, Result("int4", b"broken", "fail"))
    world.release(SECOND, SMALL)
    operate.rollback(world.registry, "production", None, "customers complain", "eva")
    operate.rollback(world.registry, "fp8", None, "and so do we", "eva")
    world.release(Result("fp8", SECOND.weights, note=" again"))
    operate.promote(world.registry, "fp8", "4", "it was not the model", "eva", force=True)


def facts(world: World) -> list[tuple[object, ...]]:
    """All that does not depend on the time or on the registry's kind, nor on whether a lock had to be taken over."""
    rows = [(v.variant, v.state, v.artifact_digest, v.aliases, v.weight_bytes) for v in status(world.registry)]
    events = [event for event in history(world.registry) if event.what != "lock taken"]
    told = [(e.what, e.variant, e.version, e.aliases, e.against, e.actor) for e in events]
    return [*rows, *sorted(told, key=str)]


def stored(server: Server, weights: bytes) -> Path:
    """Where the server keeps the file with these bytes."""
    return next(path for path in server.files.rglob("model.safetensors") if path.read_bytes() == weights)


def test_a_server_and_an_embedded_database_end_in_the_same_state(world, remote):
    live(world)
    live(remote)
    assert facts(remote) == facts(world)
    assert remote.registry.aliases() == world.registry.aliases()
    assert remote.registry.aliases()["production"] == "2"


def test_the_runs_and_their_files_are_on_the_server(remote):
    from mlflow import MlflowClient

    record = remote.release(FIRST)
    mlflow = MlflowClient(remote.uri, remote.uri)
    experiment = mlflow.get_experiment_by_name(remote.model)
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    assert set(runs) == {record.run, "baseline", "fp8"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    kept = {name: {f.path for f in mlflow.list_artifacts(run.info.run_id)} for name, run in runs.items()}
    assert kept[record.run] == {"recipe.yaml", "run.json", "report.html", "report.md"}
    checklist = {"checklist.json", "checklist.md"}
    assert kept["fp8"] == {"decision.json", "verdict.json", "evidence.json", "rows", "serving", *checklist}


def test_pull_brings_the_judged_bytes_through_the_server(remote, tmp_path):
    remote.release(FIRST)
    pull(remote.registry, "production", tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    judged = {name for name in found if not name.startswith("serving/")}
    assert judged == {"config.json", "model.safetensors", "extra/tokenizer.json", MANIFEST_FILE}
    assert "serving/README.md" in found
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == FIRST.weights


@pytest.mark.parametrize("damage", ["a byte flips", "a file is added", "a file goes"])
def test_pull_refuses_what_changed_on_the_servers_disk_and_leaves_nothing(server, remote, tmp_path, damage):
    """Red when pull skips its check of the files' digests (`pull._verify`)."""
    weights = damage.encode() * 50
    remote.release(Result("fp8", weights))
    file = stored(server, weights)
    if damage == "a byte flips":
        file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    elif damage == "a file is added":
        file.with_name("modeling_evil.py").write_text("print()", encoding="utf-8")
    else:
        file.unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RegistryError, match=r"model\.safetensors is not|modeling_evil\.py was added"):
        pull(remote.registry, "fp8", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_server_that_dies_during_a_release_is_named_and_the_next_run_finishes(
    empty_database, world, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    world.release(FIRST)
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server", empty_database) as mortal:
        remote = World(tmp_path / "client", address(mortal))
        runner, record = remote.run(FIRST)

        def dying(_record) -> dict[str, str]:
            mortal.kill()
            return {"report.md": "it is written after the aliases moved and before the release is concluded\n"}

        began = time.monotonic()
        with pytest.raises(RegistryError, match="does not answer") as error:
            release_run(remote.registry, runner, record, dying)
        assert time.monotonic() - began < 60
        assert f"127.0.0.1:{mortal.port}" in str(error.value)
        assert "secret" not in str(error.value)
        mortal.start()
        assert remote.registry.aliases() == world.registry.aliases()
        assert remote.registry.versions()[1].tags.get("decided") is None
        remote.release(FIRST)
        assert facts(remote) == facts(world)
        assert remote.registry.versions()[1].tags["decided"] == record.variants[0].verdict.digest()


@pytest.fixture
def proxy():
    """A proxy that lets nobody through: every run is known to it, and `answers` says what it replies to a method."""

    class Proxy(BaseHTTPRequestHandler):
        answers: ClassVar[dict[str, int]] = {}

        def do_GET(self):
            run = {"run": {"info": {"run_id": "r", "artifact_uri": "mlflow-artifacts:/1/r/artifacts"}}}
            self.reply(self.answers.get("GET", 200), json.dumps(run))

        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(self.answers["PUT"], "")

        def reply(self, status, text):
            body = (text if status == 200 else "<html>no</html>").encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        yield Mlflow(name="m", uri=f"http://user:secret@127.0.0.1:{web.server_port}"), Proxy.answers
        web.shutdown()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"GET": 401}, r"refuses access.*Set MLFLOW_TRACKING_USERNAME"),
        ({"PUT": 403}, r"refuses access.*MLFLOW_TRACKING_USERNAME.*needs EDIT"),
        ({"PUT": 413}, r"HTTP status 413.*files as large as the weights"),
        ({"PUT": 503}, r"HTTP status 503.*Look into the server's log"),
    ],
)
def test_what_a_proxy_answers_instead_is_said_with_its_mend(proxy, tmp_path, monkeypatch, answers, said):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    registry, told = proxy
    told.update(answers)
    (tmp_path / "rows.parquet").write_bytes(b"rows")
    began = time.monotonic()
    with pytest.raises(RegistryError, match=said) as error:
        registry.log(tmp_path.name, {}, {}, {"rows": [tmp_path / "rows.parquet"]})
    assert time.monotonic() - began < 30
    assert "secret" not in str(error.value)
