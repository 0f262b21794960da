"""Running lm-evaluation-harness: tasks in, one sample per document out. No caches.

The harness's traps are met here once: its request cache does not know the model, so it is off; its own ids are not
ours, so documents carry their own; its standard errors are unpaired, so they are not computed; its templates can reach
the interpreter, so they are rendered in Jinja's sandbox.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from quantize.errors import DataError

__all__ = ["generation_stops", "make_task", "run_tasks", "sandboxed_templates"]

Sample = dict[str, Any]


def make_task(name: str, documents: list[dict[str, Any]], config: dict[str, Any]) -> Any:
    """An lm-eval task over documents in memory, from the config keys that the harness's YAML has."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    # Columns must be equal in all rows: items of one form are given together.
    data = DatasetDict({"test": Dataset.from_list(documents)})
    load: Callable[..., Any] = lambda **_: data  # noqa: E731 (typed where it stands)
    # For each task with a dataset of its own the harness warns that a command line of its own could say more.
    with _quiet("lm_eval.api.task"):
        return ConfigurableTask(config={"task": name, "test_split": "test", "custom_dataset": load, **config})


def run_tasks(lm: Any, tasks: dict[str, Any], limit: int | None = None) -> dict[str, list[Sample]]:
    """Samples per task, as the harness logs them: `doc`, `filter`, `resps`, `target` and each metric of the task."""
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


def generation_stops(lm: Any) -> list[str]:
    """A sentence if the model's logits were not finite while it generated: its texts do not show it."""
    return [] if getattr(lm, "finite", True) else ["the logits were not finite while answers were generated"]


@contextmanager
def sandboxed_templates(task: str) -> Iterator[None]:
    """Render the harness's templates in Jinja's sandbox: `{{ x.__init__.__globals__ }}` raises instead of reaching out.

    lm-eval 0.4 renders all templates with one plain environment in `lm_eval.utils`. Raises DataError for a template
    that fails, whether it was stopped or is wrong.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    sandbox = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)
    utils.env = sandbox
    try:
        yield
    except TemplateError as error:
        raise DataError(
            f"a template of the task fails: {type(error).__name__}: {error}",
            where=task,
            fix="If it does on purpose what a sandbox forbids, set `allow_code: true` for this eval.",
        ) from error
    finally:
        utils.env = plain


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Errors only from a logger, for a while."""
    chosen = logging.getLogger(logger)
    level = chosen.level
    chosen.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chosen.setLevel(level)
