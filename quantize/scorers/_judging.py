"""Asking a judge: many answers at once, each once, every score kept as it comes."""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantize.errors import DataError, QuantizeError
from quantize.record import digest
from quantize.scorers._chat_client import ChatClient, RequestRefused
from quantize.scoring import Given, Scored

__all__ = ["Judging", "Rules", "compiled"]

#: Seconds that finding a score in a reply may take.
_READING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """How a judge is asked and read; see `judge.Judge`. `template` is the digest of what it is asked."""

    url: str
    key: str | None
    body: dict[str, Any]
    template: str
    ask: Callable[[str, str, str], str]
    reply: Any
    scale: tuple[float, float]
    version: str | None
    by_fingerprint: bool
    timeout: float
    retries: int
    at_once: int


class Judging:
    """See `scoring.Scoring`. Scores are kept in the file `kept`, by the digest of judge, question and answer."""

    def __init__(self, rules: Rules, kept: Path | None, judge: str) -> None:
        self._rules = rules
        self._kept = kept
        self._judge = judge
        self._known = _read(kept) if kept is not None else {}
        self._served = bool(self._known)
        self._writing = threading.Lock()
        self._client = ChatClient(rules.url, rules.key, rules.timeout, rules.retries)
        self._pool = ThreadPoolExecutor(rules.at_once)

    def score(self, answers: Sequence[Given]) -> list[Scored]:
        """See `scoring.Scoring`. A request that is refused is a problem of its item once any was answered.

        Raises EngineLost where the judge does not answer, DataError where it refuses whoever asks, or every request.
        """
        keys = [digest([self._judge, given.prompt, given.target, given.answer]) for given in answers]
        new = {key: given for key, given in zip(keys, answers, strict=True) if key not in self._known}
        tasks = [self._pool.submit(self._judged, key, given) for key, given in new.items()]
        try:
            refused = [error for task in tasks if (error := task.result()) is not None]
            if refused and not self._served:
                raise refused[0]
        except BaseException:
            # The others stop at their next pause; what they have got by then is kept.
            self._client.stop()
            for task in tasks:
                task.cancel()
            raise
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """Ask no more."""
        self._client.stop()
        self._pool.shutdown(cancel_futures=True)

    def _judged(self, key: str, given: Given) -> RequestRefused | None:
        """Judge one answer; returns the refusal of a request that the judge does not answer."""
        content = self._rules.ask(given.prompt, given.target, given.answer)
        try:
            reply = self._client.ask({**self._rules.body, "messages": [{"role": "user", "content": content}]})
        except RequestRefused as error:
            # Known to this stage alone: nothing was paid for it, and another day it may be judged.
            self._known[key] = Scored(0.0, given.answer.strip() or None, error.what.rstrip("."))
            return error
        self._keep(key, self._read(given, reply))
        return None

    def _read(self, given: Given, reply: dict[str, Any]) -> Scored:
        """The score in a reply. Raises QuantizeError for one by another version than the recipe names."""
        who = str(reply.get("model") or "a model without a name")
        if self._rules.by_fingerprint and reply.get("system_fingerprint"):
            who = f"{who} {reply['system_fingerprint']}"
        if self._rules.version is not None and who != self._rules.version:
            raise QuantizeError(
                f"the judge is {who!r} now, and the recipe names {self._rules.version!r}.",
                where=self._rules.url,
                fix="Set the scorer's `version` to it, so that both arms are judged anew.",
            )
        by = f"judge {who}, template {self._rules.template[:12]}"
        text = _content(reply, self._rules.url)
        found = given.answer.strip() or None
        low, high = self._rules.scale
        value = _number(self._rules.reply, text)
        if value is None or not low <= value <= high:
            shown = " ".join(text.split())[-80:]
            problem = f"the judge's reply has no score from {low:g} to {high:g}: …{shown!r}"
            return Scored(0.0, found, problem, by=by)
        return Scored((value - low) / (high - low), found, by=by)

    def _keep(self, key: str, scored: Scored) -> None:
        with self._writing:
            self._known[key] = scored
            self._served = True
            if self._kept is None:
                return
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": key, **asdict(scored)}, ensure_ascii=True)
            with self._kept.open("a+b") as file:
                # Two stages may judge at the same time; a line that a kill has cut is ended first.
                fcntl.flock(file, fcntl.LOCK_EX)
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    line = line if file.read(1) == b"\n" else f"\n{line}"
                file.write(f"{line}\n".encode())


def compiled(pattern: str) -> Any:
    """A pattern of one group. Raises ValueError."""
    import regex

    try:
        found = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if found.groups != 1:
        raise ValueError(f"{pattern!r} has {found.groups} groups: what the one group ( ) matches is read")
    return found


def _read(path: Path) -> dict[str, Scored]:
    """What was judged before; a line that was cut off by a kill is not there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            key = str(row.pop("key"))
            found[key] = Scored(**row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _content(reply: dict[str, Any], url: str) -> str:
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise DataError(
            "the judge's reply is none of OpenAI's chat completions.", where=url, fix="Check the scorer's url."
        ) from None
    return content if isinstance(content, str) else ""


def _number(pattern: Any, text: str) -> float | None:
    try:
        match = pattern.search(text.strip(), timeout=_READING_SECONDS)
        value = float(match[1]) if match is not None and match[1] is not None else math.nan
    except (TimeoutError, ValueError):
        return None
    return value if math.isfinite(value) else None
