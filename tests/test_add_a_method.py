"""The worked example of docs/add-a-method.md, put into a copy of the program, does what the page says."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import TINY, tiny_recipe, write_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "add-a-method.md"
#: Rounds the tiny Llama's weights by both methods, and prints the mean squared error of each.
ROUND = """
import json, sys
from pathlib import Path
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from quantize.handed import Host, QuantizeJob, silent
from quantize.methods import Mse, Rtn
from quantize.scheme import preset

source, out = Path(sys.argv[1]), Path(sys.argv[2])
errors = {}

def witness(model):
    rounded = [module for module in model.modules() if hasattr(module, "quantization_scheme")]
    assert len(rounded) == 28
    lost = [(fake_quantize(m.weight, m.weight_scale, m.weight_zero_point, m.quantization_scheme.weights)
             - m.weight).square().mean() for m in rounded]
    errors[method.kind] = float(sum(lost))

for method in (Rtn(), Mse()):
    folder = out / method.kind
    folder.mkdir()
    method.quantize(QuantizeJob(
        checkpoint=source, out=folder, scheme=preset("W4A16"), ignore=("lm_head",), tokens=None, device="cpu", seed=0,
        witness=witness, progress=silent, host=Host({}, out)))
    assert (folder / "model.safetensors").is_file()
print(json.dumps(errors))
"""


def blocks() -> list[str]:
    """The page's Python: the file, and where its line goes."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A copy of the program with the page's file and line in it."""
    folder = tmp_path_factory.mktemp("program")
    shutil.copytree(ROOT / "quantize", folder / "quantize", ignore=shutil.ignore_patterns("__pycache__"))
    file, line = blocks()
    (folder / "quantize" / "methods" / "mse.py").write_text(file, encoding="utf-8")
    place = folder / "quantize" / "methods" / "__init__.py"
    text = place.read_text(encoding="utf-8")
    before = line.replace("    | Mse\n", "")
    assert line != before and before in text, "the page shows the union as it is"
    text = text.replace(before, line).replace("__all__ = [\n", '__all__ = [\n    "Mse",\n')
    text = text.replace(
        "from quantize.methods.quip", "from quantize.methods.mse import Mse\nfrom quantize.methods.quip"
    )
    place.write_text(text, encoding="utf-8")
    return folder


def ran(program: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(program), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_keeps_to_the_house_rules(program):
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml"]
    ran(program, *ruff[1:], "quantize/methods/mse.py")
    tree = ast.parse(blocks()[0])
    assert ast.get_docstring(tree) and len(blocks()[0].splitlines()) < 120


def test_a_recipe_may_name_it_and_its_settings_are_checked(program, tmp_path):
    assert '"mse"' in ran(program, "-m", "quantize", "schema")
    variants = [{"name": "mse", "scheme": "W4A16", "method": {"kind": "mse", "maxshrink": 0.3}}]
    targets = {"production": {"from": ["mse"]}}
    recipe = tiny_recipe(variants=variants, registry={"kind": "mlflow", "name": "tiny", "targets": targets})
    path = write_recipe(tmp_path, recipe)
    planned = ran(program, "-m", "quantize", "plan", path, "--store", tmp_path / "store", "--json")
    assert "mse" in {stage["name"] for stage in json.loads(planned)["stages"]}


@pytest.mark.slow
def test_it_loses_less_of_the_weights_than_rounding_to_nearest(program, tmp_path):
    errors = json.loads(ran(program, "-c", ROUND, TINY / "checkpoint", tmp_path).splitlines()[-1])
    assert 0 < errors["mse"] < 0.97 * errors["rtn"]
