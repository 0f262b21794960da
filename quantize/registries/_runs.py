"""What a run says and holds, in MLflow's words: parameters, metrics, files, datasets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantize.errors import RegistryAway
from quantize.registries._client import sanitize
from quantize.registry import DatasetUse

__all__ = ["download_known", "log_all", "log_datasets"]

_BATCH = 100  # MLflow takes 100 parameters and 1000 metrics at once
_PARAM_LENGTH = 6000
_DIGEST_LENGTH = 36  # of a dataset


def log_all(
    mlflow: Any,
    run_id: str,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    files: Mapping[str, Sequence[Path]],
) -> None:
    """See `registry.Registry.log`."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    numbers = [Metric(sanitize(key), value, now, 0) for key, value in metrics.items()]
    words = [Param(sanitize(key), value[:_PARAM_LENGTH]) for key, value in params.items()]
    for start in range(0, max(len(numbers), len(words)), _BATCH):
        piece = slice(start, start + _BATCH)
        mlflow.log_batch(run_id, metrics=numbers[piece], params=words[piece])
    for folder, paths in files.items():
        for path in paths:
            mlflow.log_artifact(run_id, str(path), folder or None)


def log_datasets(mlflow: Any, run_id: str, datasets: Sequence[DatasetUse]) -> None:
    """See `registry.Registry.log_inputs`. The digest is cut to what MLflow holds; the profile has it whole."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = [
        DatasetInput(
            Dataset(d.name, d.digest[:_DIGEST_LENGTH], d.source_type, d.source, d.schema, d.profile),
            [InputTag("mlflow.data.context", d.context)],
        )
        for d in datasets
    ]
    mlflow.log_inputs(run_id, found)


def download_known(mlflow: Any, run_id: str, path: str, out: Path) -> Path:
    """Fetch a file or folder that a run is known to hold. Raises RegistryAway where it does not come.

    MLflow then says no more than that it failed, and that the path may be wrong.
    """
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.download_artifacts(run_id, path, str(out)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryAway(
            f"{path} is listed and does not come: the server, or where it keeps its files, does not answer.",
            where=f"MLflow run {run_id}",
            fix="The same command, when it answers again.",
        ) from error
