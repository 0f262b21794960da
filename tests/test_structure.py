"""The shape of the program: what starts light, what the unions hold, and how large its parts may grow."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import quantize

PACKAGE = Path(quantize.__file__).parent
LEAVES = {
    "calibrators": "CalibratorConfig",
    "engines": "EngineConfig",
    "executors": "ExecutorConfig",
    "gates": "GateConfig",
    "methods": "MethodConfig",
    "metrics": "MetricConfig",
    "notices": "NoticeConfig",
    "registries": "RegistryConfig",
    "scorers": "ScorerConfig",
    "sources": "SourceConfig",
    "traffic": "TrafficConfig",
}
HEAVY = {"torch", "transformers", "mlflow", "datasets", "lm_eval", "llmcompressor", "ray", "accelerate", "pandas"}


def imported_by(*arguments: str) -> set[str]:
    """Top-level packages that a Python process imports, as the interpreter itself tells."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_help_imports_neither_the_heavy_libraries_nor_the_models():
    assert not imported_by("-m", "quantize", "--help") & (HEAVY | {"pydantic", "yaml", "numpy", "scipy", "rich"})


def test_the_job_imports_no_heavy_library():
    found = imported_by("-c", "import quantize.job")
    assert "pydantic" in found
    assert not found & (HEAVY | {"huggingface_hub", "safetensors", "gguf"})


@pytest.mark.parametrize(
    "verb",
    [
        "init",
        "plan",
        "run",
        "report",
        "verify",
        "compare",
        "capacity",
        "gc",
        "doctor",
        "status",
        "pull",
        "recheck",
        "launch",
    ],
)
def test_the_help_of_every_verb_is_light(verb):
    assert not imported_by("-m", "quantize", verb, "--help") & (HEAVY | {"pydantic"})


def members(union: Any) -> set[type]:
    """The classes of a union, of an annotated one, or of a single class."""
    if typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return set(typing.get_args(union)) or {union}


def public_modules(package: ModuleType) -> list[str]:
    """Names of the modules of a package that do not start with an underscore."""
    return [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]


@pytest.mark.parametrize(("leaf", "union"), LEAVES.items())
def test_every_public_module_of_a_leaf_package_gives_a_class_to_its_union(leaf, union):
    package = importlib.import_module(f"quantize.{leaf}")
    classes = members(getattr(package, union))
    modules = public_modules(package)
    assert {cls.__module__.rsplit(".", 1)[1] for cls in classes} == set(modules)
    assert all(cls.__name__ in package.__all__ for cls in classes)
    kinds = [cls.model_fields["kind"].default if hasattr(cls, "model_fields") else cls.kind for cls in classes]
    assert len(set(kinds)) == len(classes), "kinds are told apart by their names"


def test_every_package_with_configs_is_a_leaf_that_is_looked_at():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - {
        "benchmark",
        "environments",
        "fingerprint",
        "launching",
        "proof",
        "report",
        "serving",
        "stats",
        "storage",
    } == set(LEAVES)


SOURCES = sorted(PACKAGE.rglob("*.py"))
#: A script whose classes are made of its environment's: here it cannot even be imported.
ELSEWHERE = {PACKAGE / "traffic" / "_guidellm_child.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_longer_than_400_lines_and_no_function_longer_than_60(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} at line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_module_says_what_it_is_for_and_lists_what_it_offers(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    offers = any(
        isinstance(target, ast.Name) and target.id == "__all__"
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    )
    # The package of statistics lists what its modules offer in one place.
    assert offers or path.name in ("__init__.py", "__main__.py") or path.parent.name == "stats"


def test_what_a_module_offers_is_there():
    for path in sorted(set(SOURCES) - ELSEWHERE):
        name = ".".join(("quantize", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        missing = [offered for offered in getattr(module, "__all__", []) if not hasattr(module, offered)]
        assert not missing, (name, missing)
