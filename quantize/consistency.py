"""What must hold between the parts of a recipe: names that are unique, and names that name something.

Works on plain data that may be wrong in other ways too, so that one reading of a recipe tells all its problems. What
cannot be read is passed over: its own error is told by the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quantize.benchmark.config import GOODPUT, Benchmark, least_requests
from quantize.calibrators import CalibrationSize, CalibratorConfig, sized
from quantize.evidence import LOAD, NO_EVALS
from quantize.gates import Benefit, GateConfig, Latency, NonInferiority
from quantize.methods import MethodConfig
from quantize.metrics import MetricConfig
from quantize.problems import nearest
from quantize.scheme import PRESETS

__all__ = ["inconsistencies"]

Place = tuple[str | int, ...]

_METHODS: TypeAdapter[Any] = TypeAdapter(MethodConfig)
_CALIBRATORS: TypeAdapter[Any] = TypeAdapter(CalibratorConfig)
_SIZES: TypeAdapter[Any] = TypeAdapter(CalibrationSize)
_GATES: TypeAdapter[Any] = TypeAdapter(GateConfig)
_METRICS: TypeAdapter[Any] = TypeAdapter(MetricConfig)
_BENCHMARK: TypeAdapter[Any] = TypeAdapter(Benchmark)
#: The kinds of gates that may look at what is measured of the artifact itself, or under load.
_OF_ARTIFACTS = ("latency", "slo", "benefit")


def inconsistencies(data: Any) -> Iterator[tuple[Place, str]]:
    """Each problem between parts of a recipe, with the place of the part that should change."""
    if not isinstance(data, dict):
        return
    yield from _repeated(data, "variants", "variant")
    yield from _repeated(data, "evals", "eval")
    for index, name in enumerate(_names(data, "evals")):
        if name in NO_EVALS:
            yield ("evals", index, "name"), f"an eval may not be called {name!r}: measurements of artifacts are"
    yield from _variants(data)
    yield from _targets(data)
    yield from _gates(data)
    yield from _confirmation(data)
    yield from _draft(data)


def _draft(data: Any) -> Iterator[tuple[Place, str]]:
    """A draft that is no variant."""
    name, known = _get(_get(data, "benchmark"), "draft"), [name for name in _names(data, "variants") if name]
    if isinstance(name, str) and name not in known:
        yield ("benchmark", "draft"), f"{name!r} is not a variant of this recipe. {nearest(name, known)}"


def _confirmation(data: Any) -> Iterator[tuple[Place, str]]:
    name = _get(data, "confirmation")
    known = [known for known in _names(data, "evals") if known is not None]
    if not isinstance(name, str):
        return
    if name not in known:
        yield ("confirmation",), f"{name!r} is not an eval of this recipe. {nearest(name, known)}"
        return
    gated = [gate for gate in (_valid(_GATES, gate) for gate in _items(data, "gates")) if gate and not gate.advisory]
    on_it = [gate.metric.partition(".")[0] == name for gate in gated]
    if gated and not any(on_it):
        yield ("confirmation",), f"no gate looks at {name!r}, so it confirms nothing"
        return
    if gated and all(on_it):
        yield ("confirmation",), f"every gate looks at {name!r}: a confirmation needs another eval to pass first"
    yield from _unconfirmed(name, [gate for gate in gated if isinstance(gate, NonInferiority)])


def _unconfirmed(name: str, tests: list[NonInferiority]) -> Iterator[tuple[Place, str]]:
    """Tests that attempts would not count for, and that the confirmation does not repeat as strictly."""
    again = [gate for gate in tests if gate.metric.partition(".")[0] == name]
    for gate in tests:
        quantity = gate.metric.partition(".")[2]
        same = [found for found in again if found.metric.partition(".")[2] == quantity]
        if not any(found.margin <= gate.margin and found.alpha <= gate.alpha for found in same):
            text = (
                f"{gate.metric} is not confirmed: attempts count on {name!r} alone, so it needs a blocking test of "
                f"{name}.{quantity} with a margin of {gate.margin:g} and an alpha of {gate.alpha:g} at most"
            )
            yield ("confirmation",), text


def _repeated(data: Any, key: str, what: str) -> Iterator[tuple[Place, str]]:
    seen: set[str] = set()
    for index, name in enumerate(_names(data, key)):
        if name is not None and name in seen:
            yield (key, index, "name"), f"another {what} is called {name!r} already"
        seen.add(name or "")


def _variants(data: Any) -> Iterator[tuple[Place, str]]:
    reserved = {"baseline", "noise-floor", *_members(_get(_get(data, "registry"), "targets"))}
    for index, variant in enumerate(_items(data, "variants")):
        name = _get(variant, "name")
        if isinstance(name, str) and name in reserved:
            yield ("variants", index, "name"), f"a variant may not be called {name!r}: the word is taken"
        if isinstance(variant, dict) and _get(_get(variant, "method"), "kind") == "existing":
            yield from _existing(variant, ("variants", index))
            continue  # whatever its numbers need was done by whoever made it
        method = _valid(_METHODS, _get(variant, "method"))
        found = _without_tokens if _get(data, "calibration") is None else partial(_tokens, _get(data, "calibration"))
        yield from ((("variants", index, *place), text) for place, text in found(variant, method))


def _tokens(calibration: Any, variant: Any, method: Any) -> Iterator[tuple[Place, str]]:
    """What of a variant does not go with the recipe's calibration, by its place in it."""
    calibrator, size = _valid(_CALIBRATORS, calibration), _valid(_SIZES, _get(variant, "calibration"))
    if calibrator is None:
        return
    if size is not None:
        try:
            sized(calibrator, size)
        except ValidationError as error:
            yield ("calibration",), error.errors()[0]["msg"].removeprefix("Value error, ")
    if getattr(method, "even_rows", False) and not calibrator.even:
        mend = "set `packing: pack` in calibration"
        yield ("method",), f"{method.kind} joins all rows and cuts them anew, so they must be of one length: {mend}"


