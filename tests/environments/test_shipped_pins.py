"""The environments that the program ships pins for, and the verbs about them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from quantize import environments
from quantize.cli_environments import env
from quantize.doctor import examine
from quantize.environments.pins import Pins
from quantize.errors import UsageError


def test_nothing_is_made_where_one_of_the_names_is_wrong(empty):
    result = CliRunner().invoke(env, ["create", "autoawq", "nonsense"])
    assert isinstance(result.exception, UsageError)
    assert not empty.exists()


def test_list_shows_every_environment_of_the_program(empty):
    result = CliRunner().invoke(env, ["list", "--json"])
    assert {entry["name"]: entry["state"] for entry in json.loads(result.stdout)} == dict.fromkeys(
        environments.names(), "missing"
    )
    lines = CliRunner().invoke(env, ["list"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(environments.names())


def test_help_says_what_each_environment_is_for():
    text = CliRunner().invoke(env, ["create", "--help"]).stdout
    assert all(name in text for name in environments.names())


def test_doctor_says_what_makes_each_environment_and_where_a_named_one_is(empty, monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTIZE_ENV_VLLM", sys.executable)
    monkeypatch.setenv("QUANTIZE_ENV_AUTOAWQ", str(tmp_path / "nothing"))
    lines = {line.what: line for line in examine(tmp_path) if line.what.startswith("env ")}
    assert set(lines) == {f"env {name}" for name in environments.names()}
    assert lines["env llamacpp"].fix.startswith("quantize env create llamacpp")
    assert lines["env vllm"].found == f"{sys.executable}, named by QUANTIZE_ENV_VLLM"
    assert [line.what for line in lines.values() if line.state == "fail"] == ["env autoawq"]
    assert "QUANTIZE_ENV_AUTOAWQ" in lines["env autoawq"].found


def version_of(packages: list[str], name: str) -> str | None:
    """The version that `name==version` pins."""
    found = dict(package.lower().replace("_", "-").split("==") for package in packages)
    return found.get(name)


@pytest.mark.parametrize("name", environments.names())
def test_shipped_pins_name_exact_versions_and_their_frozen_list_agrees(name):
    what: Pins = environments.read(name)
    direct = [package for step in what.steps for package in step.packages]
    assert all("==" in package for package in direct)
    assert what.constraints or name == "vllm", "vLLM for GPUs was not made where the others were tried"
    assert all("+" not in line and not line.startswith("nvidia") for line in what.constraints)
    for package in direct if what.constraints else []:
        distribution, version = package.lower().replace("_", "-").split("==")
        assert version_of(list(what.constraints), distribution) == version.split("+")[0]


@pytest.mark.slow
@pytest.mark.engine
def test_autogptq_is_made_from_its_pins_and_imports(empty, monkeypatch):
    """The real thing, from this machine's package index: it refuses to quantize without CUDA, but it can be made."""
    monkeypatch.delenv("PIP_NO_INDEX")
    found = environments.create("autogptq", print)
    result = subprocess.run(
        [found.python, "-I", "-c", "import auto_gptq; print(auto_gptq.__version__)"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0.7.1"
    assert environments.locate("autogptq") == found
