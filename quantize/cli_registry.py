"""The verbs about a registered model that decide nothing: status, history, reconcile, unlock, pull."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.actor import actor
from quantize.cli_options import as_document, json_option, reason_option, registry_option, store_option

if TYPE_CHECKING:
    from quantize.history import Checked
    from quantize.registry import Registry

__all__ = ["history", "pull", "reconcile", "status", "unlock"]


@click.command()
@click.argument("model")
@store_option
@registry_option
@json_option
def status(model: str, store_path: Path, uri: str | None, as_json: bool) -> None:
    """Show the aliases and versions of MODEL, and why they are what they are."""
    from quantize.history import check_journal
    from quantize.history import status as rows_of

    registry = _registry(model, uri, store_path)
    rows = rows_of(registry)
    journal = check_journal(registry)
    if as_json:
        aliases = {alias: row.version for row in rows for alias in row.aliases}
        versions = [asdict(row) for row in rows]
        as_document({"model": model, "aliases": aliases, "versions": versions, "journal": asdict(journal)})
        return
    for row in rows:
        size = f"{row.weight_bytes / 1e6:,.1f} MB" if row.weight_bytes is not None else ""
        names = ", ".join(row.aliases)
        state = row.state.replace("_", " ")
        click.echo(f"{row.version:>4}  {row.variant:<16} {state:<13} {size:>12}  {row.artifact_digest[:12]}  {names}")
        if row.sentence:
            click.echo(f"      {row.decided_at}, {row.actor}: {row.sentence}")
    _out_of_order(journal, model)


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
        if event.proved:
            click.echo(f"      {' '.join(filter(None, map(event.proved.get, ('outcome', 'engine', 'when'))))}")
    return 0


def _verify(registry: Registry, *, as_json: bool) -> int:
    from quantize.history import check_journal, known_versions

    known_versions(registry)
    found = check_journal(registry)
    if as_json:
        as_document(asdict(found))
        return 1 if found.problems else 0
    if not found.problems:
        click.echo(f"✓ the journal's chain is whole: {found.entries} entries ({found.void} void), head {found.head}")
    _out_of_order(found, registry.name)
    return 1 if found.problems else 0


def _out_of_order(journal: Checked, model: str) -> None:
    """Say what a journal has to complain of, and what is under way."""
    for problem in journal.problems:
        click.echo(f"✗ the journal: {problem}")
    for alias, (known, actual) in journal.astray.items():
        click.echo(
            f"! {alias} is at version {actual or '(none)'}, the journal says {known or '(none)'}: "
            f"the next run or `quantize reconcile {model}` settles it"
        )
    if journal.begun is not None:
        begun = journal.begun
        moves = ", ".join(f"{alias} → {version or '(none)'}" for alias, version in begun.aliases.items())
        ends = "" if journal.lock is not None and not journal.lock.gone else f"; `quantize reconcile {model}` ends it"
        click.echo(f"! begun and not done: {begun.what} {moves}  ({begun.actor}, {begun.since}){ends}")
    if journal.lock is not None:
        gone = ", a process that is gone: the next command takes it" if journal.lock.gone else ""
        click.echo(f"! the lock is held by {journal.lock.holder} since {journal.lock.since}{gone}")


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
    from quantize.watcher import in_notes

    model, at, alias = reference.partition("@")
    if not at or not alias:
        raise click.UsageError(f"{reference!r}: write it as NAME@ALIAS, for example my-model@production.")
    version = fetch(_registry(model, uri, store_path), alias, out, in_notes(reference, _note))
    click.echo(f"{out}: version {version.version} ({version.variant}), digest {version.artifact_digest[:12]}", err=True)


def _registry(model: str, uri: str | None, store: Path) -> Registry:
    from quantize.job import named_registry

    return named_registry(model, uri, store)


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)
