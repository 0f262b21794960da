"""Telling others what was decided. It comes after the lock was given back, and its failure undoes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quantize.errors import Interrupted, QuantizeError
from quantize.notices import NoticeConfig, What
from quantize.promotion import now
from quantize.record import Record
from quantize.run import Runner, RunRecord, VariantRecord
from quantize.verdict import Action

__all__ = ["Notice", "Told", "announce", "tell_release"]

_WHAT: dict[Action, What] = {"promote": "promoted", "hold": "held", "reject": "rejected", "stale": "stale"}


class Told(Record):
    """One decision as it is told. `approve` is the command that promotes a version that waits; "" for any other."""

    what: What
    variant: str
    version: str | None
    outcome: str
    sentence: str
    previous_version: str | None
    aliases: dict[str, str]
    verdict: str
    mlflow_run: str
    review: str = ""
    approve: str = ""


class Notice(Record):
    """The document that is sent: what was decided of a registered model, in which run, by whom."""

    version: int = 1
    model: str
    recipe: str
    run: str
    actor: str
    when: str
    decisions: list[Told]


def announce(notifiers: Sequence[NoticeConfig], notice: Notice, note: Callable[[str], None]) -> list[str]:
    """Tell everybody who asked for one of the decisions; returns a sentence for each that could not be told."""
    failed = []
    for notifier in notifiers:
        asked = [told for told in notice.decisions if told.what in notifier.on]
        if not asked:
            continue
        document = notice.model_copy(update={"decisions": asked})
        try:
            notifier.send(document.model_dump_json(), _facts(document))
        except Interrupted:
            raise
        except (QuantizeError, OSError) as error:
            why = error.what if isinstance(error, QuantizeError) else error.strerror
            failed.append(f"The {notifier.shown} was not told: {why}")
            note(failed[-1])
        else:
            note(f"the {notifier.shown} was told")
    return failed


def tell_release(runner: Runner, record: RunRecord, model: str) -> RunRecord:
    """Tell what a release has decided, as its recipe asks; who could not be told is noted in the record."""
    decisions = [_told(variant) for variant in record.variants if variant.decision is not None]
    notice = Notice(
        model=model, recipe=record.recipe, run=record.run, actor=record.actor, when=now(), decisions=decisions
    )
    failed = announce(runner.plan.recipe.release.notify, notice, runner.watcher.note)
    if failed:
        record = record.model_copy(update={"remarks": [*record.remarks, *failed]})
        runner.write(record)
    return record


def _told(variant: VariantRecord) -> Told:
    decision = variant.decision
    if decision is None:
        raise ValueError(f"nothing was decided of {variant.name}")
    return Told(
        what="waiting" if decision.approve else _WHAT[decision.action],
        variant=decision.variant,
        version=decision.model_version,
        outcome=decision.outcome,
        sentence=decision.sentence,
        previous_version=decision.previous_version,
        aliases=decision.aliases,
        verdict=decision.verdict_digest,
        mlflow_run=decision.run,
        review=variant.checklist.told() if variant.checklist is not None else "",
        approve=decision.approve,
    )


def _facts(notice: Notice) -> dict[str, str]:
    """The main facts, as a command finds them in its environment."""
    return {
        "QUANTIZE_NOTICE_MODEL": notice.model,
        "QUANTIZE_NOTICE_RECIPE": notice.recipe,
        "QUANTIZE_NOTICE_RUN": notice.run,
        "QUANTIZE_NOTICE_WHAT": ",".join(sorted({told.what for told in notice.decisions})),
        "QUANTIZE_NOTICE_VARIANTS": ",".join(told.variant for told in notice.decisions),
    }
