"""Names that MLflow takes as aliases, and the rule by which a deployment target chooses what its alias points at."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from quantize.record import Record

__all__ = ["Smaller", "Target", "alias_problem", "is_alias"]

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,200}\Z")
_OURS = ("-previous", "-candidate")


def alias_problem(name: str) -> str | None:
    """Why `name` cannot be an alias of MLflow, or None. Variants and targets are aliases, so their names must be."""
    if not _ALIAS.match(name):
        return f"{name!r} is an alias in the registry, so only letters, digits, '-' and '_' may be in it"
    if name == "latest" or re.fullmatch(r"[vV]?\d+", name):
        return f"{name!r} means a version to MLflow"
    if name.endswith(_OURS):
        return f"{name!r} ends like the aliases that this program keeps itself ({', '.join(_OURS)})"
    return None


def is_alias(name: str) -> str:
    """`name` itself; raises ValueError for one that cannot be an alias."""
    problem = alias_problem(name)
    if problem:
        raise ValueError(problem)
    return name


class Target(Record):
    """A deployment target: an alias that points at the best promoted variant of `from`, else at the baseline."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    from_: list[str] = Field(alias="from", min_length=1)
    prefer: Literal["bytes", "quality"] = "bytes"


class Smaller(Record):
    """The trade: a candidate with `smaller_by` fewer weight bytes may be worse than the champion by up to `margin`.

    Both are shares. Without a trade a candidate must pass the recipe's own gates against the champion.
    """

    smaller_by: Annotated[float, Field(gt=0, lt=1)]
    margin: Annotated[float, Field(gt=0, lt=1)]
