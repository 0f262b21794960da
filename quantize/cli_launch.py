"""The verbs that write a recipe's job for a cluster, and hand it over where that is asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantize.cli_options import as_document, json_option, recipe_argument, set_option, store_option
from quantize.errors import QuantizeError, RecipeError, UsageError

if TYPE_CHECKING:
    from quantize.launching import Asked
    from quantize.recipe import LoadedRecipe

__all__ = ["launch"]

_NO_SCHEDULE = "none"
_CLAIM = "quantize"
#: Names of clusters' things: what they take, and nothing that a script could read as more.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]{0,252}\Z")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}\Z")

_RESOURCES = (
    click.option("--gpus", type=click.IntRange(0, 1024), help="GPUs. Default: as the recipe's resources say."),
    click.option("--cpus", type=click.IntRange(1, 4096), help="CPU cores. Default: the recipe's, else the cluster's."),
    click.option(
        "--memory-gb",
        type=click.FloatRange(0, 1e6, min_open=True),
        help="Memory in GB. Default: by the recipe or its model, else the cluster's.",
    ),
    click.option("--submit", is_flag=True, help="Hand it to the cluster, instead of printing it."),
)


def _asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every kind of cluster has."""
    for option in reversed(_RESOURCES):
        command = option(command)
    return command


@click.group()
def launch() -> None:
    """Write the job of a recipe for a cluster, and with --submit hand it over.

    The job is `quantize run`: stopped before its end it saves, ends with 75 and goes on where it was.
    """


