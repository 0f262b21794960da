"""Fixtures of the tests of releases; a test module names this one in `pytest_plugins`."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest
from mlflow_server import serving
from release_world import World

from quantize.registries import Mlflow


@pytest.fixture(scope="session")
def server(empty_database, tmp_path_factory):
    """A server that tests share: each uses a model of its own."""
    with serving(tmp_path_factory.mktemp("server"), empty_database) as running:
        yield running


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database that MLflow has laid out, to copy: laying one out takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    registry = Mlflow(name="layout", uri=f"sqlite:///{file}")
    registry.end_run(registry.start_run("layout", None, {}), "FINISHED")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # one flush a commit: hundreds of commits wait for the disk
    return file


@pytest.fixture
def world(empty_database, tmp_path):
    """A world with an empty registry."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return World(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
