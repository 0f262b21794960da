"""What gates say of quantities under load: their names in words, their units, the numbers of a sentence.

A name is `load.<quantity>/<load>`, or `load.<quantity>` where it is the arm's own, whatever its load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantize.evidence import LOAD, Comparison

__all__ = [
    "FAILURES",
    "HIGHER",
    "LEAST_BLOCKS",
    "OF_THE_ARM",
    "TIMES",
    "Numbers",
    "blocks_said",
    "both_arms",
    "failures_at",
    "find",
    "higher_is_better",
    "known",
    "named",
    "numbers_apart",
    "overtaxed",
    "points",
    "saturation",
    "split",
    "too_few",
    "value_of",
    "values_of",
    "without_answers",
]

Numbers = dict[str, float | int | str | None]

#: With fewer valid blocks nothing passes and nothing fails.
LEAST_BLOCKS = 6

#: Of requests, in seconds.
TIMES = tuple(f"{time}_p{percentile}" for time in ("ttft", "tpot", "itl", "e2e") for percentile in (50, 90, 95, 99))
FAILURES = "failures"
#: Of a load, better when higher.
HIGHER = ("output_tokens_per_second", "requests_per_second", "goodput")
#: Of an arm, whatever its load; of these only `concurrency` is better when higher.
OF_THE_ARM = ("memory_peak", "memory_kv", "concurrency")

_WORDS = {
    "output_tokens_per_second": "throughput in output tokens",
    "requests_per_second": "throughput in requests",
    "goodput": "goodput",
    FAILURES: "the share of failed requests",
    "memory_peak": "peak memory under load",
    "memory_kv": "memory for keys and values",
    "concurrency": "the number of longest requests that fit",
}
_OTHER = {"baseline": "variant", "variant": "baseline"}
_RATES = {"output_tokens_per_second": "tokens/s", "requests_per_second": "requests/s", "goodput": "requests/s"}


def split(metric: str) -> tuple[str, str]:
    """Quantity and load of a metric; the load is empty for what is the arm's own. ValueError for any other name.

    Its message names what may be asked for, as a recipe's reader sees it.
    """
    name, _, rest = metric.partition(".")
    quantity, slash, load = rest.partition("/")
    of_load = (*TIMES, *HIGHER, FAILURES)
    if name != LOAD or quantity not in (*of_load, *OF_THE_ARM):
        raise ValueError(
            f"{metric!r} is not measured under load: write `load.<quantity>/<load>` with one of {', '.join(of_load)}, "
            f"or `load.<quantity>` with one of {', '.join(OF_THE_ARM)}"
        )
    if quantity in of_load and not load:
        raise ValueError(
            f"{metric!r} names no load: write `{metric}/<load>` with the name of one of the benchmark's loads"
        )
    if quantity in OF_THE_ARM and slash:
        raise ValueError(f"{quantity} is the arm's own, whatever its load: write `{LOAD}.{quantity}`")
    return quantity, load


def higher_is_better(quantity: str) -> bool:
    """Of rates, and of the requests that fit; of everything else less is better."""
    return quantity in (*HIGHER, "concurrency")


def named(metric: str) -> str:
    """The quantity at its load, as a sentence begins with it: `TPOT p50 at load single`."""
    quantity, load = split(metric)
    time, _, percentile = quantity.partition("_")
    words = f"{time.upper()} {percentile}" if quantity in TIMES else _WORDS[quantity]
    said = words[0].upper() + words[1:]
    return f"{said} at load {load}" if load else said


def value_of(metric: str, value: float) -> str:
    """A value in its unit; times below a second in milliseconds."""
    quantity, _ = split(metric)
    if quantity in TIMES:
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    if quantity == FAILURES:
        return f"{100 * value:.2f} %"
    if quantity in _RATES:
        return f"{_plain(value)} {_RATES[quantity]}"
    return f"{value / 1e6:,.1f} MB" if quantity.startswith("memory_") else _plain(value)


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.2f}"


def numbers_apart(values: Sequence[float], limit: float, *, least: int = 2) -> list[str]:
    """Numbers with as many decimals, `least` and up to two more, as tell them from `limit`, which comes last."""
    every = [*values, limit]
    decimals = least
    while decimals < least + 2 and any(
        v != every[-1] and round(v, decimals) == round(every[-1], decimals) for v in every[:-1]
    ):
        decimals += 1
    return [f"{value:.{decimals}f}" for value in every]


def find(metric: str, comparisons: Iterable[Comparison]) -> Comparison | None:
    """The comparison of that metric."""
    return next((c for c in comparisons if c.metric == metric), None)


def failures_at(metric: str) -> str:
    """The name of the share of requests that failed at the same load."""
    return f"{LOAD}.{FAILURES}/{split(metric)[1]}"


def known(names: Iterable[str]) -> str:
    """What was measured instead, for the sentence on what was not."""
    return ", ".join(sorted(name for name in names if name.partition(".")[0] == LOAD)) or "nothing under load"


def values_of(comparison: Comparison) -> list[float]:
    """By block: logarithms of ratios, or differences of the shares that failed. Empty where some block has none."""
    values: list[float] = comparison.extra.get("logs") or comparison.extra.get("differences") or []
    return values


def both_arms(comparison: Comparison) -> str:
    """Both arms' own values: `24.1 ms beside 21.5 ms`."""
    metric = comparison.metric
    return f"{value_of(metric, comparison.variant)} beside {value_of(metric, comparison.baseline)}"


