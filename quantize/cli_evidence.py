"""The verbs about what was measured: report, compare, verify."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.cli_options import as_document, json_option, registry_option, store_option
from quantize.errors import QuantizeError, UsageError

if TYPE_CHECKING:
    from quantize.registry import Registry
    from quantize.store import Store

__all__ = ["compare", "report", "run_directory", "verify"]

_SHOWN_FLIPS = 10


@click.command()
@click.argument("run_name", metavar="RUN", default="latest")
@store_option
@json_option
@click.option(
    "--format", "form", type=click.Choice(["terminal", "markdown", "html"]), default="terminal", show_default=True
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write here instead of stdout.")
def report(run_name: str, store_path: Path, as_json: bool, form: str, output: Path | None) -> None:
    """Show a run again: its folder, its name, or `latest`. With --format html, as one page that loads nothing."""
    from quantize.report import item_seconds, markdown, page, print_summary, read_benchmarks, read_sources, summarise
    from quantize.run import read_record

    directory, store = run_directory(run_name, store_path), _store(store_path)
    record = read_record(directory)
    if as_json:
        if output is not None:
            raise UsageError("--json goes to stdout: leave --output out, or redirect it.")
        as_document(json.loads(record.model_dump_json()))
        return
    if form == "html":
        text = page(read_sources(record, directory, store))
    else:
        summary = summarise(record, item_seconds(record, store), read_benchmarks(record, directory, store))
        if form == "terminal" and output is None:
            print_summary(summary, sys.stdout)  # with colours, where it is a terminal
            return
        paper = io.StringIO()
        print_summary(summary, paper)
        text = markdown(summary) if form == "markdown" else paper.getvalue()
    _write(text, output)


def _write(text: str, output: Path | None) -> None:
    """To a file, or to stdout where none is named."""
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QuantizeError(f"cannot be written ({error.strerror}).", where=str(output), fix="Name another.") from None
    click.echo(f"wrote {output}", err=True)


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--eval", "eval_name", metavar="NAME", help="Only this eval; default: all that both answered.")
@click.option(
    "--flips",
    type=click.IntRange(min=0),
    default=_SHOWN_FLIPS,
    show_default=True,
    help="How many flipped answers to show of each eval, worst first.",
)
@store_option
@registry_option
@json_option
def compare(
    first: str, second: str, eval_name: str | None, flips: int, store_path: Path, uri: str | None, as_json: bool
) -> None:
    """Show what changed from A to B, item by item: the difference, how sure it is, and which answers flipped.

    A and B are each RUN:VARIANT, a VARIANT of the latest run (also `baseline`), NAME@ALIAS or NAME@VERSION of the
    registry; or both are a RUN, and all variants of the same name are compared.
    """
    from quantize.arms import Places, pairs_of
    from quantize.comparing import compare_arms
    from quantize.report import contrasts_document, print_contrasts
    from quantize.run import read_record

    with tempfile.TemporaryDirectory(prefix="quantize-compare-") as scratch:
        places = Places(
            store=_store(store_path),
            run=lambda name: read_record(run_directory(name, store_path)),
            registry=lambda name: _registry(name, uri, store_path),
            scratch=Path(scratch),
        )
        found = [
            contrast
            for one, other in pairs_of(first, second, places)
            for contrast in compare_arms(one, other, eval_name)
        ]
    if as_json:
        as_document(contrasts_document(found))
    else:
        print_contrasts(found, flips, sys.stdout)


@click.command()
@click.argument("run_name", metavar="RUN", default="latest")
@store_option
@json_option
def verify(run_name: str, store_path: Path, as_json: bool) -> int:
    """Recompute every digest of a run from bytes and every verdict from stored rows."""
    from quantize.checking import verify_run

    checks = verify_run(run_directory(run_name, store_path, ended=False), _store(store_path))
    if as_json:
        as_document([{"what": check.what, "problems": list(check.problems)} for check in checks])
    else:
        for check in checks:
            click.echo(f"{'✗' if check.problems else '✓'} {check.what}")
            for problem in check.problems:
                click.echo(f"    {problem}")
    return 1 if any(check.problems for check in checks) else 0


def run_directory(name: str, store: Path, *, ended: bool = True) -> Path:
    """The folder of a run. With `ended`, `latest` passes over runs that are going on or were killed."""
    from quantize.upkeep import run_directories

    if (Path(name) / "run.json").is_file():
        return Path(name)
    runs = run_directories(_store(store))
    finished = [run_path for run_path in runs if ended and (run_path / "run.json").is_file()]
    if name == "latest" and runs:
        return (finished or runs)[-1]
    for run_path in runs:
        if run_path.name == name:
            return run_path
    known = ", ".join(path.name for path in runs[-5:]) or "none yet"
    raise QuantizeError(f"there is no run {name!r} (the latest: {known}).", where=str(store / "runs"))


def _registry(model: str, uri: str | None, store: Path) -> Registry:
    from quantize.job import named_registry

    return named_registry(model, uri, store)


def _store(path: Path) -> Store:
    from quantize.store import Store

    return Store(path)
