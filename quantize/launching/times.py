"""Times as users write them: how long a job may take, as Slurm reads it, and when one is started, as cron does."""

from __future__ import annotations

import re

from quantize.errors import UsageError

__all__ = ["TOLD_BEFORE", "check_schedule", "limit_seconds", "slurm_time"]

#: Seconds before a job's end at which the program is told to save and stop.
TOLD_BEFORE = 120
#: Slurm tells up to a minute earlier than it was asked to, and a job that never works makes no progress.
_SHORTEST = 300
_LIMIT = re.compile(r"(?:(?P<days>\d{1,4})-)?(?P<parts>\d{1,6}(?::\d{1,2}){0,2})\Z")
_LIMIT_MEND = "Write it as Slurm does: 30 (minutes), 04:00:00, 1-12 (days-hours) or 1-12:00:00."

_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
#: Name, least, most, and names of values. Sunday is 0: Kubernetes knows no 7.
_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
)
_PART = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?\Z", re.ASCII)


def limit_seconds(text: str, option: str) -> int:
    """Seconds of a time limit in Slurm's notation. Raises UsageError for another, and for one that is too short."""
    found = _LIMIT.match(text)
    if found is None:
        raise UsageError(f"{text!r} is no time limit.", where=option, fix=_LIMIT_MEND)
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    total = ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < _SHORTEST:
        what = f"{text} leaves no time to work: the program is told to stop {TOLD_BEFORE} s before the end."
        raise UsageError(what, where=option, fix=f"Give {_SHORTEST // 60} minutes or more.")
    return total


def slurm_time(seconds: int) -> str:
    """Seconds as days-hours:minutes:seconds."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02}:{minutes:02}:{rest:02}"


def check_schedule(text: str, option: str) -> str:
    """A schedule that Kubernetes and Slurm both read: five fields of cron, or one of its words. Raises UsageError."""
    if text in _MACROS:
        return text
    fields = text.split(" ")
    if len(fields) != len(_FIELDS) or text.startswith("@"):
        mend = f'Write five fields ("0 2 * * *" is every night at two), or one of {", ".join(_MACROS)}.'
        raise UsageError(f"{text!r} is no schedule.", where=option, fix=mend)
    for field, (name, least, most, names) in zip(fields, _FIELDS, strict=True):
        if not all(_is_part(part, least, most, names) for part in field.split(",")):
            mend = f"It takes {least} to {most}, ranges (1-5), steps (*/15), lists (1,15) and *."
            raise UsageError(f"{field!r} is no {name} of the schedule {text!r}.", where=option, fix=mend)
    return text


def _is_part(part: str, least: int, most: int, names: tuple[str, ...]) -> bool:
    found = _PART.match(part)
    if found is None or (found["step"] is not None and int(found["step"]) == 0):
        return False
    if found["first"] == "*":
        return found["last"] is None
    ends = [_value(end, least, names) for end in (found["first"], found["last"]) if end is not None]
    known = [end for end in ends if end is not None and least <= end <= most]
    return known == ends and known == sorted(known)


def _value(text: str, least: int, names: tuple[str, ...]) -> int | None:
    if text.isdecimal():
        return int(text)
    return names.index(text.lower()) + least if text.lower() in names else None
