"""Scorers: what makes an answer right, and when there is none in a text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.scorers.choice import Choice
from quantize.scorers.command import Command
from quantize.scorers.exact import Exact
from quantize.scorers.json_schema import JsonSchema
from quantize.scorers.judge import Judge
from quantize.scorers.normalised import Normalised
from quantize.scorers.numeric import Numeric
from quantize.scorers.pattern import Pattern

__all__ = ["Choice", "Command", "Exact", "JsonSchema", "Judge", "Normalised", "Numeric", "Pattern", "ScorerConfig"]

ScorerConfig = Annotated[
    Choice | Command | Exact | JsonSchema | Judge | Normalised | Numeric | Pattern,
    Field(discriminator="kind"),
]
