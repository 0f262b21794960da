"""The verb about what a measured speed means: how many replicas and devices a rate of requests takes."""

from __future__ import annotations

import difflib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantize.cli_evidence import run_directory
from quantize.cli_options import as_document, json_option, store_option
from quantize.errors import UsageError

if TYPE_CHECKING:
    from quantize.capacity import Demand
    from quantize.report.capacity_arms import Measured

__all__ = ["capacity"]

#: More than this is a typing error, and not a service.
_MOST = 1e9


@click.command()
@click.argument("run_name", metavar="RUN", default="latest")
@click.option("--rps", type=float, required=True, help="Requests a second to serve.")
@click.option(
    "--slo",
    "limits",
    multiple=True,
    metavar="QUANTITY=SECONDS",
    help="As ttft_p95=0.5, tpot_p50=0.05, e2e_p95=3; may be repeated. Default: the recipe's, else none.",
)
@click.option("--utilisation", type=float, default=0.7, show_default=True, help="Share of what a replica can do.")
@click.option("--price", type=float, help="Of one device for an hour. Default: the recipe's.")
@click.option("--currency", help="What the price is in. Default: the recipe's, else USD.")
@store_option
@json_option
def capacity(
    run_name: str,
    rps: float,
    limits: tuple[str, ...],
    utilisation: float,
    price: float | None,
    currency: str | None,
    store_path: Path,
    as_json: bool,
) -> None:
    """Say how many replicas and devices of each arm of RUN serve a rate of requests, and what they cost."""
    from quantize.report import capacity_document, print_capacity, read_arms, size_arms
    from quantize.run import read_record
    from quantize.store import Store

    _within("--rps", rps, _MOST)
    _within("--utilisation", utilisation, 1.0)
    if price is not None:
        _within("--price", price, _MOST)
    asked = _limits(limits)
    directory = run_directory(run_name, store_path)
    record = read_record(directory)
    measured = read_arms(record, directory, Store(store_path))
    own = {} if asked else measured.limits()
    source = "--slo" if asked else "the recipe's SLO" if own else "no SLO: the highest rate measured"
    demand = _demand(rps, asked or own, utilisation, price, currency, measured)
    sizing = size_arms(record.run, measured.arms, demand, source)
    if as_json:
        as_document(capacity_document(sizing))
    else:
        print_capacity(sizing, sys.stdout)


def _demand(
    rps: float,
    limits: dict[str, float],
    utilisation: float,
    price: float | None,
    currency: str | None,
    measured: Measured,
) -> Demand:
    """The demand, with the recipe's price where no other is given."""
    from quantize.capacity import Demand, Rate

    told = measured.price()
    if currency is not None and price is None and told is not None and currency != told.currency:
        raise UsageError(
            f"the recipe's price is in {told.currency}, and is not converted.",
            where="--currency",
            fix=f"Give the price in {currency} too: --price PER_DEVICE_HOUR.",
        )
    if price is not None:
        told = Rate(price, currency or (told.currency if told is not None else "USD"))
    return Demand(requests_per_second=rps, limits=limits, utilisation=utilisation, price=told)


def _within(option: str, value: float, most: float) -> None:
    """Refuse what is not above 0 and at most `most`; NaN too."""
    if not 0 < value <= most:
        raise UsageError(f"{value:g} is not above 0 and at most {most:g}.", where=option, fix="Give a number that is.")


def _limits(told: tuple[str, ...]) -> dict[str, float]:
    """`QUANTITY=SECONDS`, each once."""
    from quantize.report import LIMITED

    found: dict[str, float] = {}
    for text in told:
        quantity, _, value = text.partition("=")
        if quantity not in LIMITED:
            near = difflib.get_close_matches(quantity, LIMITED, 1)
            mean = f" Did you mean {near[0]!r}?" if near else ""
            fix = "A time (ttft, tpot, itl, e2e) with its percentile (p50, p90, p95, p99): ttft_p95=0.5."
            raise UsageError(f"{quantity!r} is no quantity to limit.{mean}", where="--slo", fix=fix)
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise UsageError(
                f"{text!r} has no number of seconds above 0.", where="--slo", fix=f"As in --slo {quantity}=0.5."
            )
        if quantity in found:
            raise UsageError(f"{quantity} is limited twice.", where="--slo", fix="Keep the one that is meant.")
        found[quantity] = seconds
    return found
