"""A command of the user's own scores an answer: it runs the code, checks the units, counts what matters."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantize.errors import DataError, MissingDependency
from quantize.record import Record, file_sha256
from quantize.scorers._sandbox import Ended, Sandbox, sandbox
from quantize.scoring import Given, Scored

__all__ = ["Command"]

#: Commands that run at the same time, at most.
_AT_ONCE = 8
_SCRIPTS = (".py", ".sh", ".js", ".rb", ".pl")
_SIGNALS = {int(number): number.name for number in signal.Signals}


class Command(Record):
    """`run` gets {"id", "prompt", "answer", "output"} as JSON on its standard input, and prints {"score": 0 to 1} last.

    `answer` is the item's, `output` what the model said; {"score": 0, "parsed": false} says that there is no answer in
    it. `python` is the program's own interpreter; a file that `run` or `files` names is looked for beside the recipe,
    and its bytes are part of the eval. It runs once for each answer, in a sandbox: an empty folder, no environment, no
    network, processes of its own, no sight of others and nothing else to write where the machine allows it (`sandbox:
    required` refuses one that does not), `memory_gb` for each process, and `timeout` seconds. Nothing keeps it from
    reading files.

    A command that never ends, or fails, costs that item its score; more than `errors_at_most` of them are a hard stop.
    """

    kind: Literal["command"] = "command"
    generates: ClassVar[bool] = True
    reads_lines: ClassVar[bool] = False
    run: Annotated[tuple[str, ...], Field(min_length=1)]
    files: tuple[str, ...] = ()
    timeout: Annotated[float, Field(gt=0, le=3600)] = 10.0
    memory_gb: Annotated[float, Field(ge=0.1)] = 2.0
    sandbox: Literal["best", "required"] = "best"
    errors_at_most: Annotated[float, Field(ge=0, lt=1)] = 0.05

    def identity(self) -> dict[str, Any]:
        """See `scoring.Scorer`: files by their bytes, wherever they lie."""
        self._check()
        config = self.model_dump(mode="json", exclude={"run", "files"})
        return {
            **config,
            "run": [_named(text) for text in self.run],
            "files": sorted((_named(text) for text in self.files), key=str),
        }

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`: what an answer is, only the command knows."""
        return None

    def lacking(self) -> str | None:
        """See `scoring.Scorer`: a sandbox that is required, and not to be had whole."""
        if self.sandbox == "best" or self._box().whole:
            return None
        return (
            f"this machine gives a command less of its own than `sandbox: required` asks for: {self._box().enforced()}"
            " (allow user namespaces here, kernel.unprivileged_userns_clone, and in a container a /proc that is not"
            " masked; or set `sandbox: best`)"
        )

    def held_in(self) -> str:
        """What this machine holds a command in, in words. It has to be the same for both arms of a comparison."""
        return self._box().enforced()

    def _box(self) -> Sandbox:
        return sandbox(int(self.memory_gb * 2**30), self.timeout)

    def open(self, kept: Path | None) -> Commands:
        """See `scoring.Scorer`. Raises MissingDependency where the sandbox is required and not to be had whole."""
        self._check()
        lacking, box = self.lacking(), self._box()
        if lacking is not None:
            raise MissingDependency(f"{lacking}.")
        return Commands([sys.executable if self.run[0] == "python" else self.run[0], *self.run[1:]], box)

    def _check(self) -> None:
        """Raise DataError for a program or a file that is not there."""
        first = self.run[0]
        if first != "python" and shutil.which(first) is None:
            raise DataError(f"there is no program {first!r} to score with.", where="scorer.run")
        scripts = [text for text in self.run[1:] if text.endswith(_SCRIPTS)]
        for text in (*scripts, *self.files):
            if not _is_file(text):
                raise DataError(
                    f"there is no file {text!r}.", where="scorer", fix="Paths are relative to the recipe's directory."
                )


class Commands:
    """See `scoring.Scoring`."""

    def __init__(self, command: Sequence[str], box: Sandbox) -> None:
        self._command = command
        self._box = box
        self._by = f"command; {box.enforced()}"
        self._pool = ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0))))

    def score(self, answers: Sequence[Given]) -> list[Scored]:
        """See `scoring.Scoring`."""
        return list(self._pool.map(self._score, answers))

    def close(self) -> None:
        """End what still runs."""
        self._pool.shutdown(cancel_futures=True)

    def _score(self, given: Given) -> Scored:
        asked = {"id": given.item, "prompt": given.prompt, "answer": given.target, "output": given.answer}
        ended = self._box.run(self._command, json.dumps(asked).encode())
        said = _said(ended)
        if isinstance(said, str):
            return Scored(0.0, given.answer.strip() or None, said, by=self._by)
        found = (given.answer.strip() or None) if said.get("parsed", True) else None
        return Scored(float(said["score"]), found, by=self._by)


def _named(text: str) -> str:
    path = Path(text)
    return f"{path.name} {file_sha256(path)}" if _is_file(text) else text


def _is_file(text: str) -> bool:
    # Not `Path.is_file`, which raises where a text can be the name of nothing: a program is written out in it.
    return os.path.isfile(text)  # noqa: PTH113


def _said(ended: Ended) -> dict[str, Any] | str:
    """What a command printed, or why that is worth nothing."""
    last = ([""] + [line for line in ended.errors.splitlines() if line.strip()])[-1][:300]
    why = f": {last}" if last else ""
    if ended.status is None:
        return "the command did not end in time"
    if ended.status < 0:
        return f"the command was ended by {_SIGNALS.get(-ended.status, f'signal {-ended.status}')}{why}"
    if ended.status != 0:
        return f"the command ended with status {ended.status}{why}"
    lines = [line for line in ended.output.splitlines() if line.strip()]
    try:
        read = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        read = None
    said: dict[str, Any] = read if isinstance(read, dict) else {}
    score = said.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1:
        shown = lines[-1][:100] if lines else "nothing"
        return f'the command printed {shown} last, and not {{"score": a number from 0 to 1}}'
    return said
