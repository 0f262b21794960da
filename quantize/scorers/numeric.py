"""A number in the text, within a tolerance."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quantize.scorers._each import UNREADABLE, Each, TextScorer, right_or_wrong
from quantize.scoring import Given, Scored

__all__ = ["Numeric"]

#: Digits of a number beyond which it is none: nobody's answer has as many.
_DIGITS = 60


class Numeric(TextScorer):
    """Right when |found - answer| <= max(`absolute`, `relative` * |answer|), in decimal arithmetic, which is exact.

    The last number of the text counts, or the `first`. `thousands` are what may stand between groups of three digits
    besides blanks that do not break; where it is ".", the decimal mark is ",". A minus counts where no letter or digit
    stands before it: `10-5` ends in 5. A text without a number is no answer. A percent sign is no part of a number.
    """

    kind: Literal["numeric"] = "numeric"
    errors_at_most: ClassVar[float] = 0.0
    absolute: Annotated[float, Field(ge=0)] = 0.0
    relative: Annotated[float, Field(ge=0, lt=1)] = 0.0
    thousands: Literal[",", ".", "'", "_", ""] = ","
    which: Literal["first", "last"] = "last"

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        numbers = self._numbers(target)
        alone = len(numbers) == 1 and numbers[0][0] == _western(target.strip())
        return None if alone else f"'answer' is {target!r}, which is not one number"

    def open(self, kept: Path | None) -> Each:
        """See `scoring.Scorer`."""
        return Each(self._score)

    def _numbers(self, text: str) -> list[tuple[str, Decimal]]:
        """Every number of a text: as it is written, and its value."""
        mark, between = ("," if self.thousands == "." else "."), re.escape(self.thousands) + "\u00a0\u202f\u2009"
        pattern = (
            rf"(?:(?<![\w{re.escape(mark)}])[+-])?(?:\d{{1,3}}(?:[{between}]\d{{3}})+(?!\d)|\d+)"
            rf"(?:{re.escape(mark)}\d+)?(?:[eE][+-]?\d{{1,3}}(?!\d))?|(?:(?<![\w])[+-])?(?<!\d){re.escape(mark)}\d+"
        )
        found = []
        for match in re.finditer(pattern, _western(text)):
            plain = re.sub(rf"[{between}]", "", match[0]).replace(mark, ".")
            if sum(one.isdigit() for one in plain) <= _DIGITS:
                found.append((match[0], Decimal(plain)))
        return found

    def _score(self, given: Given) -> Scored:
        numbers = self._numbers(given.answer)
        if not numbers:
            return UNREADABLE
        written, value = numbers[-1] if self.which == "last" else numbers[0]
        ((_, target),) = self._numbers(given.target)
        allowed = max(Decimal(str(self.absolute)), Decimal(str(self.relative)) * abs(target))
        return right_or_wrong(written, right=_apart(value, target) <= allowed)


def _apart(one: Decimal, other: Decimal) -> Decimal:
    """Their distance, without rounding: 28 digits, which is Python's usual, would lose the last of long numbers."""
    from decimal import localcontext

    with localcontext() as context:
        context.prec = 4 * _DIGITS
        return abs(one - other)


def _western(text: str) -> str:
    """Digits of every script as 0 to 9, and every minus as a hyphen."""
    digits = "".join(str(unicodedata.decimal(one, one)) for one in text)
    return digits.replace("\u2212", "-").replace("\uff0b", "+").replace("\uff0d", "-")
