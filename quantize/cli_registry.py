"""The verbs about a registered model: status, history, promote, rollback, pull."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.cli_options import as_document, json_option, registry_option, store_option

if TYPE_CHECKING:
    from quantize.protocols import Registry

__all__ = ["history", "promote", "pull", "rollback", "status"]

reason_option = click.option("--reason", required=True, help="Why; it is kept with the version.")


@click.command()
@click.argument("model")
@store_option
@registry_option
@json_option
def status(model: str, store_path: Path, uri: str | None, as_json: bool) -> None:
    """Show the aliases and versions of MODEL, and why they are what they are."""
    registry = _registry(model, uri, store_path)
    versions, aliases = registry.versions(), registry.aliases()
    if as_json:
        as_document({"model": model, "aliases": aliases, "versions": [asdict(version) for version in versions]})
        return
    if not versions:
        click.echo(f"{model}: no versions yet")
    for version in versions:
        names = ", ".join(sorted(alias for alias, number in aliases.items() if number == version.version))
        digest = version.artifact_digest[:12]
        click.echo(f"{version.version:>4}  {version.variant:<16} {version.state:<13} {digest}  {names}")
        if sentence := version.tags.get("sentence"):
            click.echo(f"      {sentence}")


@click.command()
@click.argument("model")
@store_option
@registry_option
@json_option
def history(model: str, store_path: Path, uri: str | None, as_json: bool) -> None:
    """Tell what happened to MODEL: what, when, by whom."""
    from quantize.operate import history as events_of

    events = events_of(_registry(model, uri, store_path))
    if as_json:
        as_document([asdict(event) for event in events])
        return
    for event in events:
        click.echo(f"{event.when}  version {event.version:>3} {event.variant:<16} {event.what}  [{event.by}]")


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
    move = operate.promote(registry, variant, number, reason, getpass.getuser(), force=force)
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

    move = operate.rollback(_registry(model, uri, store_path), alias, to, reason, getpass.getuser())
    click.echo(f"{move.alias}: version {move.before} → {move.after}")


@click.command()
@click.argument("reference", metavar="NAME@ALIAS")
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@store_option
@registry_option
def pull(reference: str, out: Path, store_path: Path, uri: str | None) -> None:
    """Fetch exactly the bytes that were judged, verified, into DIR. ALIAS may be a version number."""
    from quantize import operate

    model, at, alias = reference.partition("@")
    if not at or not alias:
        raise click.UsageError(f"{reference!r}: write it as NAME@ALIAS, for example my-model@production.")
    version = operate.pull(_registry(model, uri, store_path), alias, out)
    click.echo(f"{out}: version {version.version} ({version.variant}), digest {version.artifact_digest[:12]}", err=True)


def _registry(model: str, uri: str | None, store: Path) -> Registry:
    from quantize.job import open_registry
    from quantize.registries import Mlflow

    return open_registry(Mlflow(name=model, uri=uri), store)
