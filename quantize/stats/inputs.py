"""What the tests refuse: counts that no experiment gives, and rates that mean nothing."""

from __future__ import annotations

from quantize.errors import DataError, QuantizeError


def check_margin(margin: float) -> None:
    """A share strictly between 0 and 1, else `QuantizeError`."""
    if not 0 < margin < 1:
        raise QuantizeError(
            f"the margin is {margin!r}, not a share between 0 and 1",
            fix="Write the accepted loss as a positive share: 0.02 for 2 points.",
        )


def check_alpha(alpha: float) -> None:
    """Strictly between 0 and one half (where the two limits would cross), else `QuantizeError`."""
    if not 0 < alpha < 0.5:
        raise QuantizeError(
            f"the error rate alpha is {alpha!r}, not between 0 and 0.5",
            fix="0.05 is usual: one false pass in twenty at the margin.",
        )


def check_counts(losses: int, gains: int, n: int) -> None:
    """Whole numbers, none negative, at least one item, and no more flips than items, else `DataError`."""
    for name, count in (("losses", losses), ("gains", gains), ("n", n)):
        if not float(count).is_integer() or count < 0:
            raise DataError(f"{name} is {count!r}, not a count", fix="Count items: a whole number, 0 or more.")
    if n < 1:
        raise DataError("there are no items to judge", fix="Give at least one item that both arms answered.")
    if losses + gains > n:
        raise DataError(
            f"{losses} losses and {gains} gains are more than the {n} items",
            fix="Count each item once: as a loss, a gain or no flip.",
        )


def check_early(early: float) -> None:
    """The share of alpha set aside for an early pass: 0 (no early stopping) or more, below 1, else `QuantizeError`."""
    if not 0 <= early < 1:
        raise QuantizeError(
            f"the share of alpha for an early pass is {early!r}, not from 0 to below 1",
            fix="0.2 is usual; 0 means that nothing stops early.",
        )


def check_choices(choices: int) -> None:
    """How many variants a target chooses among: a whole number, 1 or more, else `QuantizeError`."""
    if isinstance(choices, bool) or not isinstance(choices, int) or choices < 1:
        raise QuantizeError(
            f"the number of variants to choose among is {choices!r}", fix="Count them: 1 where nothing is chosen."
        )
