"""What a wheel of the program holds: also the files that are not Python."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package_and_draws_a_page_with_its_own_style(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "-w", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("quantize-*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        held.extractall(tmp_path / "installed")
    own = (path for path in (ROOT / "quantize").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {str(path.relative_to(ROOT)) for path in own} <= names
    own_files = "d._own('page.css'), d._own('page.js')"
    script = f"from quantize.report.page import document as d; print(d.__file__, d._policy({own_files}))"
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.stdout.startswith(str(tmp_path / "installed")) and "script-src 'sha256-" in told.stdout, told.stderr
