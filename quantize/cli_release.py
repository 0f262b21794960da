"""The verbs of a person's decision about a registered model: review, promote, rollback."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantize.actor import actor
from quantize.cli_options import as_document, json_option, reason_option, registry_option, store_option

if TYPE_CHECKING:
    from quantize.operate import Move
    from quantize.proved import Proved
    from quantize.registry import Registry, VersionState
    from quantize.review import Checklist

__all__ = ["promote", "review", "rollback"]

dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would move, and move nothing.")


@click.command()
@click.argument("model")
@click.argument("variant", required=False)
@click.option("--version", "number", help="This version.")
@store_option
@registry_option
@json_option
def review(
    model: str, variant: str | None, number: str | None, store_path: Path, uri: str | None, as_json: bool
) -> None:
    """Show the checklist of a version of MODEL: --version, or the candidate of VARIANT, or of each variant."""
    from quantize.approval import fetch_checklist, told_waiting, waiting
    from quantize.history import known_versions
    from quantize.promoting import reviewable

    registry = _registry(model, uri, store_path)
    versions = known_versions(registry)
    found = [(v, fetch_checklist(registry, v)) for v in reviewable(versions, variant, number, registry)]
    if as_json:
        as_document([_reviewed(version, checklist, waits=version in waiting(versions)) for version, checklist in found])
        return
    for version, checklist in found:
        click.echo(f"version {version.version} ({version.variant}), {version.state.replace('_', ' ')}")
        if checklist is not None:
            _print(checklist, err=False)
        else:
            click.echo("  there is no checklist: it did not pass, or an older program decided it")
        if version in waiting(versions):
            click.echo(f"  {told_waiting(model, version)}")


@click.command()
@click.argument("model")
@click.argument("variant")
@click.option("--version", "number", help="Default: the newest that passed.")
@click.option("--force", is_flag=True, help="Also one that did not pass, was rolled back, or whose review is not met.")
@dry_run_option
@reason_option
@store_option
@registry_option
@json_option
def promote(
    model: str,
    variant: str,
    number: str | None,
    force: bool,
    dry_run: bool,
    reason: str,
    store_path: Path,
    uri: str | None,
    as_json: bool,
) -> None:
    """Make a version the champion of its VARIANT by hand, or approve one that waits; its checklist is shown first.

    With --version, VARIANT may also be a target.
    """
    from quantize import operate

    move = operate.promote(
        _registry(model, uri, store_path),
        variant,
        number,
        reason,
        actor(),
        force=force,
        note=_note,
        show=lambda checklist: _print(checklist, err=True),
        dry_run=dry_run,
    )
    _tell(model, move, as_json=as_json)


@click.command()
@click.argument("model")
@click.option("--alias", help="A variant or a target; default: the model's only target.")
@click.option("--to", help="A version; default: the alias's previous one.")
@click.option("--unproven", "--force", is_flag=True, help="Do not open the version first: it may not load.")
@dry_run_option
@reason_option
@store_option
@registry_option
@json_option
def rollback(
    model: str,
    alias: str | None,
    to: str | None,
    unproven: bool,
    dry_run: bool,
    reason: str,
    store_path: Path,
    uri: str | None,
    as_json: bool,
) -> None:
    """Move an alias of MODEL back to its previous version, once that was opened in its engine and answered."""
    from quantize import operate
    from quantize.device import choose
    from quantize.reopening import reopen
    from quantize.store import Store

    registry = _registry(model, uri, store_path)

    def prove(version: VersionState) -> Proved:
        proved = reopen(registry, version, Store(store_path), choose("auto"), _note)
        _note(f"version {version.version} loads in {proved.engine}: {proved.sentence}")
        return proved

    opens = None if unproven else prove
    move = operate.rollback(registry, alias, to, reason, actor(), _note, prove=opens, dry_run=dry_run)
    _tell(model, move, as_json=as_json)


def _tell(model: str, move: Move, *, as_json: bool) -> None:
    """Say what moved, or would."""
    if as_json:
        told = {"checklist": move.checklist, "proved": move.proved}
        shown = {name: json.loads(it.model_dump_json()) if it is not None else None for name, it in told.items()}
        as_document({"model": model, **asdict(move), **shown})
        return
    would = "would move " if move.dry_run else ""
    for alias, before in ((move.alias, move.before), *move.also.items()):
        click.echo(f"{would}{alias}: version {before or '(none)'} → {move.after}")
    if move.still:
        click.echo(f"{', '.join(move.still)} still at version {move.before}: roll back with --alias", err=True)


def _print(checklist: Checklist, *, err: bool) -> None:
    from quantize.review import as_text

    click.echo(f"  {checklist.told()}", err=err)
    for line in as_text(checklist):
        click.echo(f"    {line}", err=err)


def _reviewed(version: VersionState, checklist: Checklist | None, *, waits: bool) -> dict[str, Any]:
    found = json.loads(checklist.model_dump_json()) if checklist is not None else None
    known = {"version": version.version, "variant": version.variant, "state": version.state, "waits": waits}
    return {**known, "checklist": found}


def _registry(model: str, uri: str | None, store: Path) -> Registry:
    from quantize.job import named_registry

    return named_registry(model, uri, store)


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)
