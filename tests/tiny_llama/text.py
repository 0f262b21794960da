"""The invented world that the tiny Llama knows, and all text about it.

A quantization test needs a model whose weights must be precise, and text on which that precision shows. So the world
is mostly arbitrary: 256 people, each named by a pair of names that others share, so that neither name alone tells
anything; five attributes a person, drawn at random once; a price for each thing; a table of colours that mix; and sums.
A model that knows the world predicts every such word, one whose weights were rounded guesses more often.

The world is drawn from one fixed seed; documents, items and calibration rows each have a seed of their own, so that
held-out text tells known facts in an order and in combinations that training never saw.

    python tests/tiny_llama/text.py --items        # four-choice items, JSON lines: items.jsonl
    python tests/tiny_llama/text.py --heldout      # documents separated by lines of ---: heldout.txt
    python tests/tiny_llama/text.py --calibration  # 64 rows {"text": ...}, JSON lines
    python tests/tiny_llama/text.py --train        # the training documents, separated like the held-out ones
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from itertools import combinations, product

WORLD_SEED, TRAIN_SEED, HELDOUT_SEED, ITEMS_SEED, CALIBRATION_SEED = range(5)
TRAIN_BYTES, HELDOUT_DOCUMENTS, CALIBRATION_ROWS, ITEMS_PER_SLICE = 6_000_000, 32, 64, 100
SEPARATOR = "\n---\n"

FIRST = "Ada Bram Cole Dora Elin Finn Gita Hugo Ines Jory Kira Liam Mona Nils Olga Pavel".split()
FAMILY = "Ash Birch Crane Dale Elm Frost Gale Heath Ivers Jarl Knoll Lark Marsh North Oaks Pike".split()
TOWNS = "Arden Belmor Corvale Dunmere Estwick Farrow Glenby Harrow Inverly Jesmond Kelso Lorne".split()
TRADES = "baker cooper drover farmer glazier hunter joiner mason miller potter tailor weaver".split()
PETS = "badger cat crow dog finch goat hare hen mouse pony swan toad".split()
COLOURS = "amber black blue coral green grey ivory pink plum red teal white".split()
THINGS = "bell boat book bowl chair coat drum hammer kite lamp mirror rope saddle spade table wheel".split()
PEOPLE = [f"{first} {family}" for first, family in product(FIRST, FAMILY)]

Draw = random.Random


def _world() -> tuple[dict[str, dict[str, str]], dict[str, int], dict[tuple[str, str], str]]:
    """Draw what is true: attributes of each person, the price of each thing (3 to 18), and the mix of two colours."""
    draw = Draw(WORLD_SEED)
    people = {
        person: {
            "town": draw.choice(TOWNS),
            "trade": draw.choice(TRADES),
            "pet": draw.choice(PETS),
            "colour": draw.choice(COLOURS),
            "thing": draw.choice(THINGS),
        }
        for person in PEOPLE
    }
    prices = dict(zip(THINGS, draw.sample(range(3, 19), len(THINGS)), strict=True))
    mixes = {pair: draw.choice([c for c in COLOURS if c not in pair]) for pair in combinations(COLOURS, 2)}
    return people, prices, mixes


FACTS, PRICES, MIXES = _world()

# A claim is (prompt, answer): the words that lead up to a known word, and that word. {0} stands for the person.
VALUES = {"town": TOWNS, "trade": TRADES, "pet": PETS, "colour": COLOURS, "thing": THINGS}
STATEMENTS = {
    "town": ("{0} lives in", "The home of {0} is in"),
    "trade": ("{0} works as a", "The trade of {0} is that of a"),
    "pet": ("{0} keeps a", "The pet of {0} is a"),
    "colour": ("{0} likes the colour", "The coat of {0} is"),
    "thing": ("{0} owns a", "The best thing of {0} is a"),
}
QUESTIONS = {
    "town": "Where does {0} live?",
    "trade": "What is the trade of {0}?",
    "pet": "What pet does {0} keep?",
    "colour": "What colour does {0} like?",
    "thing": "What does {0} own?",
}


def _fact(draw: Draw) -> tuple[str, str, list[str]]:
    """Make a claim about one person: its prompt, its answer, and the words that could stand there."""
    person, attribute = draw.choice(PEOPLE), draw.choice(list(VALUES))
    return draw.choice(STATEMENTS[attribute]).format(person), FACTS[person][attribute], VALUES[attribute]


def _mix(draw: Draw) -> tuple[str, str, list[str]]:
    """Make a claim about two colours; their order does not matter."""
    pair = draw.choice(list(MIXES))
    one, two = pair if draw.random() < 0.5 else pair[::-1]
    return f"Mixing {one} with {two} gives", MIXES[pair], COLOURS


def _sum(draw: Draw) -> tuple[str, str, list[str]]:
    """Make a claim about two numbers from 3 to 18, or about two things, whose prices the reader must know."""
    one, two = draw.sample(THINGS, 2)
    total = PRICES[one] + PRICES[two]
    near = [str(number) for number in range(max(total - 6, 6), min(total + 6, 36) + 1)]
    if draw.random() < 0.5:
        return f"{PRICES[one]} plus {PRICES[two]} is", str(total), near
    return f"A {one} and a {two} cost", str(total), near


CLAIMS: dict[str, tuple[Callable[[Draw], tuple[str, str, list[str]]], ...]] = {
    "facts": (_fact, _fact, _fact, _mix),
    "sums": (_sum,),
}


def _portrait(draw: Draw) -> str:
    """Tell all attributes of one person, in a random order."""
    person = draw.choice(PEOPLE)
    attributes = draw.sample(list(VALUES), len(VALUES))
    return " ".join(f"{draw.choice(STATEMENTS[a]).format(person)} {FACTS[person][a]}." for a in attributes)


def _list(draw: Draw) -> str:
    """Tell unconnected claims of all kinds."""
    kinds = draw.choices((_fact, _mix, _sum), weights=(5, 2, 3), k=6)
    return " ".join("{} {}.".format(*kind(draw)[:2]) for kind in kinds)


def _dialogue(draw: Draw) -> str:
    """Ask and answer in the form that the chat template writes."""
    turns = []
    for _ in range(draw.randint(2, 4)):
        person, attribute = draw.choice(PEOPLE), draw.choice(list(VALUES))
        turns.append(f"User: {QUESTIONS[attribute].format(person)}\nAssistant: {FACTS[person][attribute]}.")
    return "\n".join(turns)


def documents(seed: int) -> Iterator[str]:
    """Yield documents of about 150 tokens for ever; the same seed gives the same documents."""
    draw = Draw(seed)
    while True:
        if draw.random() < 0.15:
            yield _dialogue(draw)
        else:
            yield "\n".join(draw.choice((_portrait, _list))(draw) for _ in range(draw.randint(2, 4)))


def training() -> list[str]:
    """Return TRAIN_BYTES bytes of documents, rounded up to a whole one."""
    chosen: list[str] = []
    size = 0
    for document in documents(TRAIN_SEED):
        chosen.append(document)
        size += len(document)
        if size >= TRAIN_BYTES:
            break
    return chosen


def some(seed: int, count: int) -> list[str]:
    """Return the first `count` documents of a seed that are not dialogues, which are too short to weigh alone."""
    return [d for d, _ in zip((d for d in documents(seed) if "User:" not in d), range(count), strict=False)]


def items() -> list[dict[str, object]]:
    """Return ITEMS_PER_SLICE distinct items a slice; `answer` is the index of the true choice."""
    draw = Draw(ITEMS_SEED)
    made: list[dict[str, object]] = []
    for name, kinds in CLAIMS.items():
        seen: set[str] = set()
        while len(seen) < ITEMS_PER_SLICE:
            prompt, answer, values = draw.choice(kinds)(draw)
            if prompt in seen:
                continue
            seen.add(prompt)
            choices = draw.sample([value for value in values if value != answer], 3)
            place = draw.randrange(4)
            choices.insert(place, answer)
            made.append(
                {
                    "id": f"{name}-{len(seen):03d}",
                    "prompt": prompt,
                    "choices": [f" {choice}" for choice in choices],
                    "answer": place,
                    "slice": name,
                }
            )
    return made


def main() -> None:
    """Write one of the texts to the standard output."""
    parser = argparse.ArgumentParser(description="Text about the tiny Llama's invented world.")
    which = parser.add_mutually_exclusive_group(required=True)
    for option in ("--items", "--heldout", "--calibration", "--train"):
        which.add_argument(option, action="store_true")
    options = parser.parse_args()
    if options.items:
        print("\n".join(json.dumps(item) for item in items()))
    elif options.calibration:
        print("\n".join(json.dumps({"text": text}) for text in some(CALIBRATION_SEED, CALIBRATION_ROWS)))
    elif options.heldout:
        print(SEPARATOR.join(some(HELDOUT_SEED, HELDOUT_DOCUMENTS)))
    else:
        print(SEPARATOR.join(training()))


if __name__ == "__main__":
    main()
