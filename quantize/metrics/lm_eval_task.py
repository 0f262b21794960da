"""Any task of lm-evaluation-harness, by name or by YAML: per-document scores, paired like the user's own items."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS, ArmMeasurements, Comparison
from quantize.metrics._harness import generation_stops, run_tasks, sandboxed_templates
from quantize.metrics._rows import compare_items, item_measurements, write_rows
from quantize.metrics._task_yaml import forbid_code, read_files
from quantize.protocols import Progress, Session
from quantize.record import Record, digest, file_sha256

__all__ = ["LmEvalTask"]


class LmEvalTask(Record):
    """`task` is a task's name, known to the harness or found in the YAML files of `include_path`, or a YAML file.

    A YAML file is looked up in `include_path`, or in the working directory where that is not given. `metric` and
    `filter` choose which of the task's scores counts. `limit` takes the first documents only. YAML that runs code is
    refused before the harness loads it, unless `allow_code`; the tasks that come with lm-eval are trusted.
    """

    kind: Literal["lm_eval"] = "lm_eval"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    task: str
    include_path: str | None = None
    metric: str = "acc"
    filter: str = "none"
    fewshot: Annotated[int | None, Field(ge=0)] = None
    limit: Annotated[int | None, Field(gt=0)] = None
    allow_code: bool = False

    @property
    def needs_reference(self) -> bool:
        """A variant's answers are scored without looking at the baseline's."""
        return False

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

    def items(self, slice_name: str | None = None) -> int:
        """Only the running task knows."""
        return 0

    def measure(
        self, session: Session, arm: str, out: Path, reference: Path | None, baseline: Path | None, progress: Progress
    ) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        with nullcontext() if self.allow_code else sandboxed_templates(self.task):
            name, task = self._load()
            lm = session.lm()
            samples = run_tasks(lm, {name: task}, self.limit)[name]
        chosen = [sample for sample in samples if sample.get("filter", "none") == self.filter]
        if not chosen:
            filters = sorted({str(sample.get("filter", "none")) for sample in samples})
            raise DataError(f"the task has no filter {self.filter!r} (it has {', '.join(filters)}).", where=self.task)
        seen: Counter[str] = Counter()
        rows, stops = [], generation_stops(lm)
        for sample in chosen:
            # Documents may be equal; they come in the same order in both arms, so a count tells them apart.
            seen[sample["doc_hash"]] += 1
            rows.append(self._row(sample, f"{sample['doc_hash']}-{seen[sample['doc_hash']]}"))
            if not _finite(sample["filtered_resps"]):
                stops.append(f"document {sample['doc_id']} has a log-likelihood that is not finite")
        write_rows(rows, ITEM_ROWS, out)
        return ArmMeasurements(
            eval=self.name,
            arm=arm,
            dataset_digest=digest(sorted([row["item_id"], row["prompt_sha256"]] for row in rows)),
            engine=type(session).__name__,
            device=session.device,
            measurements=item_measurements(self.name, rows),
            hard_stops=stops[:5],
        )

    def compare(self, baseline: Path, variant: Path) -> list[Comparison]:
        """See `protocols.Metric.compare`."""
        return compare_items(self.name, baseline, variant)

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

        if not self.allow_code:
            forbid_code(self._yaml())
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

    def _row(self, sample: dict[str, Any], item_id: str) -> dict[str, Any]:
        score = sample.get(self.metric) if self.metric in sample["metrics"] else None
        if not isinstance(score, Real):
            known = ", ".join(sorted(key for key in sample["metrics"] if isinstance(sample[key], Real)))
            raise DataError(f"the task has no metric {self.metric!r} (it has {known or 'none'}).", where=self.task)
        return {
            "item_id": item_id,
            "filter": self.filter,
            "prompt_sha256": str(sample["prompt_hash"]),
            "slice": None,
            "cluster": None,
            "score": float(score),
            "answer": str(sample["filtered_resps"]),
            "target": str(sample["target"]),
            "prompt": str(sample["arguments"][0][0] if isinstance(sample["arguments"], list) else ""),
        }


def _finite(value: Any) -> bool:
    """False where a response holds a float that is not finite, however deep."""
    if isinstance(value, list | tuple):
        return all(_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)
