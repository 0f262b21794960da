"""The datasets of a run as MLflow shows them: each eval set by its digest, and what the calibration read."""

from __future__ import annotations

import json
from typing import Any

from quantize.artifact import Manifest
from quantize.errors import QuantizeError
from quantize.evidence import ArmMeasurements
from quantize.registry import DatasetUse
from quantize.run import Runner
from quantize.store import read_manifest

__all__ = ["datasets"]

#: The fields of an item, as MLflow writes a schema: name, type, and whether each item has it.
_FIELDS = (
    ("id", "string", True),
    ("prompt", "string", True),
    ("answer", "string", True),
    ("choices", "string", False),
    ("slice", "string", False),
    ("cluster", "string", False),
)


def datasets(runner: Runner, name: str | None) -> list[DatasetUse]:
    """What an arm was measured on and what its method read; None is the baseline. A stage that is gone is left out."""
    recipe = runner.plan.recipe
    found = []
    for eval_ in recipe.evals:
        stage = runner.plan.baselines[0].evaluate.get(eval_.name)
        measured = _measured(runner, stage.key) if stage is not None else None
        if measured is not None:
            found.append(_evaluation(eval_.model_dump(mode="json"), measured))
    for way in (way for way in runner.plan.variants if way.variant.name == name):
        stage, wanted = way.calibrate, recipe.calibration_of(way.variant)
        manifest = _manifest(runner, stage.kind, stage.key) if stage is not None else None
        if manifest is not None and wanted is not None:
            found.append(_calibration(wanted.model_dump(mode="json", by_alias=True), manifest))
    return found


def _evaluation(config: dict[str, Any], measured: ArmMeasurements) -> DatasetUse:
    progressed = measured.progressed
    counted = {"items": progressed.items} if progressed is not None else {"positions": _positions(measured)}
    columns = [{"name": name, "type": kind, "required": always} for name, kind, always in _FIELDS]
    return DatasetUse(
        name=config["name"],
        digest=measured.dataset_digest,
        context="evaluation",
        source_type="local" if "path" in config else config["kind"],
        source=json.dumps({"uri": config["path"]} if "path" in config else config),
        schema=json.dumps({"mlflow_colspec": columns}) if config["kind"] == "items" else None,
        profile=json.dumps({**counted, "kind": config["kind"], "digest": measured.dataset_digest}),
    )


def _calibration(config: dict[str, Any], manifest: Manifest) -> DatasetUse:
    told = {name: value for name, value in manifest.summary.items() if isinstance(value, int | str)}
    digest = manifest.content_digest()
    return DatasetUse(
        name=f"calibration-{config['kind']}",
        digest=digest,
        context="calibration",
        source_type=config["kind"],
        source=json.dumps(config),
        schema=None,
        profile=json.dumps({**told, "digest": digest}),
    )


def _positions(measured: ArmMeasurements) -> int:
    return max((m.n for m in measured.measurements), default=0)


def _measured(runner: Runner, key: str) -> ArmMeasurements | None:
    try:
        text = (runner.store.path("evaluate", key) / "measurements.json").read_text(encoding="utf-8")
        return ArmMeasurements.model_validate_json(text)
    except (OSError, ValueError):
        return None


def _manifest(runner: Runner, kind: str, key: str) -> Manifest | None:
    try:
        return read_manifest(runner.store.path(kind, key))
    except QuantizeError:
        return None
