"""The verbs about a registered model: status, history, promote, rollback, reconcile, unlock, pull."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.actor import actor
from quantize.cli_options import as_document, json_option, registry_option, store_option

if TYPE_CHECKING:
    from quantize.protocols import Registry

__all__ = ["history", "promote", "pull", "reconcile", "rollback", "status", "unlock"]

reason_option = click.option("--reason", required=True, help="Why; it is kept with the version.")


@click.command()
@click.argument("model")
@store_option
@registry_option
@json_option
def status(model: str, store_path: Path, uri: str | None, as_json: bool) -> None:
    """Show the aliases and versions of MODEL, and why they are what they are."""
    from quantize.history import status as rows_of

    rows = rows_of(_registry(model, uri, store_path))
    if as_json:
        aliases = {alias: row.version for row in rows for alias in row.aliases}
        as_document({"model": model, "aliases": aliases, "versions": [asdict(row) for row in rows]})
        return
    for row in rows:
        size = f"{row.weight_bytes / 1e6:,.1f} MB" if row.weight_bytes is not None else ""
        names = ", ".join(row.aliases)
        state = row.state.replace("_", " ")
        click.echo(f"{row.version:>4}  {row.variant:<16} {state:<13} {size:>12}  {row.artifact_digest[:12]}  {names}")
        if row.sentence:
            click.echo(f"      {row.decided_at}, {row.actor}: {row.sentence}")


@click.command()
@click.argument("model")
@click.option(
    "--verify", is_flag=True, help="Check that nothing in it was changed or taken out, instead of telling it."
)
@store_option
@registry_option
@json_option
def history(model: str, verify: bool, store_path: Path, uri: str | None, as_json: bool) -> int:
    """Tell what happened to MODEL: what, when, by whom, on which evidence, against which champion."""
    from quantize.history import history as events_of

    registry = _registry(model, uri, store_path)
    if verify:
        return _verify(registry, as_json=as_json)
    events = events_of(registry)
    if as_json:
        as_document([event.model_dump(mode="json") for event in events])
        return 0
    for event in events:
        against = f", before it {event.against}" if event.against not in (None, event.version) else ""
        evidence = f", verdict {event.verdict[:12]}" if event.verdict else ""
        moves = "".join(
            f"; {a} → {to}" for a, to in event.aliases.items() if not a.endswith(("-candidate", "-previous"))
        )
        about = f": {event.variant} version {event.version}" if event.version else ""
        click.echo(f"{event.when}  {event.what}{about}{against}{moves}  ({event.actor}{evidence})")
        click.echo(f"      {event.reason}")
    return 0


def _verify(registry: Registry, *, as_json: bool) -> int:
    from quantize.history import check_journal

    found = check_journal(registry)
    if as_json:
        as_document(asdict(found))
        return 1 if found.problems else 0
    for problem in found.problems:
        click.echo(f"✗ {problem}")
    if not found.problems:
        click.echo(f"✓ the journal's chain is whole: {found.entries} entries ({found.void} void), head {found.head}")
    for alias, (known, actual) in found.astray.items():
        click.echo(
            f"! {alias} is at version {actual or '(none)'}, the journal says {known or '(none)'}: next, reconcile"
        )
    return 1 if found.problems else 0


@click.command()
@click.argument("model")
@click.argument("variant")
@click.option("--version", "number", help="Default: the newest that passed.")
@click.option("--force", is_flag=True, help="Also a version that did not pass or was rolled back.")
@reason_option
@store_option
@registry_option
def promote(
    model: str, variant: str, number: str | None, force: bool, reason: str, store_path: Path, uri: str | None
) -> None:
    """Make a version the champion of its VARIANT by hand."""
    from quantize import operate

    registry = _registry(model, uri, store_path)
    move = operate.promote(registry, variant, number, reason, actor(), force=force, note=_note)
    click.echo(f"{move.alias}: version {move.before or '(none)'} → {move.after}")


@click.command()
@click.argument("model")
@click.option("--alias", help="A variant or a target; default: the model's only target.")
@click.option("--to", help="A version; default: the alias's previous one.")
@reason_option
@store_option
@registry_option
def rollback(model: str, alias: str | None, to: str | None, reason: str, store_path: Path, uri: str | None) -> None:
    """Move an alias of MODEL back to its previous version."""
    from quantize import operate

    move = operate.rollback(_registry(model, uri, store_path), alias, to, reason, actor(), _note)
    click.echo(f"{move.alias}: version {move.before} → {move.after}")
    if move.still:
        click.echo(f"{', '.join(move.still)} still at version {move.before}: roll back with --alias", err=True)


@click.command()
@click.argument("model")
@click.option("--undo", is_flag=True, help="Take back what was begun, instead of finishing it.")
@store_option
@registry_option
@json_option
def reconcile(model: str, undo: bool, store_path: Path, uri: str | None, as_json: bool) -> None:
    """Finish or undo what a killed process left half done in MODEL. The next run does it too."""
    from quantize import operate

    done = operate.reconcile(_registry(model, uri, store_path), _note, undo=undo)
    if as_json:
        as_document([event.model_dump(mode="json") for event in done])
    elif not done:
        click.echo("everything is where the journal says")


@click.command()
@click.argument("model")
@reason_option
@store_option
@registry_option
def unlock(model: str, reason: str, store_path: Path, uri: str | None) -> None:
    """Take the lock of MODEL from whoever has it. What that one had begun is settled by the next command."""
    from quantize.history import known_versions
    from quantize.turn import unlock as take

    registry = _registry(model, uri, store_path)
    known_versions(registry)
    owner = take(registry, reason, actor())
    click.echo(f"taken from {owner}" if owner is not None else "nobody has the lock")


@click.command()
@click.argument("reference", metavar="NAME@ALIAS")
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@store_option
@registry_option
def pull(reference: str, out: Path, store_path: Path, uri: str | None) -> None:
    """Fetch exactly the bytes that were judged, verified, into DIR. ALIAS may be a version number."""
    from quantize.pull import pull as fetch

    model, at, alias = reference.partition("@")
    if not at or not alias:
        raise click.UsageError(f"{reference!r}: write it as NAME@ALIAS, for example my-model@production.")
    version = fetch(_registry(model, uri, store_path), alias, out)
    click.echo(f"{out}: version {version.version} ({version.variant}), digest {version.artifact_digest[:12]}", err=True)


def _registry(model: str, uri: str | None, store: Path) -> Registry:
    from quantize.job import named_registry

    return named_registry(model, uri, store)


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)
