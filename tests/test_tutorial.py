"""Every command of docs/tutorial.md, in its order, in an empty directory, on the model that it names."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from program import TINY

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
#: A verdict may be "not shown" on a machine that rounds otherwise: the page says so.
CODES = {"run": {0, 4}}


@pytest.mark.slow
def test_every_command_of_the_tutorial_works_in_its_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "tiny_llama").symlink_to(TINY)
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.yaml").write_text(recipe, encoding="utf-8")
    lines = re.findall(r"^    quantize (.*)$", PAGE, re.MULTILINE)
    assert len(lines) >= 12
    said: dict[str, list[str]] = {}
    for line in lines:
        words = shlex.split(line, comments=True)
        result = subprocess.run(
            [sys.executable, "-m", "quantize", *words], capture_output=True, text=True, timeout=1800
        )
        assert result.returncode in CODES.get(words[0], {0}), f"{line}: {result.stderr}"
        said.setdefault(words[0], []).append(result.stdout + result.stderr)
    assert "→ Promoted" in said["run"][0]
    assert "0 stages ran, 12 were done before" in said["run"][1]
    assert (tmp_path / "model" / "serving" / "EVALUATION.md").is_file()
    assert "complaints about dates" in said["history"][0]


def test_the_tutorial_points_at_every_page_that_a_user_comes_to_next():
    for page in ("eval-sets", "margins", "formats", "hub", "gpu", "latency", "add-a-method", "disk", "inconclusive"):
        assert f"({page}.md)" in PAGE
