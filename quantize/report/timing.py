"""What an item cost, from the receipts of the baseline's own looks: what early stopping saved is estimated by it."""

from __future__ import annotations

from quantize.errors import StoreError
from quantize.evidence import Progressed
from quantize.parts import LOOK
from quantize.run import RunRecord
from quantize.store import Store

__all__ = ["item_seconds"]

_STAGE = "evaluate."


def item_seconds(record: RunRecord, store: Store) -> dict[str, float]:
    """Seconds for an item by eval, where the store still holds the baseline's looks.

    The first look is left out where there are others: the model is loaded in it.
    """
    try:
        return _item_seconds(record, store)
    except StoreError:
        return {}  # a damaged artifact is for `verify` to tell


def _item_seconds(record: RunRecord, store: Store) -> dict[str, float]:
    found = {}
    for label, key in record.baseline_stages.items():
        manifest = store.find("evaluate", key) if label.startswith(_STAGE) else None
        if manifest is None or not manifest.summary.get("progressed"):
            continue
        progressed = Progressed(**manifest.summary["progressed"])
        looks = [store.find(LOOK, part) for part in manifest.summary["parts"]]
        times = [look.provenance.seconds for look in looks if look is not None]
        if len(times) == progressed.looks and times:
            counted = times[1:] or times
            found[label.removeprefix(_STAGE)] = sum(counted) * progressed.looks / len(counted) / progressed.items
    return found
