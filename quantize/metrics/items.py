"""Accuracy on the user's own items, through lm-evaluation-harness.

Convention: with choices, the answer is the one with the greatest summed log-likelihood after the prompt (lm-eval's
`acc`; not length-normalised); without, the generated text up to the first newline must equal the answer after stripping
(`exact_match`). A `scorer` sets another. With several `generations`, an item's score is the mean of theirs.

A generation holds an answer (`parsed`) unless the scorer finds none in it or it was cut off (`truncated`), which is to
say that it has as many tokens as it may have. Its length is that of its text, tokenized again.

A chat (`messages`) is asked as its model's own template writes it (`chat`), and its answer goes on to the end of the
turn. An item that is longer than the engine reads is an error before anything is asked.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quantize.chat import ChatTemplate, chat_template
from quantize.evidence import ArmMeasurements, Comparison
from quantize.handed import EvaluateJob, Row, Session
from quantize.metrics._harness import generation_stops, run_tasks
from quantize.metrics._item_tasks import FreeAnswers, ask, check_lengths
from quantize.metrics._items_file import Item, items_digest, load_items
from quantize.metrics._looks import answer_in_looks, arm_measurements
from quantize.metrics._pairs import compare_items, pair_items
from quantize.metrics._rows import read_rows
from quantize.metrics._scored_rows import answer_rows, check_scorable, choice_row, not_scored
from quantize.record import Record, digest
from quantize.scorers import Choice, Command, Exact, ScorerConfig
from quantize.scoring import Scorer, Scoring

__all__ = ["Items"]

_NO_TEMPLATE = "Give the items a `prompt` instead of `messages`, or the model a chat_template.jinja."


class Items(Record):
    """`path` is a JSONL file, a folder of them, or a glob. Measures `<name>.accuracy`, overall and per slice.

    Free answers are generated `generations` times at `temperature` (once and greedily, if nothing is said) and measure
    also `<name>.parsed`, `<name>.truncated` and `<name>.output_tokens`. Without a `scorer` they are right when they are
    the item's answer (`exact`), and of choices the likeliest counts (`choice`, raw).
    """

    kind: Literal["items"] = "items"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    path: str
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    generations: Annotated[int, Field(ge=1, le=64, description="Sampled answers to an item without choices.")] = 1
    temperature: Annotated[float, Field(ge=0, le=2, description="0: greedy.")] = 0.0
    scorer: Annotated[ScorerConfig | None, Field(description="What makes an answer right.")] = None

    @model_validator(mode="after")
    def _several_need_chance(self) -> Items:
        if self.generations > 1 and self.temperature == 0:
            raise ValueError("several generations at temperature 0 are all the same: set a temperature")
        return self

    @property
    def quantities(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("accuracy", "parsed", "truncated", "harmful_flips", "output_tokens")

    @property
    def paired(self) -> tuple[str, ...]:
        """See `protocols.Metric`."""
        return ("accuracy", "parsed")

    def identity(self) -> dict[str, Any]:
        """The items' digest and how they are asked and scored."""
        config = self.model_dump(mode="json", exclude={"path", "name", "scorer"})
        items = self._load()
        check_scorable(items, self.scorer)
        if self.scorer not in (None, Exact(), Choice()):
            config["scorer"] = self._scorer.identity()
        if self.generates():
            # Answers that were read before their rows said which of them were cut off are read again.
            config["answers"] = "with truncated"
        return {**config, "items": items_digest(items)}

    def dataset(self) -> str:
        """See `protocols.Metric`."""
        return items_digest(sorted(self._load(), key=lambda item: item.id))

    def cluster_sizes(self, slice_name: str | None = None, quantity: str = "accuracy") -> list[int]:
        """Items by cluster; an item without a cluster is one of its own. Only free answers can be unreadable."""
        items = [item for item in self._load() if quantity != "parsed" or item.choices is None]
        chosen = [item for item in items if slice_name is None or item.slice == slice_name]
        named = Counter(item.cluster for item in chosen if item.cluster is not None)
        return [*named.values(), *(1 for item in chosen if item.cluster is None)]

    def generates(self) -> bool:
        """Whether any item is answered freely."""
        return any(item.choices is None for item in self._load())

    def chats(self) -> bool:
        """Whether any item is a conversation, which takes a chat template to ask."""
        return any(item.messages for item in self._load())

    def slices(self) -> tuple[str, ...]:
        """The slices that items name, sorted."""
        return tuple(sorted({item.slice for item in self._load() if item.slice is not None}))

    def texts(self) -> list[str]:
        """Every prompt."""
        return [item.text for item in self._load()]

    def lacking(self) -> str | None:
        """What this machine lacks to score the answers; None where nothing."""
        return self._scorer.lacking()

    def held_in(self) -> str | None:
        """What this machine holds the scorer's command in; None where no command scores."""
        return self.scorer.held_in() if isinstance(self.scorer, Command) else None

    @property
    def _scorer(self) -> Scorer:
        """What scores generated answers, or chooses among choices where none is generated."""
        return self.scorer if self.scorer is not None else Exact()

    def _load(self) -> list[Item]:
        return load_items(self.path, texts=self._scorer.reads_lines or not self._scorer.generates)

    def measure(self, job: EvaluateJob) -> ArmMeasurements:
        """See `protocols.Metric.measure`."""
        template = chat_template(job.baseline, _NO_TEMPLATE) if self.chats() else None
        dataset = items_digest(self._load())
        items = [_rendered(item, template) for item in self._load()]
        free = FreeAnswers(self.generations, self.temperature, self.max_new_tokens)

        @cache
        def fits(lm: Any) -> None:
            check_lengths(lm, items, free)

        with closing(self._scorer.open(job.kept)) as scoring:

            def answer(session: Session, numbers: list[int], look: int) -> tuple[list[Row], list[str]]:
                fits(session.lm())
                return self._answer(session, [items[number] for number in numbers], free, scoring, job.seed + look)

            worthless = partial(not_scored, self._scorer.errors_at_most)
            clusters = [item.cluster for item in items]
            answered = answer_in_looks([item.id for item in items], clusters, job, answer, worthless)
        # By another template the same items are another eval.
        return arm_measurements(self.name, job, answered, digest([dataset, template.digest]) if template else dataset)

    def pairs(self, baseline: list[Row], variant: list[Row]) -> dict[str, Any]:
        """See `protocols.Metric.pairs`."""
        return pair_items(self.name, baseline, variant)

    def compare(self, baseline: Any, variant: Any, early: float) -> list[Comparison]:
        """See `protocols.Metric.compare`."""
        return compare_items(self.name, read_rows(baseline), read_rows(variant), early)

    def _answer(
        self, session: Session, items: list[Item], free: FreeAnswers, scoring: Scoring, seed: int
    ) -> tuple[list[Row], list[str]]:
        """Rows of some items, and what makes them worthless."""
        lm = session.lm()
        heard: dict[str, list[dict[str, Any]]] = {}
        for tasks, verbatim in ask(self.name, items, free):
            samples = run_tasks(lm, tasks, seed=seed, verbatim=verbatim)
            for sample in (sample for task in samples.values() for sample in task):
                heard.setdefault(sample["doc"]["id"], []).append(sample)
        stops = generation_stops(lm)
        rows = []
        said = {}
        for item in items:
            found = heard.get(item.id, [])
            if item.choices is None and len(found) == self.generations:
                said[item.id] = [str(sample["filtered_resps"][0]) for sample in found]
            elif item.choices is not None:
                best = self.scorer if isinstance(self.scorer, Choice) else Choice()
                chosen = [choice_row(session, item, sample, best) for sample in found]
                rows += [row for row, _ in chosen]
                stops += [stop for _, stop in chosen if stop]
        return rows + answer_rows(session, [item for item in items if item.id in said], said, free, scoring), stops


def _rendered(item: Item, template: ChatTemplate | None) -> Item:
    """The item with its prompt as the model is given it."""
    if template is None or not item.messages:
        return item
    return replace(item, prompt=template.render(item.messages, f"item {item.id!r}"))
