"""The page through the program: every run keeps one, `report` writes the same again, and MLflow has it."""

from __future__ import annotations

import pytest
from program import command, tiny_recipe, write_recipe

from quantize.checking import verify_run
from quantize.store import Store


def test_every_run_keeps_its_page_and_report_writes_the_same_again(finished, tmp_path):
    store, document, _ = finished
    kept = store / "runs" / document["run"] / "report.html"
    out = tmp_path / "page.html"
    result = command("report", document["run"], "--store", store, "--format", "html", "-o", out)
    assert result.returncode == 0 and f"wrote {out}" in result.stderr
    assert result.stdout == ""
    assert out.read_bytes() == kept.read_bytes()
    assert kept.read_bytes() in [logged.read_bytes() for logged in (store / "mlartifacts").rglob("report.html")]
    # Another test may have run the same recipe again.
    newest = max((store / "runs").iterdir()) / "report.html"
    assert command("report", "--store", store, "--format", "html").stdout.encode() == newest.read_bytes()


def test_a_run_that_is_not_released_keeps_its_reports_under_its_seal(tmp_path):
    recipe = write_recipe(tmp_path, tiny_recipe())
    result = command("run", recipe, "--store", tmp_path / "store", "--no-release")
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "store" / "runs").iterdir()
    assert "Nothing was decided anew." in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "report.md").is_file()
    assert [problem for check in verify_run(run, Store(tmp_path / "store")) for problem in check.problems] == []


@pytest.mark.parametrize("form", ["terminal", "markdown"])
def test_any_report_can_go_to_a_file(finished, tmp_path, form):
    store, document, _ = finished
    out = tmp_path / "report.txt"
    told = command("report", document["run"], "--store", store, "--format", form).stdout
    assert command("report", document["run"], "--store", store, "--format", form, "-o", out).returncode == 0
    assert out.read_text(encoding="utf-8") == told
    refused = command("report", "--store", store, "--format", form, "-o", tmp_path / "no" / "folder")
    assert refused.returncode == 1 and "cannot be written (No such file or directory)" in refused.stderr
