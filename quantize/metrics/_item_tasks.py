"""Items as tasks of the harness: those that are asked alike together, because a task has one way of asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantize.errors import DataError
from quantize.metrics._harness import as_they_stand, make_task
from quantize.metrics._items_file import Item

__all__ = ["FreeAnswers", "ask", "check_lengths"]


#: Tokens that a byte of text may become at most, and special ones that come besides: so short a text is not counted.
_ROOM = 8


class FreeAnswers:
    """How answers are generated where an item does not say: their number, temperature and greatest length."""

    def __init__(self, generations: int, temperature: float, max_tokens: int) -> None:
        self.generations = generations
        self.max_tokens = max_tokens
        self.sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}

    def stops(self, item: Item) -> list[str]:
        """Where an answer ends: an item's own stops; else a chat's turn ends by itself, and a text at its line."""
        if item.stop is not None:
            return list(item.stop)
        return [] if item.messages else ["\n"]

    def most(self, item: Item) -> int:
        """Tokens that an answer may have."""
        return item.max_tokens if item.max_tokens is not None else self.max_tokens


def ask(name: str, items: Sequence[Item], free: FreeAnswers) -> list[tuple[dict[str, Any], bool]]:
    """Tasks by name over items whose prompts are made, in calls of `run_tasks`; True where they are `verbatim`."""
    plain = [item for item in items if not item.messages]
    chats = [item for item in items if item.messages]
    calls = [(_tasks(name, plain, free), False), (_tasks(f"{name}-chat", chats, free), True)]
    return [(tasks, verbatim) for tasks, verbatim in calls if tasks]


def check_lengths(lm: Any, items: Sequence[Item], free: FreeAnswers) -> None:
    """Raise DataError for an item that the engine cannot read whole: the harness would leave its beginning out."""
    room = lm.max_length - _ROOM
    for verbatim in (False, True):
        with as_they_stand(lm, verbatim=verbatim):
            for item in (item for item in items if bool(item.messages) is verbatim):
                choices = item.choices or ("",)
                if _ROOM * max(len((item.prompt + choice).encode()) for choice in choices) + free.most(item) < room:
                    continue
                asked = max(len(lm.tok_encode(item.prompt + choice)) for choice in choices)
                # The last token of a choice is never read.
                more = free.most(item) if item.choices is None else -1
                if asked + more > lm.max_length:
                    answer = f" and its answer may have {more}" if item.choices is None else ""
                    raise DataError(
                        f"the item is too long: it has {asked} tokens{answer}, and the engine reads {lm.max_length}.",
                        where=f"item {item.id!r}",
                        fix="Give the engine a longer context, the answer fewer tokens, or leave the item out.",
                    )


def _tasks(name: str, items: Sequence[Item], free: FreeAnswers) -> dict[str, Any]:
    """One task for the items with choices, one for each way in which the others end."""
    tasks: dict[str, Any] = {}
    chosen = [item for item in items if item.choices is not None]
    if chosen:
        tasks[f"{name}-choices"] = _choices(f"{name}-choices", chosen)
    ends: dict[tuple[tuple[str, ...], int], list[Item]] = {}
    for item in items:
        if item.choices is None:
            ends.setdefault((tuple(free.stops(item)), free.most(item)), []).append(item)
    for number, ((stops, most), alike) in enumerate(ends.items(), 1):
        own = f"{name}-free" if number == 1 else f"{name}-free-{number}"
        tasks[own] = _generated(own, alike, stops, most, free)
    return tasks


def _choices(name: str, items: Sequence[Item]) -> Any:
    documents = [
        {"id": i.id, "prompt": i.prompt, "choices": list(i.choices or ()), "answer": int(i.answer)} for i in items
    ]
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return make_task(name, documents, config)


def _generated(name: str, items: Sequence[Item], stops: Sequence[str], most: int, free: FreeAnswers) -> Any:
    # One document a generation: the harness's own repeats end in a filter that keeps the first.
    documents = [
        {"id": i.id, "prompt": i.prompt, "answer": str(i.answer)} for i in items for _ in range(free.generations)
    ]
    config = {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": list(stops), "max_gen_toks": most, **free.sampling},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return make_task(name, documents, config)
