"""The verbs about environments: create, list, remove."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from quantize.cli_options import as_document, json_option

__all__ = ["env"]

_PINS = Path(__file__).parent / "environments" / "pins"


class _Described(click.Command):
    """A command whose help says what each environment is for, read from its pins."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for path in sorted(_PINS.glob("*.toml")):
            what: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
            size = f"{what['gigabytes']:g} GB, {what['minutes']:g} min on two cores."
            rows.append((path.stem, f"{what['about']} {size}"))
        with formatter.section("Environments"):
            formatter.write_dl(rows)


@click.group()
def env() -> None:
    """Interpreters of their own for methods and engines whose libraries clash with the program's.

    They lie under $QUANTIZE_ENVS (default: ~/.local/share/quantize/envs). QUANTIZE_ENV_<NAME>, or a recipe, may name an
    existing interpreter (a container's, say) instead of one made here.
    """


@env.command(cls=_Described)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Make it anew, even if it is there.")
@click.option(
    "--python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The interpreter to make it with; default: this program's own.",
)
def create(names: tuple[str, ...], force: bool, python: Path | None) -> None:
    """Make environments from the pins that the program ships, by this machine's own pip configuration."""
    from quantize import environments

    for name in names:  # all of them first: a typing error should not come up after minutes
        environments.read(name)
    for name in names:
        made = environments.create(name, _note, force=force, python=python)
        click.echo(made.python)
        found = environments.locate(name)
        if found.source != "created":
            click.echo(f"note: {found.place} names another interpreter for {name}, which counts.", err=True)


@env.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show every environment: made, named by a variable, or missing."""
    from dataclasses import asdict

    from quantize import environments

    environments.clean()
    found = environments.entries()
    if as_json:
        as_document([asdict(entry) for entry in found])
        return
    for entry in found:
        gigabytes = entry.gigabytes if entry.bytes is None else entry.bytes / 1e9
        place = entry.problem or (entry.python if entry.state == "named" else entry.place)
        about = "~" if entry.bytes is None else " "
        click.echo(f"{entry.name:<10} {entry.state:<10} {about}{gigabytes:4.1f} GB  {place}")


@env.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--outdated", is_flag=True, help="Remove all that were made from other pins than today's.")
def remove(names: tuple[str, ...], outdated: bool) -> None:
    """Remove what was made of environments. An interpreter that a variable names is left alone."""
    from quantize import environments

    if not names and not outdated:
        raise click.UsageError("Name an environment, or --outdated.")
    environments.clean()
    gone = [place for name in names for place in environments.remove(name)]
    if outdated:
        gone += environments.remove_outdated()
    for place in gone:
        click.echo(f"removed {place}", err=True)
    if not gone:
        click.echo("nothing to remove.", err=True)


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)