def _without_tokens(variant: Any, method: Any) -> Iterator[tuple[Place, str]]:
    """What of a variant needs calibration tokens, by its place in it, in a recipe that has none."""
    mend = "needs `calibration:` (`calibration: {kind: self}` needs no data)"
    if _get(variant, "calibration") is not None:
        yield ("calibration",), f"another size {mend}"
    groups = _members(_get(variant, "config_groups"))
    named: list[tuple[Place, Any]] = [((), variant)]
    named += [(("config_groups", name), group) for name, group in groups.items()]
    if method is not None and method.calibrated:
        yield ("method",), f"{method.kind} {mend}"
    elif _get(variant, "kv_cache") is not None:
        yield ("kv_cache",), f"the scales of keys and values are found on text, so kv_cache {mend}"
    else:
        for place, holder in named:
            scheme = PRESETS.get(str(_get(holder, "scheme")))
            if scheme is not None and scheme.calibrated:
                yield (*place, "scheme"), f"the scheme {scheme.name} stores ranges of activations, so it {mend}"


def _existing(variant: dict[str, Any], place: Place) -> Iterator[tuple[Place, str]]:
    """Settings of quantizing on a checkpoint that is quantized already."""
    for key in ("group_size", "ignore"):
        if key in variant and variant[key] not in (None, ["lm_head"], ("lm_head",)):
            yield (*place, key), f"{key} has no meaning for an existing checkpoint: it is judged as it is"


def _targets(data: Any) -> Iterator[tuple[Place, str]]:
    known = [name for name in _names(data, "variants") if name is not None]
    for target, rule in _members(_get(_get(data, "registry"), "targets")).items():
        sources = _get(rule, "from") or _get(rule, "from_")
        for index, name in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(name, str) and name not in known:
                place = ("registry", "targets", target, "from", index)
                yield place, f"{name!r} is not a variant of this recipe. {nearest(name, known)}"


