"""Any task of lm-evaluation-harness, by name or by YAML: per-document scores, paired like the user's own items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.errors import DataError
from quantize.evidence import ITEM_ROWS, ArmMeasurements, Comparison
from quantize.metrics._harness import forbid_code, run_tasks
from quantize.metrics._rows import compare_items, item_measurements, write_rows
from quantize.protocols import Progress, Session
from quantize.record import Record, digest, file_sha256

__all__ = ["LmEvalTask"]


class LmEvalTask(Record):
    """`task` is a task's name, known to the harness or found in the YAML files of `include_path`.

    `metric` and `filter` choose which of the task's scores counts. `limit` takes the first documents only.
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
        """The config, and the digests of the files under `include_path`."""
        config = self.model_dump(mode="json", exclude={"include_path", "name"})
        if self.include_path is None:
            return config
        folder = Path(self.include_path)
        if not folder.is_dir():
            raise DataError("there is no such folder of tasks.", where=self.include_path)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {**config, "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}}

    def items(self, slice_name: str | None = None) -> int:
        """Only the running task knows."""
        return 0

    def measure(
        self, session: Session, arm: str, out: Path, reference: Path | None, baseline: Path | None, progress: Progress
    ) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        task = self._load()
        samples = run_tasks(session.lm(), {self.task: task}, self.limit)[self.task]
        rows = [self._row(sample) for sample in samples if sample.get("filter", "none") == self.filter]
        if not rows:
            filters = sorted({str(sample.get("filter", "none")) for sample in samples})
            raise DataError(f"the task has no filter {self.filter!r} (it has {', '.join(filters)}).", where=self.task)
        write_rows(rows, ITEM_ROWS, out)
        return ArmMeasurements(
            eval=self.name,
            arm=arm,
            dataset_digest=digest(sorted(row["prompt_sha256"] for row in rows)),
            engine=type(session).__name__,
            device=session.device,
            measurements=item_measurements(self.name, rows),
            hard_stops=[],
        )

    def compare(self, baseline: Path, variant: Path) -> list[Comparison]:
        """See `protocols.Metric.compare`."""
        return compare_items(self.name, baseline, variant)

    def _load(self) -> Any:
        from lm_eval.tasks import TaskManager

        if self.include_path is not None and not self.allow_code:
            for path in sorted(Path(self.include_path).rglob("*.yaml")):
                forbid_code(path)
        manager = TaskManager(include_path=self.include_path, include_defaults=self.include_path is None)
        try:
            tasks = manager.load([self.task])["tasks"]
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise DataError(f"lm-eval cannot load the task: {error}", where=self.task) from error
        if list(tasks) != [self.task]:
            raise DataError("this is a group of tasks.", where=self.task, fix=f"Name one of {', '.join(tasks)}.")
        task = tasks[self.task]
        if self.fewshot is not None:
            task.set_config(key="num_fewshot", value=self.fewshot)
        return task

    def _row(self, sample: dict[str, Any]) -> dict[str, Any]:
        if self.metric not in sample:
            known = ", ".join(sorted(key for key, value in sample.items() if isinstance(value, int | float)))
            raise DataError(f"the task has no metric {self.metric!r} (it has {known}).", where=self.task)
        return {
            "item_id": str(sample["doc_hash"]),
            "filter": self.filter,
            "prompt_sha256": str(sample["prompt_hash"]),
            "slice": None,
            "cluster": None,
            "score": float(sample[self.metric]),
            "answer": str(sample["filtered_resps"]),
            "target": str(sample["target"]),
            "prompt": str(sample["arguments"][0][0] if isinstance(sample["arguments"], list) else ""),
        }
