"""Running lm-evaluation-harness: tasks in, one sample per document out. No caches.

The harness's traps are met here once: its request cache does not know the model, so it is off; its own ids are not
ours, so documents carry their own; its standard errors are unpaired, so they are not computed; its templates can reach
the interpreter, so they are rendered in Jinja's sandbox.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from quantize.errors import DataError

__all__ = [
    "as_they_stand",
    "find_documents_by_number",
    "fix_fewshot",
    "generation_stops",
    "make_task",
    "run_tasks",
    "sandboxed_templates",
]

Sample = dict[str, Any]

#: The seed of few-shot examples that `lm_eval` itself takes by default.
_FEWSHOT_SEED = 1234


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


def run_tasks(
    lm: Any, tasks: dict[str, Any], *, seed: int, documents: dict[str, list[int]] | None = None, verbatim: bool = False
) -> dict[str, list[Sample]]:
    """Samples per task, as the harness logs them: `doc`, `filter`, `resps`, `target` and each metric of the task.

    `documents` are the numbers of the documents to ask, by task; all where it is None. They are sorted here: of an
    unsorted list the harness logs wrong numbers. `seed` is that of sampled answers. With `verbatim`, prompts bring
    their special tokens with them.
    """
    import torch
    from lm_eval.evaluator import evaluate

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    torch.manual_seed(seed)
    with as_they_stand(lm, verbatim=verbatim):
        result = evaluate(
            lm=lm,
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            samples={name: sorted(numbers) for name, numbers in documents.items()} if documents is not None else None,
            bootstrap_iters=0,
            log_samples=True,
            cache_requests=False,
        )
    if result is None:
        raise DataError("lm-eval returned nothing.")
    samples: dict[str, list[Sample]] = result["samples"]
    return samples


@contextmanager
def as_they_stand(lm: Any, *, verbatim: bool) -> Iterator[None]:
    """Let the model take texts with the special tokens that are written in them, and add none, for a while."""
    before = lm.verbatim
    lm.verbatim = verbatim
    try:
        yield
    finally:
        lm.verbatim = before


def find_documents_by_number(task: Any, documents: list[dict[str, Any]]) -> None:
    """Let the harness fetch a look's documents by their numbers: by itself it walks the whole set for each look."""

    def chosen(*, samples: list[int] | None = None, **_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(documents if samples is None else [documents[number] for number in samples])

    task.doc_iterator = chosen


def fix_fewshot(task: Any, documents: list[dict[str, Any]]) -> None:
    """Give every document the examples that it gets when all are asked in their own order.

    The harness draws examples from one generator as it goes, so what a document is shown depends on what was asked
    before it: looks in a seeded order, or a resumed run, would ask other questions under the same id. It also keeps a
    document out of its own examples only where `fewshot_split` names the test split; here it is kept out wherever the
    examples come from the documents, because they show the answer.
    """
    shots = task.config.num_fewshot or 0
    if not shots:
        return
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    if not {_text(document) for document in documents}.isdisjoint(map(_text, task.sampler.fewshot_docs())):
        # What the harness compares to see whether the examples are the documents themselves.
        task.fewshot_cfg.split = task.config.test_split
    draw = task.fewshot_context
    plain = {"system_instruction": None, "apply_chat_template": False, "fewshot_as_multiturn": False}
    contexts = {
        _text(document): draw(
            document, num_fewshot=shots, chat_template=None, gen_prefix=task.doc_to_prefix(document), **plain
        )
        for document in documents
    }
    task.fewshot_context = lambda doc, **_: contexts[_text(doc)]


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, default=repr)


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
