"""Options that several verbs share, and how a verb prints for a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

__all__ = [
    "as_document",
    "json_option",
    "only_option",
    "reason_option",
    "recipe_argument",
    "registry_option",
    "set_option",
    "store_option",
]

store_option = click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    envvar="QUANTIZE_STORE",
    show_default=True,
    show_envvar=True,
    help="Where artifacts, runs and the embedded registry lie.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe value.")
only_option = click.option("--only", multiple=True, metavar="VARIANT", help="Only this variant; may be repeated.")
registry_option = click.option(
    "--registry", "uri", metavar="URI", help="MLflow; else MLFLOW_TRACKING_URI, else the store's own database."
)
reason_option = click.option("--reason", required=True, help="Why; it is kept with the version.")
recipe_argument = click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))


def as_document(document: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))