def _gates(data: Any) -> Iterator[tuple[Place, str]]:
    evals = dict(zip(_names(data, "evals"), (_valid(_METRICS, item) for item in _items(data, "evals")), strict=True))
    known = [name for name in evals if name is not None]
    read = [_valid(_GATES, gate) for gate in _items(data, "gates")]
    for index, gate in enumerate(_items(data, "gates")):
        metric = _get(gate, "metric")
        if not isinstance(metric, str):
            continue
        name, _, rest = metric.partition(".")
        quantity = rest.partition("/")[0]
        place = ("gates", index, "metric")
        if name in NO_EVALS or _get(gate, "kind") in _OF_ARTIFACTS:
            yield from (((*place[:2], key), text) for key, text in _of_artifacts(data, gate, read[index]))
            continue
        if name not in known:
            yield place, f"{name!r} is not an eval of this recipe. {nearest(name, known)}"
            continue
        found = evals[name]
        quantities = [f"{name}.{q}" for q in found.quantities] if found is not None else []
        if quantities and f"{name}.{quantity}" not in quantities:
            yield place, f"the eval {name!r} measures no {quantity!r}. {nearest(f'{name}.{quantity}', quantities)}"
        elif isinstance(read[index], NonInferiority) and found is not None and quantity not in found.paired:
            yield place, f"non-inferiority is tested on scores of items, and {metric!r} has none. Take `kind: limit`"
    if read and all(gate is not None and gate.advisory for gate in read):
        yield ("gates",), "every gate is advisory: nothing could ever stop a bad variant"


def _of_artifacts(data: Any, gate: Any, read: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a gate on bytes or on times, by the gate's key."""
    metric, kind = str(_get(gate, "metric")), _get(gate, "kind")
    if kind not in _OF_ARTIFACTS:
        yield "kind", f"{metric} is no score of items: take `kind: latency`, `slo` or `benefit`"
        return
    if metric.partition(".")[0] != LOAD:
        if not (isinstance(read, Benefit) and metric == "weights.bytes"):
            yield "metric", f"{metric!r} is not measured under load: a benefit may be of weights.bytes, or of `load.…`"
        return
    target, targets = _get(gate, "target"), list(_members(_get(_get(data, "registry"), "targets")))
    if isinstance(target, str) and target not in targets:
        yield "target", f"{target!r} is not a target of this recipe's registry. {nearest(target, targets)}"
    benchmark = _valid(_BENCHMARK, _get(data, "benchmark"))
    if _get(data, "benchmark") is None:
        yield "metric", f"{metric} is measured by a `benchmark:`, and this recipe has none"
    elif benchmark is not None:
        yield from _under_load(metric, read, benchmark)


def _under_load(metric: str, read: Any, benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """What a gate asks of a benchmark that it does not measure."""
    quantity = metric.partition(".")[2].partition("/")[0]
    if quantity == GOODPUT and benchmark.slo is None:
        yield "metric", "goodput counts what keeps `benchmark.slo`, and the recipe has none"
    elif metric not in benchmark.metrics():
        yield "metric", f"the benchmark measures no {metric!r}. {nearest(metric, list(benchmark.metrics()))}"
    elif benchmark.alone and isinstance(read, Latency | Benefit):
        yield "kind", "with `benchmark.alone` there is no baseline to compare with: take `kind: slo`"
    else:
        load = next((load for load in benchmark.sent if load.name == metric.partition("/")[2]), None)
        least = least_requests(quantity)
        if load is not None and load.requests < least:
            few = f"{quantity} needs {least} requests in every block; the load {load.name!r} has {load.requests}"
            yield "metric", few


def _valid(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None


def _get(value: Any, key: str) -> Any:
    """A member of a mapping or of a record, or None."""
    return value.get(key) if isinstance(value, dict) else getattr(value, key, None)


def _members(value: Any) -> dict[str, Any]:
    return {key: item for key, item in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}


def _items(data: Any, key: str) -> list[Any]:
    found = _get(data, key)
    return list(found) if isinstance(found, list | tuple) else []


def _names(data: Any, key: str) -> list[str | None]:
    names = [_get(item, "name") for item in _items(data, key)]
    return [name if isinstance(name, str) else None for name in names]
