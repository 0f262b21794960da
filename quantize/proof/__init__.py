"""The proof that a checkpoint, in the engine that will serve it, answers like the model that was in memory.

`record` is the witness: it runs while the quantized model is still in memory (or, where a program writes files only, on
a reference implementation of the quantized weights) and writes down what it answers to fixed prompts. `prove` runs in a
clean process on the checkpoint as its engine loaded it, asks again, and looks at what a user would trip over first:
distributions, token ids, the chat template, and when generation stops. A failure ends that variant, and no other,
before any eval time is spent on it.
"""

from __future__ import annotations

from pathlib import Path

from quantize.errors import EngineLost, Interrupted, QuantizeError
from quantize.handed import Session
from quantize.proof.damage import damage
from quantize.proof.limits import LIMITS
from quantize.proof.prompts import PROMPTS
from quantize.proof.reference import refer
from quantize.proof.result import Numbers, Proof, not_loaded
from quantize.proof.witness import record

__all__ = ["LIMITS", "PROMPTS", "Proof", "damage", "not_loaded", "prove", "record", "refer"]


_UNCOMPARED = (
    "the checkpoint loads, its files are whole and its tokens are the baseline's; its answers were compared with "
    "nothing, because there is no witness: {}"
)


def prove(checkpoint: Path, witness: Path, baseline: Path, session: Session, engine: str = "transformers") -> Proof:
    """Compare `checkpoint`, as loaded in `session`, with the witness in `witness` and with the baseline's directory.

    Where no witness could be made, the proof says so: only files, tokens and that it answers at all were looked at.

    `engine` is the kind of engine that the session is of; limits depend on it. The same bytes give the same proof: how
    long it took and what it cost stands in the stage's manifest instead.
    """
    from quantize.proof import answers, result, texts, weights
    from quantize.proof.witness import nothing_recorded, read

    broken = damage(checkpoint)
    if broken:
        return Proof(outcome="fail", sentences=tuple(broken), numbers={})
    unknown = nothing_recorded(witness)
    recorded = read(witness) if unknown is None else None
    numbers: Numbers = {"engine": engine}
    broken += texts.text_differences(checkpoint, baseline)
    if recorded is not None:
        numbers["dtype"] = recorded.dtype
        broken += weights.weight_differences(checkpoint, recorded, numbers)
    try:
        broken += texts.engine_differences(session, baseline, numbers)
        if recorded is not None:
            broken += answers.answer_differences(session, recorded, engine, numbers)
        else:
            broken += answers.finite_answers(session, baseline, numbers)
    except (Interrupted, EngineLost):
        raise  # neither proves anything
    except QuantizeError as error:
        failed = result.stopped(error, numbers)
        return failed.model_copy(update={"sentences": (*broken, *failed.sentences)})
    if broken:
        return Proof(outcome="fail", sentences=tuple(broken), numbers=numbers)
    if unknown is not None:
        return Proof(outcome="pass", sentences=(_UNCOMPARED.format(unknown),), numbers=numbers)
    return Proof(outcome="pass", sentences=(answers.closeness(numbers),), numbers=numbers)
