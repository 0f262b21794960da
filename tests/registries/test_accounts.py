"""A real `mlflow server` with accounts: who may not is told so, and no password is printed."""

from __future__ import annotations

import pytest
from mlflow_server import serving
from program import command
from release_processes import FIRST, SECOND
from release_world import World

from quantize import operate
from quantize.errors import RegistryAway, RegistryError
from quantize.history import check_journal, history, status

pytest_plugins = ["release_fixtures"]

ADMIN, READER = "correct-horse-battery", "staple-of-the-reader"


@pytest.fixture(scope="module")
def guarded(empty_database, tmp_path_factory):
    """A server with an administrator and a reader."""
    with serving(tmp_path_factory.mktemp("guarded"), empty_database, ADMIN) as server:
        import requests

        place = f"{server.address}/api/2.0/mlflow/users/create"
        reader = {"username": "reader", "password": READER}
        requests.post(place, json=reader, auth=("admin", ADMIN), timeout=30).raise_for_status()
        yield server


def account(patch: pytest.MonkeyPatch, user: str, password: str) -> None:
    """Ask as somebody, by MLflow's own environment variables."""
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


@pytest.mark.slow
def test_an_account_in_mlflows_environment_releases_promotes_and_rolls_back(guarded, tmp_path, monkeypatch):
    account(monkeypatch, "admin", ADMIN)
    world = World(tmp_path, guarded.address, model="guarded")
    world.release(FIRST)
    world.release(SECOND)
    place = ("--registry", world.uri)
    back = command("rollback", "guarded", "--alias", "fp8", "--unproven", "--reason", "worse", *place)
    assert back.stdout == "fp8: version 3 → 2\n", back.stderr
    assert operate.promote(world.registry, "fp8", "3", "it was not the model", "eva", force=True).before == "2"
    told = [event.what for event in history(world.registry) if event.what != "registered"]
    assert told == ["promoted", "served", "promoted", "served", "rolled back", "promoted"]
    # Who may only read sees everything and moves nothing.
    account(monkeypatch, "reader", READER)
    assert [row.version for row in status(world.registry)] == ["1", "2", "3"]
    refused = command("rollback", "guarded", "--alias", "fp8", "--unproven", "--reason", "worse", *place)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"error: {guarded.address}: the MLflow server refuses access" in refused.stderr
    assert "needs EDIT on the registered model, on its journal" in refused.stderr
    assert READER not in refused.stderr
    with pytest.raises(RegistryError, match="refuses access") as error:
        operate.rollback(world.registry, "fp8", "2", "worse", "eva")
    assert not isinstance(error.value, RegistryAway), "it is of no use to wait"
    assert world.registry.aliases()["fp8"] == "3"
    assert check_journal(world.registry).problems == ()


@pytest.mark.parametrize(
    ("user", "password"), [("admin", "wrong-password-of-mine"), ("nobody", "wrong-password-of-mine"), ("", "")]
)
def test_a_wrong_password_is_said_and_not_printed(guarded, tmp_path, monkeypatch, user, password):
    account(monkeypatch, user, password)
    if not user:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    result = command("rollback", "guarded", "--unproven", "--reason", "worse", "--registry", guarded.address)
    assert result.returncode == 1
    assert f"error: {guarded.address}: the MLflow server refuses access" in result.stderr
    assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in result.stderr
    assert "wrong-password" not in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
