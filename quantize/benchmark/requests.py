"""What is asked: the user's own prompts or synthetic ones, as one fixed list of requests.

The list is written before anything is sent, and both arms get the same requests in the same order. No two begin alike,
so that no server answers one with the work that it did for another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.benchmark.blockfile import REQUESTS_FILE
from quantize.benchmark.prompts import Prompt, load_prompts
from quantize.benchmark.synthetic import Writer, open_tokenizer, token_ids
from quantize.errors import DataError, UsageError
from quantize.record import Record, digest
from quantize.served import Request

__all__ = ["Prompts", "RequestsConfig", "Shape", "Synthetic", "Written", "read"]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: `requests`, the tokens of the `longest` with its answer, and a `note` that a reader needs."""

    requests: int
    longest: int
    note: str | None = None


class Shape(Record):
    """Tokens of a prompt and of its answer."""

    input: Annotated[int, Field(ge=1)]
    output: Annotated[int, Field(ge=2)]


class Synthetic(Record):
    """Prompts of exact lengths in the model's own tokens, the shapes in turn."""

    kind: Literal["synthetic"] = "synthetic"
    shapes: Annotated[list[Shape], Field(min_length=1)] = Field(
        default_factory=lambda: [Shape(input=512, output=128), Shape(input=2048, output=256)]
    )

    def identity(self) -> dict[str, Any]:
        """What goes into the key."""
        return self.model_dump(mode="json")

    def longest(self) -> int:
        """Tokens of the longest request, its answer included."""
        return max(shape.input + shape.output for shape in self.shapes)

    def check(self, context: int | None) -> None:
        """Raises UsageError naming the first shape that does not fit into `context` tokens (None: not known)."""
        for place, shape in enumerate(self.shapes):
            if context is not None and shape.input + shape.output > context:
                raise UsageError(
                    f"a prompt of {shape.input:,} tokens and its answer of {shape.output:,} are "
                    f"{shape.input + shape.output:,}, over the {context:,} that the model takes.",
                    where=f"benchmark.requests.shapes.{place}",
                    fix="Take a shorter shape.",
                )

    def write(self, out: Path, tokenizer: Path, count: int, seed: int, context: int | None = None) -> Written:
        """Write `count` requests into the folder `out`; `tokenizer` is a checkpoint's directory. Raises DataError."""
        self.check(context)
        writer = Writer(open_tokenizer(tokenizer), seed)
        requests = []
        for place in range(count):
            turn = place % len(self.shapes)
            shape = self.shapes[turn]
            text = writer.write(shape.input, f"benchmark.requests.shapes.{turn}")
            requests.append(Request(_name(place), text, shape.input, shape.output))
        return _write(out, requests)


class Prompts(Record):
    """The user's own: JSON lines with `prompt` and, where it should not be `output_tokens`, `output_tokens`.

    They are asked in an order drawn by the seed; each again where more are needed, and then with a mark like `[2] ` in
    front, so that no two begin alike.
    """

    kind: Literal["prompts"] = "prompts"
    path: Path
    output_tokens: Annotated[int, Field(ge=2)] = 128

    def identity(self) -> dict[str, Any]:
        """What goes into the key: the prompts, whatever their file is called. Raises DataError for bad lines."""
        asked = [[prompt.text, self._answer(prompt)] for prompt in load_prompts(self.path)]
        return {"kind": self.kind, "prompts": digest(asked)}

    def longest(self) -> int:
        """Tokens that the longest request has at least: its answer and one. The prompts are counted by `write`."""
        return 1 + max(self._answer(prompt) for prompt in load_prompts(self.path))

    def check(self, context: int | None) -> None:
        """Raises DataError naming the first line whose answer alone does not fit into `context` tokens, or a bad line.

        Prompts are counted by `write`, which has the tokenizer.
        """
        for prompt in load_prompts(self.path):
            self._fits(prompt, 1, context)

    def write(self, out: Path, tokenizer: Path, count: int, seed: int, context: int | None = None) -> Written:
        """Write `count` requests into the folder `out`; `tokenizer` is a checkpoint's directory. Raises DataError."""
        prompts = load_prompts(self.path)
        ids = token_ids(open_tokenizer(tokenizer))
        for prompt in prompts:
            self._fits(prompt, len(ids(prompt.text)), context)
        order = random.Random(seed)  # noqa: S311 - nothing secret
        used: set[str] = set()
        marked = 0
        requests: list[Request] = []
        while len(requests) < count:
            # Whole rounds, each in an order of its own: no prompt is asked much more often than another.
            for prompt in order.sample(prompts, k=min(len(prompts), count - len(requests))):
                text = _marked(prompt.text, used)
                used.add(text)
                marked += text != prompt.text
                length = len(ids(text))
                self._fits(prompt, length, context)
                requests.append(Request(_name(len(requests)), text, length, self._answer(prompt)))
        note = None
        if marked:
            note = (
                f"{self.path.name} holds {len({p.text for p in prompts}):,} prompts and {count:,} requests are sent: "
                f"{marked:,} of them repeat a prompt, with a mark like '[2] ' in front"
            )
        return _write(out, requests, note)

    def _answer(self, prompt: Prompt) -> int:
        return self.output_tokens if prompt.output_tokens is None else prompt.output_tokens

    def _fits(self, prompt: Prompt, length: int, context: int | None) -> None:
        answer = self._answer(prompt)
        if context is not None and length + answer > context:
            raise DataError(
                f"the prompt has {length:,} tokens and its answer {answer:,}, together {length + answer:,}, over the "
                f"{context:,} that the model takes.",
                where=prompt.where,
                fix="Shorten the prompt, or ask for fewer output_tokens.",
            )


RequestsConfig = Annotated[Synthetic | Prompts, Field(discriminator="kind")]


def read(path: Path) -> list[Request]:
    """The requests of a `requests.jsonl`, in their order. Raises DataError naming file:line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the requests cannot be read ({error}).", where=str(path)) from None
    requests = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            requests.append(Request(**json.loads(line)))
        except (ValueError, TypeError):
            raise DataError(
                "this line is no request.",
                where=f"{path}:{number}",
                fix="The file was changed: remove the artifact and run again.",
            ) from None
    return requests


def _name(place: int) -> str:
    return f"r{place:05}"


def _marked(text: str, used: set[str]) -> str:
    """The text, with a mark in front where it was asked already."""
    found, times = text, 1
    while found in used:
        times += 1
        found = f"[{times}] {text}"
    return found


def _write(out: Path, requests: Sequence[Request], note: str | None = None) -> Written:
    lines = [json.dumps(asdict(request), ensure_ascii=False) + "\n" for request in requests]
    (out / REQUESTS_FILE).write_text("".join(lines), encoding="utf-8")
    longest = max((request.input_tokens + request.output_tokens for request in requests), default=0)
    return Written(len(requests), longest, note)
