"""Perplexity and divergence on a text: the same token ids, teacher-forced, position by position.

    KLD_t     = sum over v of P_b(v) * (ln P_b(v) - ln P_q(v))        nats; b the baseline, q the variant
    delta_p_t = P_q(x_t) - P_b(x_t)                                   x_t the token that stands there

Documents are separated by lines of `---` and cut into windows of `window` tokens that do not overlap; the first token
of a window is context only, so a document of n tokens in w windows gives n - w scored positions. llama.cpp's
`llama-perplexity --kl-divergence` lists the same quantities, but scores the second half of each window only and takes
tokens for independent: neither its numbers nor its ± are comparable.

The baseline's distribution is never stored. What is stored are its final hidden states (after the last norm, in the
dtype of computation), to which its own head is applied again: vocabulary / hidden times smaller, and exact
(`_reference`). Of an engine that gives the likeliest tokens only, those are stored, and the divergence is bounded from
below (`_top`); it then has another name, because the two cannot be compared. Windows are taken in blocks of `_BLOCK`
tokens and their rows are written at once, so memory does not grow with the text but for the token ids and, at the end,
a few numbers for each position.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from quantize.errors import DataError
from quantize.evidence import TOKEN_ROWS, ArmMeasurements, Comparison, Measurement
from quantize.handed import EvaluateJob, Row, Session, TopSession, WholeSession
from quantize.metrics._reference import Exact
from quantize.metrics._token_rows import Scoring, TokenRows
from quantize.metrics._top import Likeliest
from quantize.record import Record, digest, file_sha256

if TYPE_CHECKING:
    import torch

    from quantize.stats import Interval

__all__ = ["Text"]

#: Tokens that the session is given at a time, in whole windows: an engine batches within them.
_BLOCK = 8192

_QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}

#: Two-sided confidence of comparisons: each limit is one-sided at 5 %, as gates are.
_LEVEL = 0.90


class Text(Record):
    """`path` is a text.

    Measures `<name>.perplexity` and, beside a baseline, `<name>.kl_divergence` (nats; mean, quantiles and maximum),
    `<name>.top1_agreement` (share), `<name>.delta_p` and `<name>.delta_p_rms` (probability). Compares `perplexity` (ln
    of the ratio), `kl_divergence`, `top1_disagreement` (1 - agreement: what is better is smaller) and `delta_p_rms`.

    An engine that does not give whole distributions is asked for the `top` likeliest tokens of each position. Then
    `<name>.kl_divergence_at_least` stands in the place of `kl_divergence`; everything else is as exact as ever.
    """

    kind: Literal["text"] = "text"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    path: str
    window: Annotated[int, Field(ge=2)] = 512
    top: Annotated[int, Field(ge=1)] = 64

    @property
    def quantities(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("perplexity", "kl_divergence", "top1_disagreement", "delta_p_rms")

    @property
    def paired(self) -> tuple[str, ...]:
        """Nothing here is a bounded score of independent items."""
        return ()

    def identity(self) -> dict[str, Any]:
        """The text's digest, how it is cut, and how many tokens are asked for where not all are given."""
        self._documents()
        return {"kind": self.kind, "sha256": file_sha256(Path(self.path)), "window": self.window, "top": self.top}

    def dataset(self) -> str:
        """See `protocols.Metric`."""
        return file_sha256(Path(self.path))

    def cluster_sizes(self, slice_name: str | None = None, quantity: str = "accuracy") -> list[int]:
        """A text has documents, not items."""
        return []

    def slices(self) -> tuple[str, ...]:
        """A text has none."""
        return ()

    def texts(self) -> list[str]:
        """Every document."""
        return self._documents()

    def measure(self, job: EvaluateJob) -> ArmMeasurements:
        """See `protocols.Metric.measure`. The whole text is measured: nothing bounds what is left of it.

        The session's own batch size is the only thing that two measurements of one arm may differ in.
        """
        session = job.session()
        windows = self._windows(session)
        scoring: Scoring = (
            Exact(cast("WholeSession", session), job)
            if session.distributions == "full"
            else Likeliest(cast("TopSession", session), job, self.top)
        )
        stops = scoring.incomparable([ids for _, ids in windows])
        done, total = 0, sum(len(ids) - 1 for _, ids in windows)
        with TokenRows(job.out, _BLOCK) as rows:
            for block in _blocks(windows):
                documents, targets = _scored(block)
                for scores in scoring.scores([ids for _, ids in block], targets, done):
                    start, done = done, done + len(scores.nll)
                    rows.add(scores, documents, targets, start)
                    documents, targets = documents[len(scores.nll) :], targets[len(scores.nll) :]
                    job.progress("tokens", done, total)
        scoring.close()
        if rows.lost:
            stops.append(f"{rows.lost} of {total} positions have log-probabilities that are not finite")
        return ArmMeasurements(
            eval=self.name,
            arm=job.arm,
            dataset_digest=digest(self.identity()),
            engine=job.engine,
            device=job.device,
            measurements=_measurements(self.name, _columns(job.out)) if not stops else [],
            hard_stops=stops,
        )

    def pairs(self, baseline: list[Row], variant: list[Row]) -> dict[str, Any]:
        """None: documents are compared by bootstrap, not items by a test."""
        return {}

    def compare(self, baseline: Path, variant: Path, early: float = 0.0) -> list[Comparison]:
        """Ln of the ratio of perplexities, paired by document, and divergence; 90 % bootstrap intervals."""
        before, after = _columns(baseline), _columns(variant)
        if any(not _equal(before[key], after[key]) for key in ("document", "position", "token")):
            raise DataError(
                "the arms scored different tokens.",
                where=str(variant),
                fix="Run again, so that both are measured on one text.",
            )
        documents = after["document"]
        ratio = _by_document(documents, after["nll"] - before["nll"], _LEVEL)
        perplexities = [math.exp(arm["nll"].mean()) for arm in (before, after)]
        found = [_comparison(f"{self.name}.perplexity", "ln ratio", ratio, len(documents), *perplexities)]
        divergence = _divergence(after)
        if divergence is None:
            return found
        for quantity, unit, values, root in (
            (divergence[0], "nats", divergence[1], False),
            ("top1_disagreement", "share", 1.0 - after["top1_agrees"], False),
            ("delta_p_rms", "probability", after["delta_p"] ** 2, True),
        ):
            interval = _by_document(documents, values, _LEVEL)
            interval = _root(interval) if root else interval
            found.append(_comparison(f"{self.name}.{quantity}", unit, interval, len(documents), 0.0, interval.estimate))
        return found

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


