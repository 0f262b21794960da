"""What there is of every environment: for `quantize env list` and `quantize doctor`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from quantize.environments.keeping import held
from quantize.environments.pins import SHIPPED, names, read
from quantize.environments.places import Made, directory, locate, made
from quantize.errors import UsageError

__all__ = ["Entry", "entries"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One environment, or one made from older pins.

    `state`: made by this program; named by a variable (`python` says what); wrong (the variable names no
    interpreter: `problem` says why); being made; missing; outdated (made from other pins than today's: of no use).
    `bytes` and `seconds` are None for what was not made here.
    """

    name: str
    state: Literal["made", "named", "wrong", "being made", "missing", "outdated"]
    python: str | None
    place: str
    about: str
    needs_gpu: bool
    gigabytes: float
    minutes: float
    bytes: int | None = None
    created: str | None = None
    problem: str | None = None


def entries(pins: Path = SHIPPED) -> list[Entry]:
    """Every environment that there are pins for, then what was made from older pins."""
    there = dict(made())
    current = {directory(read(name, pins)) for name in names(pins)}
    old = [_outdated(place, record) for place, record in there.items() if place not in current]
    return [_entry(name, pins, there) for name in names(pins)] + old


def _entry(name: str, pins: Path, there: dict[Path, Made]) -> Entry:
    what = read(name, pins)
    entry = Entry(name, "missing", None, "", what.about, what.needs.cuda, what.gigabytes, what.minutes)
    try:
        found = locate(name, pins=pins)
    except UsageError as error:
        return replace(entry, state="wrong", place=error.where or "", problem=str(error))
    entry = replace(entry, place=found.place, python=None if found.python is None else str(found.python))
    if found.source != "created":
        return replace(entry, state="named")
    record = there.get(Path(found.place))
    if record is None:
        return replace(entry, state="being made" if held(name) else "missing")
    return replace(entry, state="made", bytes=record.bytes, created=record.created)


def _outdated(place: Path, record: Made) -> Entry:
    gigabytes, minutes = record.bytes / 1e9, record.seconds / 60
    return Entry(
        record.name,
        "outdated",
        os.fspath(place / "bin" / "python"),
        str(place),
        about="made from other pins than today's",
        needs_gpu=False,
        gigabytes=gigabytes,
        minutes=minutes,
        bytes=record.bytes,
        created=record.created,
    )
