"""What a page shows beyond a run's record and its summary: flips, requests, positions, manifests and the recipe's text.

Everything is read from the store and the run's folder. What is missing or damaged is left out and named in `missing`,
because a report must come out even then; to tell what is wrong with it is the business of `verify`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from quantize.arms import Arm, Places, pairs_of
from quantize.artifact import Manifest
from quantize.benchmark.reading import Benchmarked
from quantize.benchmark.reading import read as read_benchmark
from quantize.comparing import Flip, flips_between
from quantize.errors import DataError, QuantizeError, RegistryError
from quantize.report.benchmarks import Benchmarks, read_benchmarks
from quantize.report.summary import Summary, summarise
from quantize.report.timing import item_seconds
from quantize.run import RESOLVED, RunRecord
from quantize.run_record import StageTime
from quantize.store import Store, read_manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Positions", "Reached", "Sources", "read_sources"]

_DIVERGENCES = ("kld", "kld_at_least")


@dataclass(frozen=True, slots=True)
class Reached:
    """A stage that the run came to. `again`: it was done before. `manifest` is None where the artifact is gone.

    `took` is when and where this run did it; None where it did not, or an earlier program ran.
    """

    label: str
    key: str
    again: bool
    manifest: Manifest | None
    took: StageTime | None = None


@dataclass(frozen=True, slots=True)
class Positions:
    """The divergence of one variant on one text, by scored position: `nats`, and the tokens of context before each.

    `bound`: the engine gives the likeliest tokens only, so that each is at least so large.
    """

    variant: str
    eval: str
    context: NDArray[np.int64]
    nats: NDArray[np.float64]
    bound: bool


@dataclass(frozen=True, slots=True)
class Sources:
    """A run as a page is made from it.

    `flips` by variant and eval, worst first. `requests` are the benchmarks' rows by variant. `recipe` is the text as
    written, `resolved` as it was run. `missing` are sentences.
    """

    record: RunRecord
    summary: Summary
    benchmarks: Benchmarks
    flips: Mapping[tuple[str, str], tuple[Flip, ...]]
    requests: Mapping[str, Benchmarked]
    positions: tuple[Positions, ...]
    stages: tuple[Reached, ...]
    recipe: str
    resolved: Mapping[str, Any]
    missing: tuple[str, ...]


def read_sources(record: RunRecord, directory: Path, store: Store) -> Sources:
    """All that the page of the run in `directory` is made from. Raises nothing for what is missing."""
    missing: list[str] = []
    benchmarks = read_benchmarks(record, directory, store)
    resolved = _resolved(directory)
    return Sources(
        record=record,
        summary=summarise(record, item_seconds(record, store), benchmarks),
        benchmarks=benchmarks,
        flips=_flips(record, store, missing),
        requests=_requests(benchmarks, missing),
        positions=tuple(_positions(record, store, resolved, missing)),
        stages=tuple(_stages(record, store)),
        recipe=_text(directory / "recipe.yaml", missing),
        resolved=resolved,
        missing=tuple(dict.fromkeys(missing)),
    )


def _flips(record: RunRecord, store: Store, missing: list[str]) -> dict[tuple[str, str], tuple[Flip, ...]]:
    places = Places(store=store, run=lambda _name: record, registry=_no_registry, scratch=store.root)
    found = {}
    for variant in record.variants:
        if not any(label.startswith("evaluate.") for label in variant.stages):
            continue
        try:
            pairs = pairs_of(f"{record.run}:baseline", f"{record.run}:{variant.name}", places)
            for name, flips in _each(pairs):
                found[variant.name, name] = flips
        except (QuantizeError, KeyError) as error:
            missing.append(f"The answers of {variant.name} are not compared: {error}")
    return found


def _each(pairs: list[tuple[Arm, Arm]]) -> Iterator[tuple[str, tuple[Flip, ...]]]:
    for one, other in pairs:
        yield from flips_between(one, other).items()


def _no_registry(name: str) -> NoReturn:
    raise RegistryError("the arms of a run are not looked for in a registry.", where=name)


def _requests(benchmarks: Benchmarks, missing: list[str]) -> dict[str, Benchmarked]:
    found = {}
    for name, artifact in benchmarks.variants.items():
        try:
            found[name] = read_benchmark(artifact.directory)
        except QuantizeError as error:
            missing.append(f"The requests sent to {name} are not shown: {error}")
    return found


def _positions(record: RunRecord, store: Store, resolved: Mapping[str, Any], missing: list[str]) -> Iterator[Positions]:
    windows = {told["name"]: told.get("window") for told in resolved.get("evals", ()) if told.get("kind") == "text"}
    for variant in record.variants:
        for name, window in windows.items():
            key = variant.stages.get(f"evaluate.{name}")
            if key is None:
                continue
            try:
                found = _divergence(store.path("evaluate", key) / "rows.parquet", window)
            except QuantizeError as error:
                missing.append(f"The divergence of {variant.name} on {name} is not shown: {error}")
                continue
            if found is not None:
                context, nats, column = found
                yield Positions(variant.name, name, context, nats, bound=column == "kld_at_least")


def _divergence(path: Path, window: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64], str] | None:
    """Of each position the tokens of context, its divergence, and which column that is from; None without any.

    A window of w tokens gives w - 1 scored positions, the first of which has one token of context.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["document", "position", *_DIVERGENCES])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the rows cannot be read: {error}", where=str(path)) from error
    column = next((name for name in _DIVERGENCES if len(table) and not table[name].null_count), None)
    if column is None:
        return None
    document, position = table["document"].to_numpy(), table["position"].to_numpy()
    _, first, inverse = np.unique(document, return_index=True, return_inverse=True)
    place = position - position[first][inverse]
    context = place % (window - 1) + 1 if window and window > 1 else place + 1
    return context.astype(np.int64), table[column].to_numpy(), column


def _stages(record: RunRecord, store: Store) -> Iterator[Reached]:
    """Every stage once, in the order of the run: the baseline's, then each variant's."""
    named = list(record.baseline_stages.items())
    named += [(f"{label} of {v.name}", key) for v in record.variants for label, key in v.stages.items()]
    took = {time.key: time for time in record.times}
    seen: set[str] = set()
    for label, key in named:
        if key in seen:
            continue
        seen.add(key)
        path = store.locate(key)
        try:
            manifest = read_manifest(path) if path is not None else None
        except QuantizeError:
            manifest = None
        known = f"{manifest.kind} {manifest.name}".strip() if manifest is not None else label
        yield Reached(known, key, again=known in record.reused, manifest=manifest, took=took.get(key))


def _resolved(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / RESOLVED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path, missing: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        missing.append(f"{path.name} is not in the run's folder.")
        return ""
