"""Perplexity and divergence on a text: the same token ids, teacher-forced, position by position.

    KLD_t = sum over v of P_b(v) * (ln P_b(v) - ln P_q(v))        nats; b the baseline, q the variant

Documents are separated by lines of `---` and cut into windows of `window` tokens that do not overlap; the first token
of a window is context only, so a document of n tokens in w windows gives n - w scored positions. llama.cpp's
`llama-perplexity --kl-divergence` scores the second half of each window only: its numbers are not comparable.

The baseline's distribution is never stored. What is stored are its final hidden states (after the last norm), to which
its own head is applied again: vocabulary / hidden times smaller, and exact. Positions are taken in chunks, so memory
does not grow with the text.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from quantize.errors import DataError
from quantize.evidence import TOKEN_ROWS, ArmMeasurements, Comparison, Measurement
from quantize.metrics._reference import Reference, store_reference
from quantize.metrics._rows import read_rows, write_rows
from quantize.protocols import Progress, Session
from quantize.record import Record, digest, file_sha256

if TYPE_CHECKING:
    import torch

__all__ = ["Text"]

_CHUNK = 128
_QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


class Text(Record):
    """`path` is a text. Measures `<name>.perplexity`, `<name>.kl_divergence` (nats), `<name>.top1_agreement`."""

    kind: Literal["text"] = "text"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    path: str
    window: Annotated[int, Field(ge=2)] = 512

    @property
    def needs_reference(self) -> bool:
        """Divergence is from the baseline's hidden states."""
        return True

    def identity(self) -> dict[str, Any]:
        """The text's digest and how it is cut."""
        self._documents()
        return {"kind": self.kind, "sha256": file_sha256(Path(self.path)), "window": self.window}

    def items(self, slice_name: str | None = None) -> int:
        """A text has documents, not items."""
        return 0

    def measure(
        self, session: Session, arm: str, out: Path, reference: Path | None, baseline: Path | None, progress: Progress
    ) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        import torch

        rows: list[dict[str, Any]] = []
        stops: list[str] = []
        states: list[torch.Tensor] = []
        windows = self._windows(session)
        scored = torch.cat([ids[1:] for _, ids in windows])
        known = Reference(reference, baseline) if reference is not None and baseline is not None else None
        if known is not None and not known.same_tokens(scored):
            stops.append("the tokenizer gives other tokens than the baseline's: nothing can be compared")
            known = None
        for document, ids in windows:
            hidden = session.hidden(ids.unsqueeze(0))[0, :-1]
            rows += _score(session, hidden, ids[1:], document, known, len(rows))
            if reference is None:
                states.append(hidden.cpu())
            progress("tokens", len(rows), len(scored))
        if reference is None:
            store_reference(session, torch.cat(states), scored, out, baseline)
        finite = [row for row in rows if math.isfinite(row["nll"]) and math.isfinite(row["kld"] or 0.0)]
        if len(finite) < len(rows):
            stops.append(
                f"{len(rows) - len(finite)} of {len(rows)} positions have log-probabilities that are not finite"
            )
        write_rows(finite, TOKEN_ROWS, out)
        return ArmMeasurements(
            eval=self.name,
            arm=arm,
            dataset_digest=digest(self.identity()),
            engine=type(session).__name__,
            device=session.device,
            measurements=self._measurements(rows, divergence=known is not None) if not stops else [],
            hard_stops=stops,
        )

    def compare(self, baseline: Path, variant: Path) -> list[Comparison]:
        """Ln of the ratio of perplexities, paired by document, and the mean divergence; 95 % bootstrap intervals."""
        before, after = read_rows(baseline), read_rows(variant)
        keys = [[(row["document"], row["position"], row["token"]) for row in rows] for rows in (before, after)]
        if keys[0] != keys[1]:
            raise DataError(
                "the arms scored different tokens.",
                where=str(variant),
                fix="Run again, so that both are measured on one text.",
            )
        pairs = [
            {"document": one["document"], "ratio": other["nll"] - one["nll"]}
            for one, other in zip(before, after, strict=True)
        ]
        ratio = _by_document(pairs, "ratio")
        divergence = _by_document(after, "kld")
        means = [sum(row["nll"] for row in rows) / len(rows) for rows in (before, after)]
        return [
            Comparison(
                metric=f"{self.name}.perplexity",
                unit="ln ratio",
                baseline=math.exp(means[0]),
                variant=math.exp(means[1]),
                difference=ratio.estimate,
                low=ratio.lower,
                high=ratio.upper,
                level=0.95,
                n=len(before),
                method=ratio.method,
                extra={},
            ),
            Comparison(
                metric=f"{self.name}.kl_divergence",
                unit="nats",
                baseline=0.0,
                variant=divergence.estimate,
                difference=divergence.estimate,
                low=divergence.lower,
                high=divergence.upper,
                level=0.95,
                n=len(after),
                method=divergence.method,
                extra={},
            ),
        ]

    def _documents(self) -> list[str]:
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError("there is no such text.", where=self.path, fix="Check evals.path in the recipe.") from None
        except UnicodeDecodeError as error:
            raise DataError(f"this is not UTF-8 text ({error.reason}).", where=self.path) from None
        documents = [part.strip("\n") for part in re.split(r"(?m)^---$", text)]
        documents = [document for document in documents if document.strip()]
        if len(documents) < 2:
            raise DataError(
                f"the text has {len(documents)} documents; the interval is over documents and needs at least 2.",
                where=self.path,
                fix="Separate documents by lines of `---`, better 50 of them.",
            )
        return documents

    def _windows(self, session: Session) -> list[tuple[int, torch.Tensor]]:
        """(document, int64 ids) of every window with at least one scored token."""
        import torch

        found = []
        for number, document in enumerate(self._documents()):
            ids = session.encode(document)
            pieces = [ids[start : start + self.window] for start in range(0, len(ids), self.window)]
            found += [(number, torch.tensor(piece)) for piece in pieces if len(piece) > 1]
        if not found:
            raise DataError("the text has no two tokens in a row.", where=self.path)
        return found

    def _measurements(self, rows: list[dict[str, Any]], *, divergence: bool) -> list[Measurement]:
        import numpy as np

        loss = _by_document(rows, "nll")
        n = len(rows)
        found = [
            Measurement(
                name=f"{self.name}.perplexity",
                value=math.exp(loss.estimate),
                unit="perplexity",
                n=n,
                direction="lower",
                low=math.exp(loss.lower),
                high=math.exp(loss.upper),
            )
        ]
        if not divergence:
            return found
        mean = _by_document(rows, "kld")
        values = np.array([row["kld"] for row in rows])
        name = f"{self.name}.kl_divergence"
        found.append(
            Measurement(
                name=name, value=mean.estimate, unit="nats", n=n, direction="lower", low=mean.lower, high=mean.upper
            )
        )
        found += [
            Measurement(
                name=f"{name}/{label}", value=float(np.quantile(values, q)), unit="nats", n=n, direction="lower"
            )
            for label, q in _QUANTILES.items()
        ]
        agree = sum(bool(row["top1_agrees"]) for row in rows) / n
        found.append(
            Measurement(name=f"{self.name}.top1_agreement", value=agree, unit="share", n=n, direction="higher")
        )
        return found