def too_few(comparison: Comparison, name: str) -> str:
    """Why fewer than `LEAST_BLOCKS` blocks can be judged, and what mends it."""
    if not values_of(comparison) and _valid(comparison):
        return (
            f"{name} is not known in each of {blocks_said(_valid(comparison), comparison)}: in some an arm had no "
            f"answer, or none that counts, and the others alone would look too good.{saturation(comparison)}"
        )
    return (
        f"{name} has {blocks_said(len(values_of(comparison)), comparison)}, and {LEAST_BLOCKS} are the least that can "
        f"show anything: use a quieter machine, or raise `benchmark.reruns`.{saturation(comparison)}"
    )


def without_answers(metric: str, comparisons: Sequence[Comparison]) -> str:
    """Why a quantity that nobody could tell is not known: requests failed. Empty where none did."""
    quantity, load = split(metric)
    failures = find(failures_at(metric), comparisons) if load and quantity != FAILURES else None
    failed = int(failures.extra["failed"]["variant"]) if failures is not None else 0
    if failures is None or not failed:
        return ""
    return f"{named(metric)} is not known: {failed} of the variant's {failures.extra['requests']} requests failed."


def blocks_said(count: int, comparison: Comparison) -> str:
    """How many blocks count, how many do not: `4 valid blocks (3 were invalid)`."""
    invalid = int(comparison.extra.get("invalid") or 0)
    said = f"{count} valid block{'' if count == 1 else 's'}"
    return f"{said} ({invalid} {'was' if invalid == 1 else 'were'} invalid)" if invalid else said


def _valid(comparison: Comparison) -> int:
    return int(comparison.extra.get("blocks") or 0) - int(comparison.extra.get("invalid") or 0)


def saturation(comparison: Comparison) -> str:
    """Who could not keep up with the load; empty where both did."""
    arms = comparison.extra.get("saturated") or {}
    slow = [arm for arm in ("baseline", "variant") if arms.get(arm)]
    if not slow:
        return ""
    return f" {'Neither arm' if len(slow) == 2 else f'Only the {_OTHER[slow[0]]}'} could keep up with this load."


def overtaxed(comparison: Comparison) -> bool:
    """Whether the variant alone could not keep up with the load."""
    arms = comparison.extra.get("saturated") or {}
    return bool(arms.get("variant")) and not arms.get("baseline")


def _plain(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"
