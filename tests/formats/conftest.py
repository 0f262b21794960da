"""A finished run of two formats in two engines, and a llama.cpp that fails when it is told to.

The interpreter that `QUANTIZE_ENV_LLAMACPP` names is a script that becomes the real one, except for the engine's
process on one file: on that it does what `ENGINE_FAULT` says. Path and packages stay the same and so keys do too: a
copy of the finished store is all that a test of a failure needs.
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
    "killed "*_llamacpp_process.py*"$ENGINE_VICTIM"*) kill -9 $$ ;;
    "hangs "*_llamacpp_process.py*"$ENGINE_VICTIM"*) exec {python} -c "import time; time.sleep(600)" "$@" ;;
esac
exec {python} "$@"
"""


@pytest.fixture(scope="session")
def interpreters(
    environment: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, str]]:
    """Variables that name the interpreters of environments; that of llama.cpp is the script."""
    folder = tmp_path_factory.mktemp("interpreter")

    def named(*names: str) -> dict[str, str]:
        found = {variable(name): environment(name) for name in names}
        if variable("llamacpp") in found:
            script = folder / "python"
            script.write_text(SCRIPT.format(python=found[variable("llamacpp")]), encoding="utf-8")
            script.chmod(0o755)
            found[variable("llamacpp")] = script
        return {name: str(path) for name, path in found.items()}

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
