"""Calibration from several sources: rows of each in proportion to its weight.

Shares are exact: of `samples` rows each part has its share rounded down, and the rows that are left go to the largest
remainders, the first part first among equals. Within a part everything is as that calibrator does it.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from quantize.calibrators.dataset import Dataset
from quantize.calibrators.self_ import Self
from quantize.calibrators.text import Text
from quantize.handed import Drawn, Progress
from quantize.record import Record

__all__ = ["Mixture", "Part"]

Source = Self | Text | Dataset
#: What the mixture says for all of its parts, by the names of a part's fields and of a recipe.
_OWN = {"samples": "samples", "tokens_per_sample": "tokens", "allow_overlap": "allow_overlap"}


class Part(Record):
    """A source and its weight beside the others'."""

    weight: Annotated[float, Field(gt=0, description="Its share of the rows, relative to the other weights.")]
    source: Annotated[Source, Field(discriminator="kind", alias="from")]

    @field_validator("source")
    @classmethod
    def _leaves_the_size_to_the_mixture(cls, value: Source) -> Source:
        said = [name for field, name in _OWN.items() if field in value.model_fields_set]
        if said:
            raise ValueError(f"{said[0]} is said once, by the mixture: leave it out of its parts")
        return value

    @field_serializer("source")
    def _without_what_the_mixture_says(self, value: Source) -> dict[str, Any]:
        return value.model_dump(mode="json", by_alias=True, exclude=set(_OWN))


class Mixture(Record):
    """`samples` rows of `tokens` tokens from `parts`, in their order."""

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[Part, ...], Field(min_length=2)]
    samples: Annotated[int, Field(gt=0, description="Rows of all parts together.")] = 128
    tokens_per_sample: int = Field(default=512, alias="tokens", gt=1, description="Tokens of a row, at most.")
    allow_overlap: Annotated[bool, Field(description="Eval items may be among the texts; the report says so.")] = False

    @model_validator(mode="after")
    def _every_part_has_a_row(self) -> Mixture:
        for part, rows in zip(self.parts, self.shares(), strict=True):
            if rows == 0:
                raise ValueError(
                    f"of {self.samples} samples the part of kind {part.source.kind} with weight {part.weight:g} gets "
                    "no row: raise samples or its weight, or leave it out"
                )
        return self

    def shares(self) -> list[int]:
        """Rows of each part."""
        weights = [Fraction(part.weight) for part in self.parts]
        exact = [self.samples * weight / sum(weights) for weight in weights]
        rows = [int(share) for share in exact]
        order = sorted(range(len(rows)), key=lambda number: (rows[number] - exact[number], number))
        for number in order[: self.samples - sum(rows)]:
            rows[number] += 1
        return rows

    def _sources(self) -> list[Source]:
        """The parts' calibrators, each with its rows and the mixture's length."""
        return [
            part.source.model_copy(update={"samples": rows, "tokens_per_sample": self.tokens_per_sample})
            for part, rows in zip(self.parts, self.shares(), strict=True)
        ]

    @property
    def even(self) -> bool:
        """Where every part's rows are."""
        return all(part.source.even for part in self.parts)

    @property
    def online(self) -> bool:
        """Where a part's is."""
        return any(part.source.online for part in self.parts)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.source.libraries))

    def identity(self) -> dict[str, Any]:
        """What each part is, in their order: weights count as the rows that they come to."""
        return {"kind": self.kind, "parts": [source.identity() for source in self._sources()]}

    def pinned(self) -> Mixture:
        """The same with each part at its commit."""
        parts = tuple(part.model_copy(update={"source": part.source.pinned()}) for part in self.parts)
        return self.model_copy(update={"parts": parts})

    def texts(self) -> list[str]:
        """Those of all parts that are at hand."""
        return [text for part in self.parts for text in part.source.texts()]

    def chats(self) -> bool:
        """Whether a document of a part is a conversation."""
        return any(part.source.chats() for part in self.parts)

    def draw(self, checkpoint: Path, device: str, progress: Progress) -> Drawn:
        """See `protocols.Calibrator.draw`."""
        drawn = [source.draw(checkpoint, device, progress) for source in self._sources()]
        told = [
            {
                "kind": part.source.kind,
                "weight": part.weight,
                "samples": len(one.rows),
                "total_tokens": sum(len(row) for row in one.rows),
                **one.facts,
            }
            for part, one in zip(self.parts, drawn, strict=True)
        ]
        rows = tuple(row for one in drawn for row in one.rows)
        return Drawn(rows, tuple(text for one in drawn for text in one.documents), {"parts": told})