@launch.command()
@recipe_argument
@set_option
@store_option
@click.option("--time", "limit", default="04:00:00", show_default=True, help="Limit of one job, in Slurm's notation.")
@click.option("--partition", help="Slurm's partition.")
@click.option("--account", help="Slurm's account.")
@click.option(
    "--every", "schedule", default=_NO_SCHEDULE, show_default=True, help="A schedule for scrontab: five fields of cron."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the script here.")
@_asks
@json_option
def slurm(
    recipe: Path,
    overrides: tuple[str, ...],
    store_path: Path,
    limit: str,
    partition: str | None,
    account: str | None,
    schedule: str,
    output: Path | None,
    gpus: int | None,
    cpus: int | None,
    memory_gb: float | None,
    submit: bool,
    as_json: bool,
) -> None:
    """Write an sbatch script that runs RECIPE, and comes back after a time limit."""
    from quantize.launching import SlurmJob, asked_of, limit_seconds, sbatch_script, submit_script

    loaded = _load(recipe, overrides)
    _without_secrets(loaded, overrides)
    job = SlurmJob(
        name=loaded.recipe.name,
        recipe=recipe.absolute(),
        store=store_path.absolute(),
        directory=Path.cwd(),
        programs=Path(sys.executable).parent,
        overrides=overrides,
        asked=asked_of(loaded.recipe, gpus, cpus, memory_gb),
        seconds=limit_seconds(limit, "--time"),
        partition=_named(partition, "--partition", _WORD),
        account=_named(account, "--account", _WORD),
    )
    entry = _entry(job, schedule, output, submit=submit)
    script = sbatch_script(job)
    _tell(job.asked, [])
    if output is not None:
        _write(output, script)
    submitted = submit_script(script) if submit else None
    if as_json:
        as_document({"script": script, "scrontab": entry, "resources": _plain(job.asked), "submitted": submitted})
    elif submitted is not None or entry is not None:
        click.echo(submitted or entry, nl=submitted is not None)
    elif output is None:
        click.echo(script, nl=False)
    if output is not None and not submit:
        click.echo(f"wrote {output}; next: {'scrontab -e' if entry else f'sbatch {output}'}", err=True)


def _entry(job: Any, schedule: str, output: Path | None, *, submit: bool) -> str | None:
    """The lines of a crontab; None without a schedule."""
    from quantize.launching import check_schedule, scrontab_entry

    if schedule == _NO_SCHEDULE:
        return None
    check_schedule(schedule, "--every")
    if submit:
        what = "a schedule is not submitted: scrontab takes a user's whole table, and this would write over it."
        raise UsageError(what, where="--every", fix="Leave --submit out, and add the lines with `scrontab -e`.")
    if output is None:
        raise UsageError("a schedule needs a script to run.", where="--every", fix="Add --output FILE.")
    return scrontab_entry(job, output.absolute(), schedule)


@launch.command()
@recipe_argument
@set_option
@click.option("--image", required=True, help="The container image that has quantize.")
@click.option("--namespace", help="Default: kubectl's own.")
@click.option("--schedule", help='Five fields of cron, as "0 2 * * *": a CronJob instead of a Job.')
@click.option("--time", "limit", help="Limit of one job, as 04:00:00. Default: none.")
@click.option("--claim", default=_CLAIM, show_default=True, help="The PersistentVolumeClaim that holds the store.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="A Secret of variables; may be repeated.")
@_asks
@json_option
def kubernetes(
    recipe: Path,
    overrides: tuple[str, ...],
    image: str,
    namespace: str | None,
    schedule: str | None,
    limit: str | None,
    claim: str,
    secrets: tuple[str, ...],
    gpus: int | None,
    cpus: int | None,
    memory_gb: float | None,
    submit: bool,
    as_json: bool,
) -> None:
    """Write a Job (or CronJob) that runs RECIPE, and the ConfigMap in which the recipe travels."""
    from quantize import launching

    loaded = _load(recipe, overrides)
    _without_secrets(loaded, (*overrides, *_addresses(loaded)))
    job = launching.KubernetesJob(
        name=loaded.recipe.name,
        text=loaded.text,
        overrides=overrides,
        asked=launching.asked_of(loaded.recipe, gpus, cpus, memory_gb),
        image=_named(image, "--image", _IMAGE) or image,
        claim=_named(claim, "--claim", _LABEL) or claim,
        namespace=_named(namespace, "--namespace", _LABEL),
        schedule=launching.check_schedule(schedule, "--schedule") if schedule is not None else None,
        seconds=launching.limit_seconds(limit, "--time") if limit is not None else None,
        secrets=tuple(_named(name, "--secret", _LABEL) or name for name in secrets),
    )
    documents = launching.manifests(job)
    text = launching.as_yaml(documents)
    notes = [
        f"the claim {claim} has to be there; the store lies on it",
        *launching.elsewhere(loaded.recipe, launching.CLAIM),
    ]
    _tell(job.asked, notes)
    submitted = launching.apply_manifests(text) if submit else None
    if as_json:
        told = {"resources": _plain(job.asked), "notes": notes, "submitted": submitted}
        as_document({"manifests": documents, **told})
    else:
        click.echo(submitted if submitted is not None else text, nl=submitted is not None)


def _load(recipe: Path, overrides: tuple[str, ...]) -> LoadedRecipe:
    from quantize.recipe import load

    return load(recipe, overrides)


def _addresses(loaded: LoadedRecipe) -> list[str]:
    """The secret addresses that stand in the recipe itself."""
    return [secret for notifier in loaded.recipe.release.notify for secret in notifier.secrets]


def _without_secrets(loaded: LoadedRecipe, texts: tuple[str, ...]) -> None:
    """Refuse to write a webhook's address where others read: who knows it may speak."""
    if any(secret in text for secret in _addresses(loaded) for text in texts):
        problem = "the job's text would show the address: take url_env, and give the variable to the job as a secret"
        raise RecipeError([f"{loaded.path}: release.notify: {problem}"])


def _named(value: str | None, option: str, letters: re.Pattern[str]) -> str | None:
    """A name as the cluster takes it. Raises UsageError for anything else."""
    if value is not None and not letters.match(value):
        raise UsageError(f"{value!r} cannot be a name there.", where=option, fix="Write it as the cluster lists it.")
    return value


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"cannot be written ({error.strerror})."
        raise QuantizeError(what, where=str(path), fix="Name another.") from None


def _tell(asked: Asked, notes: list[str]) -> None:
    """Say on stderr what is asked for and why, and what has to be seen to."""
    for line in asked.reasons:
        click.echo(line, err=True)
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _plain(asked: Asked) -> dict[str, Any]:
    return {"gpus": asked.gpus, "cpus": asked.cpus, "memory_gb": asked.memory_gb, "reasons": list(asked.reasons)}
