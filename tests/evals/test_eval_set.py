"""The eval set that ships with the project is sound: well formed, varied, without near-duplicates, and within reach.

A gate that promotes on this set inherits its flaws. Two copies of one item count one flip twice; a template that fills
the set turns an average over skills into a measurement of one phrase; a slice at chance level cannot lose anything.
The cheap checks below run in seconds in pure Python. The last test scores the set with the real model and is slow.
"""

import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

EVALS = Path(__file__).resolve().parents[2] / "evals"
SLICES = ("arithmetic", "geography", "language", "reading", "science")
MIN_ITEMS, MIN_SLICE_ITEMS, CHOICES = 600, 120, 4

# A skeleton that makes a twentieth of the set moves the average by as much as the usual margin of two points once 40 %
# of its items flip together; below that, no single phrase decides a verdict.
MAX_SKELETON_SHARE = 0.05

# Items that share a form ("Which of 3, 9, 5 and 2 is the largest?") share about half of their words and ask different
# things; above three quarters only a word or two differs, and the answers are then no independent evidence.
MAX_JACCARD = 0.75

# A guesser who never reads the question should stay near chance; a tie earns its share.
MAX_LENGTH_SHORTCUT = 0.40

SHARED_WORDS = 8  # prose and items must not share a run of so many words: one would be a hint for the other

# fmt: off
NUMBER_WORDS = frozenset((
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty",
    "fifty", "sixty", "seventy", "eighty", "ninety", "hundred",
))
# fmt: on


