"""What a proof says, and what is said of a checkpoint that could not be asked."""

from __future__ import annotations

from typing import Literal

from quantize.errors import QuantizeError
from quantize.record import Record

__all__ = ["Numbers", "Proof", "not_loaded", "stopped"]

Numbers = dict[str, float | int | str | None]

#: A library's own message may run over pages; a verdict's sentence may not.
_LONGEST = 600


class Proof(Record):
    """What came of it: one sentence for each thing that differs, or one that says how close the answers were.

    `tail` are the last lines of the engine's log where it failed, else empty.
    """

    version: Literal[1] = 1
    outcome: Literal["pass", "fail"]
    sentences: tuple[str, ...]
    numbers: Numbers
    tail: str = ""


def not_loaded(reason: QuantizeError | str, damage: list[str] | None = None) -> Proof:
    """The proof of a checkpoint that its engine could not open.

    The first line of `reason`, which ends with a hint where the cause is known, becomes the sentence, the rest the
    tail. Where its files are damaged, `damage` says what of them, and that is the sentence.
    """
    sentence, tail = _split(reason)
    if damage:
        return Proof(
            outcome="fail", sentences=tuple(damage), numbers={}, tail="\n".join(filter(None, (sentence, tail)))
        )
    return Proof(outcome="fail", sentences=(f"the checkpoint does not load: {sentence}",), numbers={}, tail=tail)


def stopped(reason: QuantizeError | str, numbers: Numbers) -> Proof:
    """The proof of a checkpoint whose engine loaded it and failed while it was asked."""
    sentence, tail = _split(reason)
    return Proof(
        outcome="fail", sentences=(f"the engine failed while it was asked: {sentence}",), numbers=numbers, tail=tail
    )


def _split(reason: QuantizeError | str) -> tuple[str, str]:
    """One sentence, and what follows it. The place is left out: it is a path of this machine."""
    if isinstance(reason, QuantizeError):
        first, _, rest = reason.what.partition("\n")
        mend, _, more = (reason.fix or "").partition("\n")
        first, rest = f"{first} {mend}".strip(), "\n".join(filter(None, (rest, more)))
    else:
        first, _, rest = reason.partition("\n")
    if len(first) > _LONGEST:
        return f"{first[:_LONGEST]}…", f"{first}\n{rest}".strip()
    return first, rest.strip()
