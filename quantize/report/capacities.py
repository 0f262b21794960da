"""What `quantize capacity` shows: each arm of a run beside the others, and what it takes to serve a rate with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from quantize.capacity import Capacity, Demand, capacity
from quantize.report.capacity_arms import Arm
from quantize.report.grid import Column, Grid, print_grid
from quantize.report.numbers import seconds, size
from quantize.report.terminal import console_on, say

__all__ = ["Sizing", "capacity_document", "print_capacity", "size_arms"]

_ASSUMED = (
    "Replicas are taken to be independent and even, requests to be those of the benchmark; the utilisation leaves room "
    "for bursts. Cost of tokens: those that the wanted rate makes, idle capacity included."
)
_NO_PRICE = "no price is known: --price PER_DEVICE_HOUR adds the cost, and so does benchmark.price in the recipe."


@dataclass(frozen=True, slots=True)
class Sizing:
    """A demand, where its limits come from, and what every arm takes to meet it."""

    run: str
    demand: Demand
    source: str
    arms: tuple[tuple[Arm, Capacity], ...]


def size_arms(run: str, arms: Sequence[Arm], demand: Demand, source: str) -> Sizing:
    """Work out every arm. `source` says where the demand's limits come from."""
    return Sizing(run, demand, source, tuple((arm, capacity(arm.points, arm.devices, demand)) for arm in arms))


def capacity_document(sizing: Sizing) -> dict[str, Any]:
    """The sizing as plain data."""
    demand = sizing.demand
    return {
        "run": sizing.run,
        "requests_per_second": demand.requests_per_second,
        "utilisation": demand.utilisation,
        "slo": dict(demand.limits),
        "slo_from": sizing.source,
        "price": asdict(demand.price) if demand.price is not None else None,
        "arms": [
            {
                "name": arm.name,
                "engine": arm.engine,
                "devices_per_replica": arm.devices,
                "memory_peak": arm.memory,
                "concurrency": arm.concurrency,
                "production": arm.production,
                "doubts": list(arm.doubts),
                **_plain(found),
            }
            for arm, found in sizing.arms
        ],
    }


def _plain(found: Capacity) -> dict[str, Any]:
    return {"keeps": found.point is not None, **asdict(found)}


def print_capacity(sizing: Sizing, file: TextIO) -> None:
    """Draw the sizing on `file`: one row an arm, then why an arm is of no use, and what was assumed."""
    console, demand = console_on(file), sizing.demand
    limits = " and ".join(f"{name} of at most {seconds(limit)}" for name, limit in demand.limits.items())
    wanted = f"{demand.requests_per_second:g} requests/s" + (f" with {limits} ({sizing.source})" if limits else "")
    say(console, "", f"{sizing.run}: {wanted}, each replica at {100 * demand.utilisation:g} % of what it can do")
    console.print()
    print_grid(console, _grid(sizing))
    for sentence in _sentences(sizing):
        say(console, "", sentence)
    say(console, "", _ASSUMED, style="dim")


def _grid(sizing: Sizing) -> Grid:
    price = sizing.demand.price
    columns = (
        Column("arm", "arm", text=True),
        Column("requests\nunder way", "limit"),
        Column("requests/s\nat most", "limit"),
        Column("requests/s\na replica", "replica"),
        Column("replicas", "replica"),
        Column("devices", "replica"),
        Column("output tokens/s\na device", "tokens"),
        Column(f"{price.currency}\nan hour" if price is not None else "an hour", "cost"),
        Column(f"{price.currency} a million\noutput tokens" if price is not None else "a million", "cost"),
        Column("peak\nmemory", "memory"),
        Column("requests\nthat fit", "memory"),
    )
    return Grid(columns, tuple(_row(arm, found) for arm, found in sizing.arms)).filled()


def _row(arm: Arm, found: Capacity) -> tuple[str, ...]:
    memory = size(arm.memory) if arm.memory is not None else ""
    fit = f"{arm.concurrency:,.0f}" if arm.concurrency is not None else ""
    if found.point is None:
        return (arm.name, "–", "–", "–", "–", "–", "–", "", "", memory, fit)
    devices = f"{found.devices}" if arm.devices == 1 else f"{found.devices} ({arm.devices} each)"
    return (
        arm.name,
        str(found.point.streams),
        f"{found.point.requests_per_second:.3g}",
        f"{found.requests_per_second:.3g}",
        f"{found.replicas:,}",
        devices,
        f"{found.output_tokens_per_second:,.1f}",
        f"{found.cost_per_hour:,.2f}" if found.cost_per_hour is not None else "",
        f"{found.cost_per_million_output_tokens:,.3f}" if found.cost_per_million_output_tokens is not None else "",
        memory,
        fit,
    )


def _sentences(sizing: Sizing) -> list[str]:
    told = [f"{arm.name}: {found.reason}." for arm, found in sizing.arms if found.point is None]
    if any("does not tell" in found.reason for _, found in sizing.arms):
        told.append("more requests at each point tell more: benchmark.curve_requests (20 for a 95th percentile).")
    rising = [arm.name for arm, found in sizing.arms if found.still_rising]
    if rising:
        told.append(
            f"{', '.join(rising)}: the last point of the curve is the one used; with more requests under way than the "
            "recipe's benchmark.curve it may do more."
        )
    for arm, _ in sizing.arms:
        if arm.doubts:
            told.append(f"{arm.name}: while its curve was measured, {arm.doubts[0].rstrip('.')}: it may do more.")
        if not arm.production:
            told.append(
                f"{arm.name}: {arm.engine}'s server is no production engine; this compares, and promises nothing."
            )
    return [*told, *([_NO_PRICE] if sizing.demand.price is None else [])]
