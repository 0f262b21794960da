"""Accuracy on the user's own items, through lm-evaluation-harness.

Convention: with choices, the answer is the one with the greatest summed log-likelihood after the prompt (lm-eval's
`acc`; not length-normalised); without, the generated text up to the first newline must equal the answer after stripping
(`exact_match`). With several `generations`, an item's score is the share of them that are right.

A generation holds an answer (`parsed`) unless it is empty or was cut off at `max_new_tokens` before it came to an end.
Its length is that of its text, tokenized again.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quantize.evidence import ArmMeasurements, Comparison
from quantize.handed import EvaluateJob, Row, Session
from quantize.metrics._harness import generation_stops, make_task, run_tasks
from quantize.metrics._items_file import Item, items_digest, load_items
from quantize.metrics._looks import answer_in_looks, arm_measurements
from quantize.metrics._pairs import compare_items, pair_items
from quantize.metrics._rows import read_rows
from quantize.record import Record

__all__ = ["Items"]


class Items(Record):
    """`path` is a JSONL file, a folder of them, or a glob. Measures `<name>.accuracy`, overall and per slice.

    Free answers are generated `generations` times at `temperature` (once and greedily, if nothing is said) and measure
    also `<name>.parsed` and `<name>.output_tokens`.
    """

    kind: Literal["items"] = "items"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    path: str
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    generations: Annotated[int, Field(ge=1, le=64, description="Sampled answers to an item without choices.")] = 1
    temperature: Annotated[float, Field(ge=0, le=2, description="0: greedy.")] = 0.0

    @model_validator(mode="after")
    def _several_need_chance(self) -> Items:
        if self.generations > 1 and self.temperature == 0:
            raise ValueError("several generations at temperature 0 are all the same: set a temperature")
        return self

    @property
    def quantities(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("accuracy", "parsed", "harmful_flips", "output_tokens")

    @property
    def paired(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("accuracy", "parsed")

    def identity(self) -> dict[str, Any]:
        """The items' digest and how they are asked."""
        config = self.model_dump(mode="json", exclude={"path", "name"})
        return {**config, "items": items_digest(load_items(self.path))}

    def dataset(self) -> str:
        """See `protocols.Metric`."""
        return items_digest(sorted(load_items(self.path), key=lambda item: item.id))

    def cluster_sizes(self, slice_name: str | None = None, quantity: str = "accuracy") -> list[int]:
        """Items by cluster; an item without a cluster is one of its own. Only free answers can be unreadable."""
        items = [item for item in load_items(self.path) if quantity != "parsed" or item.choices is None]
        chosen = [item for item in items if slice_name is None or item.slice == slice_name]
        named = Counter(item.cluster for item in chosen if item.cluster is not None)
        return [*named.values(), *(1 for item in chosen if item.cluster is None)]

    def generates(self) -> bool:
        """Whether any item is answered freely."""
        return any(item.choices is None for item in load_items(self.path))

    def slices(self) -> tuple[str, ...]:
        """The slices that items name, sorted."""
        return tuple(sorted({item.slice for item in load_items(self.path) if item.slice is not None}))

    def texts(self) -> list[str]:
        """Every prompt."""
        return [item.prompt for item in load_items(self.path)]

    def measure(self, job: EvaluateJob) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        items = load_items(self.path)

        def answer(session: Session, numbers: list[int], look: int) -> tuple[list[Row], list[str]]:
            return self._answer(session, [items[number] for number in numbers], job.seed + look)

        answered = answer_in_looks([item.id for item in items], [item.cluster for item in items], job, answer)
        return arm_measurements(self.name, job, answered, items_digest(items))

    def pairs(self, baseline: list[Row], variant: list[Row]) -> dict[str, Any]:
        """See `protocols.Metric.pairs`."""
        return pair_items(self.name, baseline, variant)

    def compare(self, baseline: Any, variant: Any, early: float) -> list[Comparison]:
        """See `protocols.Metric.compare`."""
        return compare_items(self.name, read_rows(baseline), read_rows(variant), early)

    def _answer(self, session: Session, items: list[Item], seed: int) -> tuple[list[Row], list[str]]:
        """Rows of some items, and what makes them worthless."""
        lm = session.lm()
        samples = run_tasks(lm, self._tasks(items), seed=seed)
        stops = generation_stops(lm)
        heard: dict[str, list[dict[str, Any]]] = {}
        for sample in (sample for task in samples.values() for sample in task):
            heard.setdefault(sample["doc"]["id"], []).append(sample)
        rows = []
        for item in items:
            found = heard.get(item.id, [])
            if item.choices is None and len(found) == self.generations:
                rows.append(self._generated(session, item, found))
            elif item.choices is not None:
                chosen = [_chosen(item, sample) for sample in found]
                rows += [row for row, _ in chosen]
                stops += [stop for _, stop in chosen if stop]
        return rows, stops

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
            # One document a generation: the harness's own repeats end in a filter that keeps the first.
            documents = [
                {"id": i.id, "prompt": i.prompt, "answer": str(i.answer)} for i in free for _ in range(self.generations)
            ]
            sampling = (
                {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
            )
            config = {
                "output_type": "generate_until",
                "doc_to_text": "prompt",
                "doc_to_target": "answer",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": self.max_new_tokens, **sampling},
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            }
            tasks[f"{self.name}-free"] = make_task(f"{self.name}-free", documents, config)
        return tasks

    def _generated(self, session: Session, item: Item, samples: list[dict[str, Any]]) -> Row:
        """The row of an item whose answers were generated."""
        texts = [str(sample["filtered_resps"][0]) for sample in samples]
        # The harness compares as it stands; leading blanks of a generation are no error of the model.
        answers = [text.strip() for text in texts]
        lengths = [len(session.encode(text)) for text in texts]
        read = [bool(a) and n < self.max_new_tokens for a, n in zip(answers, lengths, strict=True)]
        right = [answer == str(item.answer).strip() for answer in answers]
        return {
            **_asked(item),
            "score": sum(right) / len(right),
            "parsed": sum(read) / len(read),
            "tokens": sum(lengths) / len(lengths),
            "answer": "\n".join(dict.fromkeys(answers)),
        }


def _chosen(item: Item, sample: dict[str, Any]) -> tuple[Row, str | None]:
    """The row of an item with choices, and a sentence if what the model said cannot be used."""
    choices = item.choices or ()
    scores = [float(response[0]) for response in sample["filtered_resps"]]
    stop = None
    answer, score = "", 0.0
    if all(math.isfinite(value) for value in scores):
        answer, score = choices[scores.index(max(scores))], float(sample["acc"])
    else:
        stop = f"item {item.id!r} has a log-likelihood that is not finite"
    return {**_asked(item), "score": score, "parsed": None, "tokens": None, "answer": answer}, stop


def _asked(item: Item) -> Row:
    """What a row holds whatever the answer."""
    return {
        "item_id": item.id,
        "filter": "none",
        "prompt_sha256": item.prompt_digest(),
        "slice": item.slice,
        "cluster": item.cluster,
        "target": item.target,
        "prompt": item.prompt,
    }
