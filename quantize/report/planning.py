"""What `quantize plan` shows: stages with their state and cost, then what is worth knowing and what cannot work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from quantize.preflight import Estimate
from quantize.report.numbers import duration

if TYPE_CHECKING:
    from quantize.job import Preview

__all__ = ["plan_document", "print_plan"]


def plan_document(preview: Preview) -> dict[str, Any]:
    """The preview as plain data."""
    return {
        "recipe": preview.loaded.recipe.name,
        "device": preview.device.name,
        "model": preview.facts.model_dump(mode="json"),
        "stages": [
            {
                "kind": cost.stage.kind,
                "name": cost.stage.name,
                "key": cost.stage.key,
                "cached": cost.cached,
                "memory_bytes": cost.memory,
                "disk_bytes": cost.disk,
                "seconds": cost.seconds,
                "seconds_measured": cost.measured,
            }
            for cost in preview.estimates
        ],
        "problems": list(preview.preflight.problems),
        "notes": list(preview.preflight.notes),
    }


def print_plan(preview: Preview, file: TextIO) -> None:
    """Draw the preview on `file`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, width=None if file.isatty() else 120, highlight=False)
    facts = preview.facts
    size = f"{facts.parameters / 1e6:,.0f} million parameters" if facts.parameters else "size unknown"
    console.print(
        f"{preview.loaded.recipe.name}: {facts.architecture}, {size}, {facts.dtype}, on {preview.device.name}"
    )
    if preview.plan is None:
        variants = ", ".join(variant.name for variant in preview.loaded.recipe.variants)
        console.print(f"planned from a config alone: no stage has a key yet (variants: {variants})")
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("stage", "state", "time", "memory", "disk", "key"):
            table.add_column(column, justify="left" if column in ("stage", "state", "key") else "right")
        for cost in preview.estimates:
            table.add_row(*_cells(cost))
        console.print(table)
        left = sum(cost.seconds or 0 for cost in preview.estimates if not cost.cached)
        console.print(f"to do: {sum(not c.cached for c in preview.estimates)} stages, about {duration(left)}")
    for note in preview.preflight.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _cells(cost: Estimate) -> tuple[str, ...]:
    state = "[green]done[/]" if cost.cached else "to do"
    measured = "" if cost.measured else "~"
    return (
        cost.stage.label,
        state,
        f"{measured}{duration(cost.seconds)}" if cost.seconds is not None else "?",
        f"{cost.memory / 1e9:.1f} GB" if cost.memory is not None else "",
        f"{cost.disk / 1e6:,.0f} MB" if cost.disk is not None else "",
        cost.stage.key[:12],
    )
