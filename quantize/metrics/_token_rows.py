"""The rows of a text: what is known of each scored position, written as positions are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from quantize.evidence import TOKEN_ROWS

if TYPE_CHECKING:
    import torch

__all__ = ["Scores", "Scoring", "TokenRows"]


@dataclass(frozen=True, slots=True)
class Scores:
    """By position, float64 on the CPU: -ln P_q(true); KLD and P_q(true) - P_b(true), where a baseline is known.

    All are NaN where a logit, anywhere in the vocabulary, is not finite. Where the engine gives the likeliest tokens
    only, `kld` is None and `kld_at_least` bounds it from below.
    """

    nll: torch.Tensor
    kld: torch.Tensor | None
    agrees: torch.Tensor | None
    delta_p: torch.Tensor | None
    kld_at_least: torch.Tensor | None = None


class Scoring(Protocol):
    """One way to score an arm, and to keep what variants are compared with where the arm is the baseline."""

    def incomparable(self, windows: Sequence[torch.Tensor]) -> list[str]:
        """Why the arm cannot be compared with the baseline, if anything is in the way; then it is scored alone."""
        ...

    def scores(self, windows: Sequence[torch.Tensor], targets: torch.Tensor, offset: int) -> Iterator[Scores]:
        """Scores of the true tokens `targets` (positions) of `windows` of ids, some positions at a time, in order.

        `offset` is the first one's place among all scored positions.
        """
        ...

    def close(self) -> None:
        """Write what is left to keep."""
        ...


class TokenRows:
    """Writes `rows.parquet` in groups of `group` rows as they come. `lost` counts those left out as not finite."""

    def __init__(self, out: Path, group: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in TOKEN_ROWS.items()])
        self._writer = pq.ParquetWriter(out / "rows.parquet", self._schema, compression="zstd")
        self._group = group
        self._held: list[Any] = []
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, scores: Scores, documents: torch.Tensor, targets: torch.Tensor, position: int) -> None:
        """The rows of as many positions as there are scores; the first stands at `position`."""
        import pyarrow as pa
        import torch

        n = len(scores.nll)
        finite = scores.nll.isfinite()
        for divergence in (scores.kld, scores.kld_at_least):
            finite = finite & divergence.isfinite() if divergence is not None else finite
        self.lost += n - int(finite.sum())
        columns = {
            "document": documents[:n],
            "position": torch.arange(position, position + n),
            "token": targets[:n].cpu(),
            "nll": scores.nll,
            "kld": scores.kld,
            "top1_agrees": scores.agrees,
            "delta_p": scores.delta_p,
            "kld_at_least": scores.kld_at_least,
        }
        missing = int(finite.sum())
        arrays = [
            pa.nulls(missing, field.type) if column is None else pa.array(column[finite].numpy(), field.type)
            for field, column in zip(self._schema, columns.values(), strict=True)
        ]
        self._held.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        if sum(len(batch) for batch in self._held) >= self._group:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held).combine_chunks())
            self._held = []
