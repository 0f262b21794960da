"""A command that is told: the document on its standard input, the main facts in its environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from quantize.child import Child
from quantize.errors import QuantizeError
from quantize.notices._events import DEFAULT, What
from quantize.record import Record

__all__ = ["Command"]

#: The guard gives its command no input; the shell opens the file and becomes the command.
_READING = ("/bin/sh", "-c", 'exec "$@" < "$0"')


class Command(Record):
    """Runs `run` in a folder of its own. One that takes longer than `seconds` is ended, with all that it started.

    Its first word is found on PATH, or is a path: a relative one is relative to the recipe's directory.
    """

    kind: Literal["command"] = "command"
    run: Annotated[tuple[str, ...], Field(min_length=1)]
    on: list[What] = Field(default_factory=lambda: list(DEFAULT), min_length=1)
    seconds: Annotated[float, Field(gt=0, le=600)] = 30

    @property
    def shown(self) -> str:
        """How it is spoken of: without its arguments, which may hold what is nobody's business."""
        return f"command {Path(self.run[0]).name}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """See `protocols.Notifier`."""
        return ()

    def send(self, document: str, facts: Mapping[str, str]) -> None:
        """See `protocols.Notifier`."""
        with tempfile.TemporaryDirectory(prefix="quantize-notice-") as scratch:
            file = Path(scratch) / "notice.json"
            file.write_text(document, encoding="utf-8")
            command = [*_READING, str(file), *self.run]
            log = Path(scratch) / "log"
            with Child(command, log, env={**os.environ, **facts}, what=self.shown) as child:
                if not child.gone(self.seconds):
                    raise QuantizeError(f"it did not end within {self.seconds:g} seconds and was stopped.")
                if child.returncode != 0:
                    raise QuantizeError(
                        f"it ended with status {child.returncode}: {child.tail(3) or 'it said nothing'}"
                    )
