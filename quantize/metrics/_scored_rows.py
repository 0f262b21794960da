"""From what a model said to an item's row: the choice that it finds likeliest, or its answers, scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantize.errors import DataError
from quantize.handed import Row, Session
from quantize.metrics._harness import as_they_stand
from quantize.metrics._item_tasks import FreeAnswers
from quantize.metrics._items_file import Item
from quantize.scorers import Choice
from quantize.scoring import Given, Scored, Scorer, Scoring

__all__ = ["answer_rows", "check_scorable", "choice_row", "not_scored"]


def check_scorable(items: Sequence[Item], scorer: Scorer | None) -> None:
    """Raise DataError, which names the line, for an item that a recipe's scorer cannot score."""
    if scorer is None:
        return
    free = [item for item in items if item.choices is None]
    if scorer.generates and not free:
        raise DataError(
            f"all items have choices, and `{scorer.kind}` scores texts.",
            where=items[0].where,
            fix="Leave the scorer out, or take `kind: choice`.",
        )
    for item in free:
        problem = scorer.problem(item.target)
        if problem is not None:
            raise DataError(f"item {item.id!r} cannot be scored by `{scorer.kind}`: {problem}.", where=item.where)


def not_scored(at_most: float, rows: Sequence[Row], of: int) -> list[str]:
    """A sentence where more than the share `at_most` of `of` items could not be scored."""
    lost = [row for row in rows if row["problem"] is not None]
    if len(lost) <= at_most * of:
        return []
    first = lost[0]
    share = f"{len(lost)} of {len(rows)} items could not be scored, more than {100 * at_most:g} % of {of}"
    return [f"{share}: item {first['item_id']!r}, {first['problem']}"]


def answer_rows(
    session: Session, items: Sequence[Item], said: Mapping[str, Sequence[str]], free: FreeAnswers, scoring: Scoring
) -> list[Row]:
    """The rows of items whose answers were generated: `said` are the texts, by item."""
    given = [Given(item.id, item.conversation, item.target, text) for item in items for text in said[item.id]]
    scores = iter(scoring.score(given))
    rows = []
    for item in items:
        texts = said[item.id]
        rows.append(_answered(session, item, texts, [next(scores) for _ in texts], free.most(item)))
    return rows


def _answered(session: Session, item: Item, texts: Sequence[str], scores: Sequence[Scored], most: int) -> Row:
    """The row of one item, each of whose answers may have `most` tokens."""
    lengths = [len(session.encode(text)) for text in texts]
    cut = [length >= most for length in lengths]
    read = [one.found is not None and not short for one, short in zip(scores, cut, strict=True)]
    return {
        **_asked(item),
        "score": sum(one.score for one in scores) / len(scores),
        "parsed": sum(read) / len(read),
        "truncated": sum(cut) / len(cut),
        "tokens": sum(lengths) / len(lengths),
        # Leading blanks of a generation are no error of the model.
        "answer": "\n".join(dict.fromkeys(text.strip() for text in texts)),
        "scored_by": "; ".join(dict.fromkeys(one.by for one in scores if one.by is not None)) or None,
        "problem": next((one.problem for one in scores if one.problem is not None), None),
    }


def choice_row(session: Session, item: Item, sample: Mapping[str, Any], scorer: Choice) -> tuple[Row, str | None]:
    """The row of an item with choices, and a sentence if what the model said cannot be used."""
    choices = item.choices or ()
    sums = [float(response[0]) for response in sample["filtered_resps"]]
    row = {**_asked(item), "score": 0.0, "parsed": None, "tokens": None, "answer": ""}
    if not all(math.isfinite(value) for value in sums):
        return row, f"item {item.id!r} has a log-likelihood that is not finite"
    lengths = _lengths(session, item) if scorer.normalise == "per_token" else [1] * len(choices)
    best = scorer.likeliest(sums, choices, lengths)
    return {**row, "score": float(best == item.answer), "answer": choices[best]}, None


def _lengths(session: Session, item: Item) -> list[int]:
    """Tokens of each choice, as the harness has cut them from their prompt."""
    lm = session.lm()
    with as_they_stand(lm, verbatim=bool(item.messages)):
        return [len(lm._encode_pair(item.prompt, choice)[1]) for choice in item.choices or ()]  # noqa: SLF001 (its rule)


def _asked(item: Item) -> Row:
    """What a row holds whatever the answer."""
    return {
        "item_id": item.id,
        "filter": "none",
        "prompt_sha256": item.prompt_digest(),
        "slice": item.slice,
        "cluster": item.cluster,
        "target": item.target,
        "prompt": item.prompt,
    }
