"""A finished run of two formats in two engines, and engines that fail when they are told to.

The interpreter that `QUANTIZE_ENV_LLAMACPP` (or `..._VLLM_CPU`) names is a script that becomes the real one, except
where an engine's process is to load `ENGINE_VICTIM`: there it does what `ENGINE_FAULT` says. Path and packages stay the
same and so keys do too: a copy of the finished store is all that a test of a failure needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from format_world import EVALS, GATES, NF4, Q8, World
from program import tiny_recipe

from quantize.environments import variable

#: `killed` dies before it answers; `hangs` keeps its arguments, by which its process is found.
SCRIPT = """#!/bin/sh
case "$ENGINE_FAULT $*" in
    "killed "*{engine}*"$ENGINE_VICTIM"*) kill -9 $$ ;;
    "hangs "*{engine}*"$ENGINE_VICTIM"*) exec {python} -c "import time; time.sleep(600)" "$@" ;;
esac
exec {python} "$@"
"""
#: What stands in the command of an engine's process, by the environment that it runs in.
ENGINES = {"llamacpp": "_llamacpp_process.py", "vllm-cpu": "vllm.entrypoints"}


@pytest.fixture(scope="session")
def interpreters(
    environment: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, str]]:
    """Variables that name the interpreters of environments; those of serving engines are scripts."""
    folder = tmp_path_factory.mktemp("interpreters")

    def named(*names: str) -> dict[str, str]:
        found = {name: environment(name) for name in names}
        for name in ENGINES.keys() & found.keys():
            script = folder / name
            script.write_text(SCRIPT.format(engine=ENGINES[name], python=found[name]), encoding="utf-8")
            script.chmod(0o755)
            found[name] = script
        return {variable(name): str(path) for name, path in found.items()}

    return named


@pytest.fixture(scope="session")
def two(interpreters: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> World:
    """A finished run of a GGUF variant in llama.cpp and one of bitsandbytes in transformers. Read only."""
    recipe = tiny_recipe(variants=[Q8, NF4], evals=EVALS, gates=GATES, registry={"kind": "mlflow", "name": "two"})
    world = World(tmp_path_factory.mktemp("two") / "store", recipe, interpreters("llamacpp"), {})
    code, document, said = world.run("--no-release")
    assert code in (0, 3, 4), said
    return replace(world, document=document)


@pytest.fixture
def world(two: World, tmp_path: Path) -> World:
    """A copy of it, to be damaged."""
    return two.copy(tmp_path)
