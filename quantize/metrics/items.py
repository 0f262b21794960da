"""Accuracy on the user's own items, through lm-evaluation-harness.

Convention: with choices, the answer is the one with the greatest summed log-likelihood after the prompt (lm-eval's
`acc`; not length-normalised); without, the generated text up to the first newline must equal the answer after stripping
(`exact_match`).
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.evidence import ITEM_ROWS, ArmMeasurements, Comparison
from quantize.metrics._harness import generation_stops, make_task, run_tasks
from quantize.metrics._items_file import Item, items_digest, load_items
from quantize.metrics._rows import compare_items, item_measurements, write_rows
from quantize.protocols import Progress, Session
from quantize.record import Record

__all__ = ["Items"]


class Items(Record):
    """`path` is a JSONL file, a folder of them, or a glob. Measures `<name>.accuracy`, overall and per slice."""

    kind: Literal["items"] = "items"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    path: str
    max_new_tokens: Annotated[int, Field(gt=0)] = 64

    @property
    def needs_reference(self) -> bool:
        """A variant's answers are scored without looking at the baseline's."""
        return False

    def identity(self) -> dict[str, Any]:
        """The items' digest and how they are asked."""
        return {"kind": self.kind, "items": items_digest(load_items(self.path)), "max_new_tokens": self.max_new_tokens}

    def items(self, slice_name: str | None = None) -> int:
        """How many items there are, or how many of a slice."""
        return sum(slice_name is None or item.slice == slice_name for item in load_items(self.path))

    def measure(
        self, session: Session, arm: str, out: Path, reference: Path | None, baseline: Path | None, progress: Progress
    ) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        items = {item.id: item for item in load_items(self.path)}
        tasks = self._tasks(list(items.values()))
        lm = session.lm()
        samples = run_tasks(lm, tasks)
        rows, stops = [], generation_stops(lm)
        for sample in (sample for name in tasks for sample in samples[name]):
            row, stop = _row(items[sample["doc"]["id"]], sample)
            rows.append(row)
            stops += stop
        twice = [name for name, count in Counter(row["item_id"] for row in rows).items() if count > 1]
        lost = sorted(set(items) - {row["item_id"] for row in rows})
        stops += [f"item {name!r} was answered twice" for name in twice[:1]]
        stops += [f"item {name!r} has no answer ({len(lost)} have none)" for name in lost[:1]]
        write_rows(rows, ITEM_ROWS, out)
        return ArmMeasurements(
            eval=self.name,
            arm=arm,
            dataset_digest=items_digest(list(items.values())),
            engine=type(session).__name__,
            device=session.device,
            measurements=item_measurements(self.name, rows),
            hard_stops=stops[:5],
        )

    def compare(self, baseline: Path, variant: Path) -> list[Comparison]:
        """See `protocols.Metric.compare`."""
        return compare_items(self.name, baseline, variant)

    def _tasks(self, items: list[Item]) -> dict[str, Any]:
        """One task for the items with choices, one for those without."""
        tasks: dict[str, Any] = {}
        config: dict[str, Any]
        chosen = [item for item in items if item.choices is not None]
        free = [item for item in items if item.choices is None]
        if chosen:
            documents = [
                {"id": i.id, "prompt": i.prompt, "choices": list(i.choices or ()), "answer": int(i.answer)}
                for i in chosen
            ]
            config = {
                "output_type": "multiple_choice",
                "doc_to_text": "prompt",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
            tasks[f"{self.name}-choices"] = make_task(f"{self.name}-choices", documents, config)
        if free:
            documents = [{"id": i.id, "prompt": i.prompt, "answer": str(i.answer)} for i in free]
            config = {
                "output_type": "generate_until",
                "doc_to_text": "prompt",
                "doc_to_target": "answer",
                "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": self.max_new_tokens},
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            }
            tasks[f"{self.name}-free"] = make_task(f"{self.name}-free", documents, config)
        return tasks


def _row(item: Item, sample: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The row of one item, and a sentence if what the model said cannot be used."""
    stops = []
    if item.choices is not None:
        scores = [float(response[0]) for response in sample["filtered_resps"]]
        if not all(math.isfinite(score) for score in scores):
            stops.append(f"item {item.id!r} has a log-likelihood that is not finite")
            answer, score = "", 0.0
        else:
            answer, score = item.choices[scores.index(max(scores))], float(sample["acc"])
    else:
        # The harness compares as it stands; leading blanks of a generation are no error of the model.
        answer = str(sample["filtered_resps"][0]).strip()
        score = float(answer == str(item.answer).strip())
    return {
        "item_id": item.id,
        "filter": "none",
        "prompt_sha256": item.prompt_digest(),
        "slice": item.slice,
        "cluster": item.cluster,
        "score": score,
        "answer": answer,
        "target": item.target,
        "prompt": item.prompt,
    }, stops