def _blocks(windows: list[tuple[int, torch.Tensor]]) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Consecutive windows of at most `_BLOCK` tokens together, or a single longer one."""
    block: list[tuple[int, torch.Tensor]] = []
    tokens = 0
    for document, ids in windows:
        if block and tokens + len(ids) > _BLOCK:
            yield block
            block, tokens = [], 0
        block.append((document, ids))
        tokens += len(ids)
    yield block


def _scored(block: list[tuple[int, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a block's scored positions: documents and true tokens (positions)."""
    import torch

    documents = [torch.full((len(ids) - 1,), document) for document, ids in block]
    return torch.cat(documents), torch.cat([ids[1:] for _, ids in block])


def _columns(artifact: Path) -> dict[str, Any]:
    """Columns of `rows.parquet` as arrays (positions), without those that are empty. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = artifact / "rows.parquet"
    try:
        held = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in TOKEN_ROWS if name in held])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the rows cannot be read: {error}", where=str(path)) from error
    filled = [name for name in table.column_names if not table[name].null_count]
    return {name: table[name].to_numpy() for name in filled}


def _divergence(rows: dict[str, Any]) -> tuple[str, Any] | None:
    """What the rows say of the divergence, by the name that it has, and its values (positions)."""
    names = {"kld": "kl_divergence", "kld_at_least": "kl_divergence_at_least"}
    return next(((name, rows[column]) for column, name in names.items() if column in rows), None)


def _equal(one: Any, other: Any) -> bool:
    import numpy as np

    return np.array_equal(one, other)


def _measurements(name: str, rows: dict[str, Any]) -> list[Measurement]:
    """What the columns of an arm's rows say, with 95 % document-bootstrap intervals of the means."""
    import numpy as np

    n = len(rows["nll"])
    loss = _by_document(rows["document"], rows["nll"])
    ends = {"value": math.exp(loss.estimate), "low": math.exp(loss.lower), "high": math.exp(loss.upper)}
    found = [Measurement(name=f"{name}.perplexity", unit="perplexity", n=n, direction="lower", **ends)]
    divergence = _divergence(rows)
    if divergence is None:
        return found
    quantity, nats = divergence
    found.append(_mean(f"{name}.{quantity}", "nats", "lower", _by_document(rows["document"], nats), n))
    for label, value in zip(_QUANTILES, np.quantile(nats, list(_QUANTILES.values())), strict=True):
        place = f"{name}.{quantity}/{label}"
        found.append(Measurement(name=place, value=float(value), unit="nats", n=n, direction="lower"))
    agreement = _by_document(rows["document"], rows["top1_agrees"].astype(float))
    change = _by_document(rows["document"], rows["delta_p"])
    size = _root(_by_document(rows["document"], rows["delta_p"] ** 2))
    return [
        *found,
        _mean(f"{name}.top1_agreement", "share", "higher", agreement, n),
        _mean(f"{name}.delta_p", "probability", "higher", change, n),
        _mean(f"{name}.delta_p_rms", "probability", "lower", size, n),
    ]


def _mean(name: str, unit: str, direction: Literal["higher", "lower"], mean: Interval, n: int) -> Measurement:
    return Measurement(
        name=name, value=mean.estimate, unit=unit, n=n, direction=direction, low=mean.lower, high=mean.upper
    )


def _comparison(metric: str, unit: str, interval: Interval, n: int, baseline: float, variant: float) -> Comparison:
    return Comparison(
        metric=metric,
        unit=unit,
        baseline=baseline,
        variant=variant,
        difference=interval.estimate,
        low=interval.lower,
        high=interval.upper,
        level=interval.confidence,
        n=n,
        method=interval.method,
        extra={},
    )


def _by_document(documents: Any, values: Any, confidence: float = 0.95) -> Interval:
    """Document bootstrap of the mean over all positions."""
    import numpy as np

    from quantize.stats import document_bootstrap

    counts = np.bincount(documents)
    sums = np.bincount(documents, weights=values)
    return document_bootstrap(sums[counts > 0], counts[counts > 0], confidence)


def _root(square: Interval) -> Interval:
    """Of a mean square: the root of it and of its limits; a limit below 0 is 0."""
    from dataclasses import replace

    estimate, lower, upper = (math.sqrt(max(0.0, end)) for end in (square.estimate, square.lower, square.upper))
    return replace(square, estimate=estimate, lower=lower, upper=upper)
