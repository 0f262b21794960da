"""The command line: thin verbs. Everything that a machine reads goes to stdout, everything else to stderr.

Exit codes, about what this run decided anew: 0 all promoted or held by the recipe, or nothing new; 1 error; 2 usage or
bad recipe; 3 at least one variant rejected; 4 at least one inconclusive and none rejected; 75 interrupted, or overtaken
by another champion: run again.

The modules behind a verb are imported when it is called, so that `--help` starts at once.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from quantize import (
    __version__,
    cli_capacity,
    cli_environments,
    cli_evidence,
    cli_launch,
    cli_recheck,
    cli_registry,
    cli_release,
)
from quantize.cli_options import as_document, json_option, only_option, recipe_argument, set_option, store_option
from quantize.errors import Interrupted, QuantizeError, RecipeError, StageFailed

if TYPE_CHECKING:
    from quantize.store import Store

__all__ = ["main"]


#: What `gc` names of a store: parts of 0.1 MB and more.
_SHOWN_BYTES = 50_000


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quantize")
def cli() -> None:
    """Compress a language model, and prove that the smaller one may replace it."""


@cli.command()
@click.argument("model")
@click.option("--evals", type=click.Path(path_type=Path), required=True, help="Your eval set: JSONL file or folder.")
@click.option("--name", help="The recipe's and the registered model's name; default: from MODEL.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write here instead of stdout.")
@json_option
def init(model: str, evals: Path, name: str | None, output: Path | None, as_json: bool) -> None:
    """Write a starter recipe for MODEL (hub id, directory or GGUF) and this machine."""
    from dataclasses import asdict

    from quantize.starter import starter_recipe

    if output is not None and output.exists():
        raise QuantizeError("the file exists.", where=str(output), fix="Name another, or remove it.")
    starter = starter_recipe(model, evals, name)
    if output is not None:
        try:
            output.write_text(starter.text, encoding="utf-8")
        except OSError as error:
            what = f"cannot be written ({error.strerror})."
            raise QuantizeError(what, where=str(output), fix="Name another.") from None
        click.echo(f"wrote {output}; next: quantize plan {output}", err=True)
    if as_json:
        as_document({**asdict(starter), "path": str(output) if output is not None else None})
    elif output is None:
        click.echo(starter.text, nl=False)


@cli.command()
@recipe_argument
@set_option
@only_option
@store_option
@json_option
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Plan from this config.json, without asking the model's source.",
)
def plan(
    recipe: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    store_path: Path,
    as_json: bool,
    config: Path | None,
) -> None:
    """Show the stages of RECIPE, cached or not, with estimates; refuse what cannot work."""
    _plan(recipe, overrides, only, store_path, as_json=as_json, config=config)


@cli.command()
@recipe_argument
@set_option
@only_option
@store_option
@json_option
@click.option("--no-release", is_flag=True, help="Measure and judge, but leave the registry alone.")
@click.option("--create-envs", is_flag=True, help="Make the environments that are missing first.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    help="Where stages run, whatever the recipe says: this machine, or its Ray cluster.",
)
@click.option("--dry-run", is_flag=True, help="The same as `quantize plan`.")
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    store_path: Path,
    as_json: bool,
    no_release: bool,
    create_envs: bool,
    executor: str | None,
    dry_run: bool,
) -> int:
    """Do the job: produce, prove, measure, judge and release every variant of RECIPE."""
    from quantize import job
    from quantize.display import watcher
    from quantize.report import item_seconds, print_summary, read_benchmarks, report_files, summarise
    from quantize.run import RunRecord

    if executor is not None:
        overrides += (f"resources.executor{'.kind=ray' if executor == 'ray' else '={kind: local}'}",)
    if dry_run:
        _plan(recipe, overrides, only, store_path, as_json=as_json, config=None)
        return 0

    store = _store(store_path)

    def directory(record: RunRecord) -> Path:
        return store.root / "runs" / record.run

    record, code = job.execute(
        recipe,
        overrides,
        only,
        store_path,
        watcher(),
        release=not no_release,
        create_environments=create_envs,
        report=lambda record: report_files(record, directory(record), store),
    )
    if as_json:
        as_document({**json.loads(record.model_dump_json()), "exit_code": code})
    else:
        benchmarks = read_benchmarks(record, directory(record), store)
        print_summary(summarise(record, item_seconds(record, store), benchmarks), sys.stdout)
    return code


@cli.command()
@store_option
@json_option
@click.option("--keep-runs", type=click.IntRange(min=0), help="Keep this many runs of each recipe; default: all.")
@click.option("--delete", "really", is_flag=True, help="Delete what is listed.")
def gc(store_path: Path, as_json: bool, keep_runs: int | None, really: bool) -> None:
    """List (or delete) what no run refers to: half-made artifacts, drafts of dead runs, old runs."""
    from quantize.upkeep import delete, disk_use, find_garbage

    store = _store(store_path)
    garbage = find_garbage(store, keep_runs)
    if really:
        delete(store, garbage)
    total, held = sum(item.bytes for item in garbage), disk_use(store)
    if as_json:
        items = [{"path": str(item.path), "bytes": item.bytes} for item in garbage]
        as_document({"garbage": items, "bytes": total, "deleted": really, "held": held})
        return
    for item in garbage:
        click.echo(f"{item.bytes / 1e6:10,.1f} MB  {item.path}")
    done = "deleted" if really else "would be freed; --delete does it"
    click.echo(f"{total / 1e6:10,.1f} MB  {done}")
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in held.items() if size >= _SHOWN_BYTES)
    click.echo(f"{sum(held.values()) / 1e6:10,.1f} MB  in the store{' now' if really else ''}{parts and f': {parts}'}")


@cli.command()
@store_option
@json_option
def doctor(store_path: Path, as_json: bool) -> int:
    """Look at this machine and environment, and say what to mend."""
    from dataclasses import asdict

    from quantize.doctor import examine

    lines = examine(store_path)
    if as_json:
        as_document([asdict(line) for line in lines])
    else:
        marks = {"ok": "✓", "warn": "!", "fail": "✗"}
        for line in lines:
            click.echo(f"{marks[line.state]} {line.what:<20} {line.found}{f'  → {line.fix}' if line.fix else ''}")
    return 1 if any(line.state == "fail" for line in lines) else 0


@cli.command()
def schema() -> None:
    """Print the JSON Schema of recipes."""
    from quantize.recipe import json_schema

    as_document(json_schema())


cli.add_command(cli_environments.env)
cli.add_command(cli_launch.launch)
for verb in (
    cli_evidence.report,
    cli_evidence.compare,
    cli_evidence.verify,
    cli_capacity.capacity,
    cli_recheck.recheck,
):
    cli.add_command(verb)
for group in (cli_registry, cli_release):
    for name in group.__all__:
        cli.add_command(getattr(group, name))


def _plan(
    recipe: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    store_path: Path,
    *,
    as_json: bool,
    config: Path | None,
) -> None:
    from quantize import job
    from quantize.report import plan_document, print_plan

    planned = job.preview(recipe, overrides, only, store_path, config)
    if as_json:
        as_document(plan_document(planned))
    else:
        print_plan(planned, sys.stdout)
    if planned.preflight.problems:
        raise RecipeError([f"{recipe}: {problem}" for problem in planned.preflight.problems])


def _store(path: Path) -> Store:
    from quantize.store import Store

    return Store(path)


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted("stopped by a signal.", fix="Run the same command to resume.")


def main() -> NoReturn:
    """Entry point: run a verb, turn errors into sentences and exit codes.

    Where the reader of stdout is gone (`quantize history | head`), click ends quietly with 1: what was decided was not
    told to the end, so 0 would be wrong.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = cli.main(standalone_mode=False)
    except RecipeError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        code = error.exit_code
    except QuantizeError as error:
        click.echo(f"error: {error}", err=True)
        if isinstance(error, StageFailed) and error.tail:
            click.echo("".join(f"  | {line}\n" for line in error.tail.splitlines()), err=True, nl=False)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: what is committed stays; run the same command to resume.", err=True)
        code = Interrupted.exit_code
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
