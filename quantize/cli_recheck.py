"""The verb that measures again what serves, and takes back what is shown worse."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.actor import actor
from quantize.cli_options import as_document, json_option, registry_option, store_option
from quantize.errors import Interrupted, QuantizeError

if TYPE_CHECKING:
    from quantize.proved import Proved
    from quantize.recheck import Rechecked
    from quantize.registry import VersionState
    from quantize.run import RunRecord

__all__ = ["recheck"]

_MARKS = {"unchanged": "✓", "holds": "✓", "rolled back": "✗", "inconclusive": "?", "error": "!", "would measure": "·"}
_CODES = (("error", 1), ("rolled back", 3), ("inconclusive", 4))


@click.command()
@click.argument("model")
@click.option("--alias", help="A variant or a target; default: every champion, and what targets point at.")
@click.option(
    "--recipe",
    "recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Today's recipe; default: the one that the version's run was made with, its files as they are now.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be measured again, and do nothing.")
@store_option
@registry_option
@json_option
def recheck(
    model: str,
    alias: str | None,
    recipe: Path | None,
    dry_run: bool,
    store_path: Path,
    uri: str | None,
    as_json: bool,
) -> int:
    """Measure what serves in MODEL on today's eval set and engine; roll back what is shown worse than its margin.

    Exit codes: 0 it holds or nothing changed, 1 error, 3 rolled back, 4 inconclusive.
    """
    from quantize.device import choose
    from quantize.display import watcher
    from quantize.job import named_registry
    from quantize.recheck import Rechecked, Tools, champions
    from quantize.recheck import recheck as again
    from quantize.reopening import reopen
    from quantize.report import report_files
    from quantize.store import Store

    registry, store = named_registry(model, uri, store_path), Store(store_path)
    opened: dict[str, Proved] = {}

    def prove(version: VersionState) -> Proved:
        if version.artifact_digest not in opened:
            opened[version.artifact_digest] = reopen(registry, version, store, choose("auto"), _note)
        return opened[version.artifact_digest]

    def report(record: RunRecord) -> dict[str, str]:
        return dict(report_files(record, store.root / "runs" / record.run, store))

    found: list[Rechecked] = []
    for version in champions(registry, alias):
        tools = Tools(registry, store, watcher(), actor(), prove, report, recipe)
        try:
            found.append(again(tools, version, dry=dry_run))
        except Interrupted:
            raise
        except QuantizeError as error:
            found.append(Rechecked(version.variant, version.version, "error", str(error)))
        if not as_json:
            _show(found[-1])
    if as_json:
        as_document({"model": model, "rechecked": [asdict(each) for each in found], "exit_code": _code(found)})
    return _code(found)


def _show(each: Rechecked) -> None:
    click.echo(f"{_MARKS[each.outcome]} {each.variant} version {each.version}: {each.outcome}. {each.sentence}")
    if each.moved:
        click.echo(f"  rolled back: {', '.join(each.moved)}")
    if each.run:
        click.echo(f"  measured in the run {each.run}")


def _code(found: list[Rechecked]) -> int:
    outcomes = {each.outcome for each in found}
    return next((code for outcome, code in _CODES if outcome in outcomes), 0)


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)
