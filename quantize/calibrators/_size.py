"""Another size of a calibration, for one variant of a recipe."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from quantize.record import Record

__all__ = ["CalibrationSize", "sized"]

C = TypeVar("C", bound=Record)


class CalibrationSize(Record):
    """How much of the recipe's calibration a variant takes, where it is not the recipe's own size."""

    samples: Annotated[int | None, Field(gt=0, description="Rows.")] = None
    tokens: Annotated[int | None, Field(gt=1, description="Tokens of a row, at most.")] = None

    @model_validator(mode="after")
    def _says_something(self) -> CalibrationSize:
        if self.samples is None and self.tokens is None:
            raise ValueError("say samples, tokens or both")
        return self


def sized(calibration: C, size: CalibrationSize) -> C:
    """A recipe's calibration at another size. Raises ValidationError for a mixture that is too small for its parts."""
    kept = calibration.model_dump(by_alias=True)
    return type(calibration).model_validate({**kept, **size.model_dump(exclude_none=True)})
