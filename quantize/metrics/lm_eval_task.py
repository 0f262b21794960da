"""Any task of lm-evaluation-harness, by name or by YAML: per-document scores, paired like the user's own items."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.errors import DataError
from quantize.evidence import ArmMeasurements, Comparison
from quantize.handed import EvaluateJob, Row, Session
from quantize.metrics._harness import (
    find_documents_by_number,
    fix_fewshot,
    generation_stops,
    run_tasks,
    sandboxed_templates,
)
from quantize.metrics._looks import answer_in_looks, arm_measurements
from quantize.metrics._pairs import compare_items, pair_items
from quantize.metrics._rows import check_scores, read_rows
from quantize.metrics._task_yaml import forbid_code, read_files
from quantize.record import Record, digest, file_sha256

__all__ = ["LmEvalTask"]


class LmEvalTask(Record):
    """`task` is a task's name, known to the harness or found in the YAML files of `include_path`, or a YAML file.

    A YAML file is looked up in `include_path`, or in the working directory where that is not given. `metric` and
    `filter` choose which of the task's scores counts. `limit` takes the first documents only. `cluster` and `slice`
    name fields of a document: what belongs together (a passage, a template), and what is reported apart. YAML that runs
    code is refused before the harness loads it, but for the functions that `allow_code` names (`[utils.process]`), or
    all of it (true, which lets templates reach out, too); the tasks that come with lm-eval are trusted.
    """

    kind: Literal["lm_eval"] = "lm_eval"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    task: str
    include_path: str | None = None
    metric: str = "acc"
    filter: str = "none"
    fewshot: Annotated[int | None, Field(ge=0)] = None
    limit: Annotated[int | None, Field(gt=0)] = None
    cluster: Annotated[str | None, Field(min_length=1)] = None
    slice: Annotated[str | None, Field(min_length=1)] = None
    allow_code: bool | tuple[str, ...] = False

    @property
    def quantities(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("accuracy", "parsed", "harmful_flips", "output_tokens")

    @property
    def paired(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("accuracy", "parsed")

    def identity(self) -> dict[str, Any]:
        """The config, and the digests of the files that the task reads: YAML, includes, local data, `include_path`."""
        config = self.model_dump(mode="json", exclude={"include_path", "name"})
        file = self._file()
        if file is not None:
            config["task"] = file.name
        files = set(read_files(self._yaml()))
        if self.include_path is not None:
            files |= {path.resolve() for path in Path(self.include_path).rglob("*") if path.is_file()}
        return {**config, "files": sorted(f"{path.name} {file_sha256(path)}" for path in files)} if files else config

    def dataset(self) -> str:
        """See `protocols.Metric`: the task and its files, whatever is scored."""
        identity = self.identity()
        return digest({key: identity.get(key) for key in ("kind", "task", "files")})

    def cluster_sizes(self, slice_name: str | None = None, quantity: str = "accuracy") -> list[int]:
        """Only the running task knows."""
        return []

    def slices(self) -> tuple[str, ...]:
        """Only the running task knows."""
        return ()

    def texts(self) -> list[str]:
        """Only the running task knows; its rows hold the prompts."""
        return []

    def measure(self, job: EvaluateJob) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        with nullcontext() if self.allow_code is True else sandboxed_templates(self.task):
            name, task = self._load()
            documents = list(task.eval_docs)[: self.limit]
            ids = _ids(documents)
            fix_fewshot(task, documents)
            find_documents_by_number(task, documents)
            clusters = _column(documents, self.cluster, self.task) if self.cluster else _twins(ids)
            if self.slice:
                _column(documents, self.slice, self.task)

            def answer(session: Session, numbers: list[int], look: int) -> tuple[list[Row], list[str]]:
                lm = session.lm()
                samples = run_tasks(lm, {name: task}, seed=job.seed + look, documents={name: numbers})[name]
                stops = generation_stops(lm)
                rows = [
                    self._row(session, sample, ids[sample["doc_id"]], clusters[sample["doc_id"]])
                    for sample in self._filtered(samples)
                ]
                stops += [
                    f"document {sample['doc_id']} has a log-likelihood that is not finite"
                    for sample in samples
                    if not _finite(sample["filtered_resps"])
                ]
                stops += _unusable(rows)
                check_scores(rows, self.task)
                return rows, stops

            answered = answer_in_looks(ids, clusters, job, answer)
        return arm_measurements(self.name, job, answered, digest(sorted(ids)))

    def pairs(self, baseline: list[Row], variant: list[Row]) -> dict[str, Any]:
        """See `protocols.Metric.pairs`."""
        return pair_items(self.name, baseline, variant)

    def compare(self, baseline: Path, variant: Path, early: float) -> list[Comparison]:
        """See `protocols.Metric.compare`."""
        return compare_items(self.name, read_rows(baseline), read_rows(variant), early)

    def _file(self) -> Path | None:
        """The YAML file that `task` names, if it names one and not a task."""
        return Path(self.include_path or ".") / self.task if self.task.endswith((".yaml", ".yml")) else None

    def _yaml(self) -> list[Path]:
        """The user's YAML files that the harness would read. Raises DataError when what is named is not there."""
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise DataError("there is no such folder of tasks.", where=self.include_path)
        file = self._file()
        if file is not None and not file.is_file():
            raise DataError("there is no such task file.", where=str(file), fix="Check evals.task in the recipe.")
        found = sorted(Path(self.include_path).rglob("*.yaml")) if self.include_path is not None else []
        return [*found, file] if file is not None else found

    def _load(self) -> tuple[str, Any]:
        """The task and the name it has in the harness."""
        from lm_eval.tasks import TaskManager

        if self.allow_code is not True:
            forbid_code(self._yaml(), self.allow_code or ())
        file = self._file()
        defaults = self.include_path is None and file is None
        manager = TaskManager(include_path=self.include_path, include_defaults=defaults)
        # The harness would take any other text for a path and load that file, unchecked.
        if file is None and self.task not in manager.all_tasks:
            raise DataError("lm-eval knows no such task.", where=self.task, fix="Give `include_path` for your own.")
        try:
            tasks = manager.load([str(file.resolve()) if file is not None else self.task])["tasks"]
        except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
            raise DataError(
                f"lm-eval cannot load the task: {type(error).__name__}: {error}", where=self.task
            ) from error
        if len(tasks) != 1 or (file is None and self.task not in tasks):
            raise DataError("this is a group of tasks.", where=self.task, fix=f"Name one of {', '.join(tasks)}.")
        name, task = next(iter(tasks.items()))
        if self.fewshot is not None:
            task.set_config(key="num_fewshot", value=self.fewshot)
        return name, task

    def _filtered(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The samples of the filter that counts: the harness gives one for each filter of the task."""
        chosen = [sample for sample in samples if sample.get("filter", "none") == self.filter]
        if not chosen:
            filters = sorted({str(sample.get("filter", "none")) for sample in samples})
            raise DataError(f"the task has no filter {self.filter!r} (it has {', '.join(filters)}).", where=self.task)
        return chosen

    def _row(self, session: Session, sample: dict[str, Any], item_id: str, cluster: str | None) -> Row:
        score = sample.get(self.metric) if self.metric in sample["metrics"] else None
        if not isinstance(score, Real):
            known = ", ".join(sorted(key for key in sample["metrics"] if isinstance(sample[key], Real)))
            raise DataError(f"the task has no metric {self.metric!r} (it has {known or 'none'}).", where=self.task)
        texts = [text for responses in sample["resps"] for text in responses if isinstance(text, str)]
        answer = str(sample["filtered_resps"])
        return {
            "item_id": item_id,
            "filter": self.filter,
            "prompt_sha256": str(sample["prompt_hash"]),
            "slice": str(sample["doc"][self.slice]) if self.slice else None,
            "cluster": cluster,
            "score": float(score),
            "parsed": float(_holds_answer(sample["filtered_resps"])) if texts else None,
            "tokens": sum(len(session.encode(text)) for text in texts) / len(texts) if texts else None,
            "answer": answer,
            "target": str(sample["target"]),
            "prompt": str(sample["arguments"][0][0] if isinstance(sample["arguments"], list) else ""),
        }


def _ids(documents: list[dict[str, Any]]) -> list[str]:
    """An id for each document that depends on what it says: its hash, and a count where documents are equal."""
    from lm_eval.utils import handle_non_serializable, hash_string

    seen: Counter[str] = Counter()
    ids = []
    for document in documents:
        name = hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))
        seen[name] += 1
        ids.append(f"{name}-{seen[name]}")
    return ids


def _twins(ids: list[str]) -> list[str | None]:
    """Clusters of equal documents, which are no independent evidence; None for those that stand alone."""
    names = [name.rpartition("-")[0] for name in ids]
    counts = Counter(names)
    return [name if counts[name] > 1 else None for name in names]


def _column(documents: list[dict[str, Any]], field: str, task: str) -> list[str]:
    """A field of every document. Raises DataError naming the first that lacks it."""
    for number, document in enumerate(documents):
        if document.get(field) is None:
            raise DataError(
                f"document {number} has no {field!r}.",
                where=task,
                fix=f"Choose a field that all documents have, of: {', '.join(sorted(document))}.",
            )
    return [str(document[field]) for document in documents]


def _holds_answer(responses: Any) -> bool:
    """False where nothing was extracted: an empty text, or what the harness's filters write in its place."""
    texts = responses if isinstance(responses, list) else [responses]
    return all(str(text).strip() not in ("", "[invalid]", "[]") for text in texts)


def _unusable(rows: list[Row]) -> list[str]:
    """A sentence for each score that is not finite, which becomes 0: the rows are worthless, and hold numbers."""
    bad = [row for row in rows if not math.isfinite(row["score"])]
    sentences = [f"item {row['item_id']!r} has the score {row['score']}" for row in bad]
    for row in bad:
        row["score"] = 0.0
    return sentences


def _finite(value: Any) -> bool:
    """False where a response holds a float that is not finite, however deep."""
    if isinstance(value, list | tuple):
        return all(_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)
