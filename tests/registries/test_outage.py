"""A server that is away while it is needed: seconds are waited for, and after more the same command does the rest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Thread

import pytest
from cut_proxy import proxied
from mlflow_server import serving
from program import command, seldom, start, tiny_recipe, wait_for, write_recipe
from release_processes import FIRST
from release_world import World

from quantize.errors import RegistryAway
from quantize.history import check_journal
from quantize.registries import Mlflow
from quantize.release import release_run
from quantize.run import read_record

pytest_plugins = ["release_fixtures"]


@pytest.mark.slow
def test_a_run_whose_server_died_keeps_its_evidence_and_the_same_command_measures_nothing_and_releases(
    empty_database, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server", empty_database) as server:
        address = f"http://127.0.0.1:{server.port}"
        registry = {"kind": "mlflow", "name": "tiny", "uri": address, "targets": {"production": {"from": ["int8"]}}}
        recipe = write_recipe(tmp_path, tiny_recipe(registry=registry))
        arguments = ("run", recipe, "--store", tmp_path / "store", "--json")
        dying = start(*arguments)
        wait_for(dying, "quantize")  # it has asked for earlier attempts, and begins to measure
        server.kill()
        output, said = dying.communicate(timeout=300)
        assert dying.returncode == 75, said
        assert output == ""
        (folder,) = (tmp_path / "store" / "runs").iterdir()
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"error: http://127.0.0.1:{server.port}: the MLflow server does not answer.")
        assert f"What was measured lies in {folder} and is not measured again." in last
        assert "the same command then releases" in last
        assert "secret" not in said
        assert "Traceback" not in said
        record = read_record(folder)
        assert [variant.verdict.outcome for variant in record.variants] == ["pass"]
        assert {path.name for path in folder.glob("report.*")} == {"report.md", "report.html"}
        away = command(*arguments)
        assert away.returncode == 75, "as long as the server is away"
        assert json.loads(Path(max((tmp_path / "store" / "runs").iterdir()), "run.json").read_text())["ran"] == []
        server.start()
        again = command(*arguments)
        assert again.returncode == 0, again.stderr
        document = json.loads(again.stdout)
        assert document["ran"] == []
        assert document["variants"][0]["decision"]["action"] == "promote"
        found = Mlflow(name="tiny", uri=address)
        assert found.aliases()["production"] == "2"
        assert [version.variant for version in found.versions()] == ["baseline", "int8"]
        assert check_journal(found).problems == ()
        third = command(*arguments)
        assert json.loads(third.stdout)["variants"][0]["decision"] is None
        assert len(found.versions()) == 2


@pytest.mark.parametrize("at", seldom([20, 60, 100], often=(60,)))
def test_a_server_that_is_away_for_a_second_is_waited_for(server, tmp_path, monkeypatch, at):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    with proxied(server.port) as (port, proxy):
        world = World(tmp_path, f"http://127.0.0.1:{port}", model=f"w-{tmp_path.name}"[:60])
        run = world.run(FIRST)
        proxy.fail(at, "before")
        restarted = Thread(target=come_back, args=(proxy, 1.0))
        restarted.start()
        record = release_run(world.registry, *run)
        restarted.join()
    decision = record.variants[0].decision
    assert decision is not None
    assert decision.action == "promote"
    assert world_at(server, world).aliases()["fp8"] == "2"
    assert check_journal(world_at(server, world)).problems == ()


def come_back(proxy, seconds: float) -> None:
    """Wait until the proxy is away, and some time more, and let it through again."""
    while not proxy.down:
        time.sleep(0.05)
    time.sleep(seconds)
    proxy.back()


def world_at(server, world: World) -> Mlflow:
    """The registry without the proxy."""
    return world.registry.model_copy(update={"uri": server.address})


def test_after_nobody_answered_the_next_question_waits_for_no_retries(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "2")
    with proxied(server.port) as (port, proxy):
        registry = Mlflow(name="m", uri=f"http://127.0.0.1:{port}")
        assert registry.aliases() == {}
        proxy.down = True
        seconds = []
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(RegistryAway, match="does not answer"):
                registry.aliases()
            seconds.append(time.monotonic() - began)
        assert seconds[0] > 3, "a server that is started anew is waited for"
        assert seconds[1] < 2
        proxy.back()
        assert registry.aliases() == {}
