"""Where environments are made in tests: never where the user's are."""

from __future__ import annotations

import pytest

from quantize import environments


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A root in which nothing is made."""
    monkeypatch.setenv("QUANTIZE_ENVS", str(tmp_path / "envs"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "envs"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("tiny", *environments.names()):
        monkeypatch.delenv(environments.variable(name), raising=False)
