"""Running lm-evaluation-harness: tasks in, one sample per document out. No caches.

The harness's traps are met here once: its request cache does not know the model, so it is off; its own ids are not
ours, so documents carry their own; its standard errors are unpaired, so they are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantize.errors import DataError

__all__ = ["make_task", "run_tasks"]

Sample = dict[str, Any]


def make_task(name: str, documents: list[dict[str, Any]], config: dict[str, Any]) -> Any:
    """An lm-eval task over documents in memory, from the config keys that the harness's YAML has."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    # Columns must be equal in all rows: items of one form are given together.
    data = DatasetDict({"test": Dataset.from_list(documents)})
    load: Callable[..., Any] = lambda **_: data  # noqa: E731 (typed where it stands)
    return ConfigurableTask(config={"task": name, "test_split": "test", "custom_dataset": load, **config})


def run_tasks(lm: Any, tasks: dict[str, Any], limit: int | None = None) -> dict[str, list[Sample]]:
    """Samples per task, as the harness logs them: `doc`, `filter`, `resps`, `target` and each metric of the task."""
    import logging

    from lm_eval.evaluator import evaluate

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    result = evaluate(
        lm=lm,
        task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        cache_requests=False,
    )
    if result is None:
        raise DataError("lm-eval returned nothing.")
    samples: dict[str, list[Sample]] = result["samples"]
    return samples