def _score(
    session: Session, hidden: torch.Tensor, targets: torch.Tensor, document: int, known: Reference | None, offset: int
) -> list[dict[str, Any]]:
    """Rows of one window: `hidden` (positions, hidden), `targets` (positions), the first at position `offset`."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(targets), _CHUNK):
        stop = min(start + _CHUNK, len(targets))
        wanted = targets[start:stop].to(hidden.device)
        # Normalised in float64: a divergence of near arms is far below what float32 leaves of sums to one.
        variant = session.head(hidden[start:stop]).double().log_softmax(-1)
        loss = (-variant.gather(1, wanted.unsqueeze(1))[:, 0]).tolist()
        divergence: list[float | None] = [None] * (stop - start)
        agrees: list[bool | None] = [None] * (stop - start)
        if known is not None:
            baseline = known.logits(offset + start, offset + stop, hidden.device).double().log_softmax(-1)
            divergence = (baseline.exp() * (baseline - variant)).sum(-1).tolist()
            agrees = (baseline.argmax(-1) == variant.argmax(-1)).tolist()
        rows += [
            {
                "document": document,
                "position": offset + start + i,
                "token": token,
                "nll": loss[i],
                "kld": divergence[i],
                "top1_agrees": agrees[i],
            }
            for i, token in enumerate(wanted.tolist())
        ]
    return rows


def _by_document(rows: list[dict[str, Any]], column: str) -> Any:
    """Document bootstrap of the mean of a column over all positions."""
    import numpy as np

    from quantize.stats import document_bootstrap

    documents = np.array([row["document"] for row in rows])
    values = np.array([row[column] for row in rows], dtype=float)
    counts = np.bincount(documents)
    sums = np.bincount(documents, weights=values)
    return document_bootstrap(sums[counts > 0], counts[counts > 0])