class Item(NamedTuple):
    """One line of an eval file."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int
    slice: str


def load_items() -> list[Item]:
    """All items of all slices, in the order of the files. `cluster` is optional and not needed here."""
    paths = sorted((EVALS / "facts").glob("*.jsonl"))
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [Item(r["id"], r["prompt"], tuple(r["choices"]), r["answer"], r["slice"]) for r in rows]


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text; punctuation is dropped."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def skeleton(prompt: str) -> str:
    """The prompt with everything masked that a template would fill in.

    Masked are quoted words, digits and number words, and capitalised words that do not open a sentence; a run of masks
    counts as one, so that "South Korea" and "Peru" look alike.
    """
    text = re.sub(r"\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)", "_", prompt)
    text = re.sub(r"\d+", "_", text)
    capitalised = [m for m in re.finditer(r"\b[A-Z][\w'.-]*\w|\b[A-Z]\b", text) if not opens_sentence(text, m.start())]
    for match in reversed(capitalised):
        text = text[: match.start()] + "_" + text[match.end() :]
    text = re.sub(r"[A-Za-z]+", lambda m: "_" if m[0].lower() in NUMBER_WORDS else m[0], text)
    return re.sub(r"_(?:[\s,+*/x-]*_)*", "_", text)


def opens_sentence(text: str, at: int) -> bool:
    """Whether the word at this offset is the first of the text, a line or a sentence."""
    before = text[:at].rstrip(" ")
    return not before or before[-1] in ".?!:\n"


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared words over all words of the two sets."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def near_duplicates(items: list[Item]) -> list[tuple[str, str]]:
    """Pairs of ids whose prompt and right choice are made of nearly the same words."""
    bags = [(item.id, frozenset(words(item.prompt + item.choices[item.answer]))) for item in items]
    return [(i, j) for (i, a), (j, b) in itertools.combinations(bags, 2) if jaccard(a, b) > MAX_JACCARD]


def common_skeletons(items: list[Item]) -> dict[str, int]:
    """Skeletons that make more than their share of the set, with their counts."""
    counts = Counter(skeleton(item.prompt) for item in items)
    return {text: n for text, n in counts.items() if n > MAX_SKELETON_SHARE * len(items)}


def length_shortcut(items: list[Item], sign: int) -> float:
    """Accuracy of always choosing the longest (sign 1) or the shortest (sign -1) choice, in characters."""
    earned = 0.0
    for item in items:
        lengths = [sign * len(choice) for choice in item.choices]
        best = max(lengths)
        earned += (lengths[item.answer] == best) / lengths.count(best)
    return earned / len(items)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return load_items()


def by_slice(items: list[Item]) -> dict[str, list[Item]]:
    groups = defaultdict(list)
    for item in items:
        groups[item.slice].append(item)
    return dict(groups)


def documents() -> list[str]:
    """The documents of the perplexity text."""
    return [part.strip() for part in re.split(r"(?m)^---$", (EVALS / "prose.txt").read_text(encoding="utf-8"))]


def test_there_are_five_slices_with_enough_items(items: list[Item]) -> None:
    sizes = {name: len(group) for name, group in by_slice(items).items()}
    assert sorted(sizes) == list(SLICES)
    assert len(items) >= MIN_ITEMS
    assert min(sizes.values()) >= MIN_SLICE_ITEMS, sizes


def test_every_line_has_the_schema_and_lies_in_the_file_of_its_slice() -> None:
    required = {"id", "prompt", "choices", "answer", "slice"}
    for path in sorted((EVALS / "facts").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert required <= set(row) <= required | {"cluster"}, line
            assert row["slice"] == path.stem, line
            assert re.fullmatch(rf"{path.stem}-\d{{3}}", row["id"]), line
            assert type(row["answer"]) is int and 0 <= row["answer"] < CHOICES, line


def test_choices_are_four_distinct_continuations_of_like_form(items: list[Item]) -> None:
    for item in items:
        assert item.prompt == item.prompt.strip(), item
        assert len({choice.lower() for choice in item.choices}) == len(item.choices) == CHOICES, item
        assert all(re.fullmatch(r" \S.*\S| \S", choice) for choice in item.choices), item
        counts = [len(choice.split()) for choice in item.choices]
        assert max(counts) - min(counts) <= 2, item


def test_right_answers_are_spread_evenly_over_the_positions(items: list[Item]) -> None:
    for group in (items, *by_slice(items).values()):
        counts = Counter(item.answer for item in group)
        assert all(0.2 <= counts[position] / len(group) <= 0.3 for position in range(CHOICES)), counts


def test_the_order_of_right_answers_has_no_period(items: list[Item]) -> None:
    """Balanced but cyclic positions would be answered by rote; by chance a quarter repeats at any lag."""
    for name, group in by_slice(items).items():
        answers = [item.answer for item in group]
        for lag in range(1, 9):
            repeats = sum(a == b for a, b in zip(answers, answers[lag:], strict=False)) / (len(answers) - lag)
            assert repeats < 0.45, (name, lag, repeats)


def test_ids_and_prompts_are_unique(items: list[Item]) -> None:
    for field in ("id", "prompt"):
        counts = Counter(getattr(item, field) for item in items)
        assert max(counts.values()) == 1, counts.most_common(3)


def test_no_two_items_are_near_duplicates(items: list[Item]) -> None:
    assert near_duplicates(items) == []


def test_a_planted_near_duplicate_is_found(items: list[Item]) -> None:
    twin = items[0]._replace(id="twin", prompt=items[0].prompt.replace("Question:", "Question: Well,").swapcase())
    assert near_duplicates([*items, twin]) == [(items[0].id, "twin")]


def test_no_skeleton_makes_more_than_its_share(items: list[Item]) -> None:
    assert common_skeletons(items) == {}


def test_a_planted_template_is_found(items: list[Item]) -> None:
    names = [f"{chr(65 + n % 26)}an{chr(97 + n // 26)}" for n in range(len(items) // 10)]
    prompts = [f'Question: Did {name} Lee say "{name}" {n} times?' for n, name in enumerate(names)]
    filled = [items[0]._replace(prompt=prompt) for prompt in prompts]
    assert list(common_skeletons([*items, *filled]).values()) == [len(filled)]


def test_the_length_of_a_choice_does_not_give_it_away(items: list[Item]) -> None:
    for name, group in by_slice(items).items():
        for sign in (1, -1):
            assert length_shortcut(group, sign) <= MAX_LENGTH_SHORTCUT, (name, sign)


def test_prose_has_enough_documents_of_like_length() -> None:
    lengths = [len(words(text)) for text in documents()]
    assert len(lengths) >= 24
    assert min(lengths) >= 120 and max(lengths) <= 230, lengths


def test_prose_and_items_share_no_text(items: list[Item]) -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        tokens = words(text)
        return {tuple(tokens[i : i + SHARED_WORDS]) for i in range(len(tokens) - SHARED_WORDS + 1)}

    prose = set().union(*map(runs, documents()))
    assert prose
    assert [item.id for item in items if runs(item.prompt + item.choices[item.answer]) & prose] == []
