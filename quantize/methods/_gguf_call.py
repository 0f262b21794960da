"""Call llama.cpp in its environment: one script, one job as JSON, its progress read from its own log."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantize.child import Child, died
from quantize.errors import MissingDependency
from quantize.handed import Host, Progress

__all__ = ["ENVIRONMENT", "call", "write_job"]

ENVIRONMENT = "llamacpp"

_POLL_SECONDS = 0.2
#: `[  3/ 290]` is llama.cpp's, ` 45%|` the converter's.
_STEP = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_PERCENT = re.compile(r"(\d+)%\|")

_KNOWN = {
    r"Missing importance matrix|requires an importance matrix|without an importance matrix|imatrix is required": (
        "this type needs an importance matrix for every tensor that it is used for: set imatrix: true"
    ),
    r"BPE pre-tokenizer was not recognized": (
        "llama.cpp has no pre-tokenizer that cuts text as this model's tokenizer does: it cannot be served as GGUF"
    ),
    r"Model (\S+) is not supported": "llama.cpp's converter does not know this architecture",
    r"did not find weights|imatrix size \d+ is different": (
        "the importance matrix is of another model: its shapes differ from this one's"
    ),
    r"failed to parse regex|regex_error": "a pattern in tensor_types is not a regular expression",
}


def call(host: Host, script: str, arguments: Sequence[str | Path], *, what: str, progress: Progress) -> None:
    """Run `script` (a file of this package) with the environment's interpreter to its end.

    Raises MissingDependency without the environment, and QuantizeError with the log's tail when the child fails.
    """
    if ENVIRONMENT not in host.interpreters:
        raise MissingDependency(
            f"the environment {ENVIRONMENT} is not here.", fix=f"Run: quantize env create {ENVIRONMENT}"
        )
    # Isolated: the script's own directory has modules that are called like the libraries which it needs.
    command = [host.interpreters[ENVIRONMENT], "-I", Path(__file__).with_name(script), *arguments]
    log = host.log / f"{Path(script).stem.removeprefix('_gguf_child_')}.log"
    # Threads that wait for each other by spinning took nine times as long on a machine whose cores were in use.
    env = {"OMP_WAIT_POLICY": "passive", **os.environ}
    with Child(command, log, env=env, what=what) as child:
        while child.running:
            done = _progress(child.tail(3))
            progress(what, *(done or (0, None)))
            time.sleep(_POLL_SECONDS)
        if child.returncode != 0:
            raise died(child, _KNOWN)


def write_job(folder: Path, job: Mapping[str, Any]) -> Path:
    """`job` as a file that a child script is given."""
    path = folder / "job.json"
    path.write_text(json.dumps(dict(job)), encoding="utf-8")
    return path


def _progress(text: str) -> tuple[int, int] | None:
    """(done, total) of the last progress in `text`."""
    steps, percents = _STEP.findall(text), _PERCENT.findall(text)
    if steps:
        return int(steps[-1][0]), int(steps[-1][1])
    return (int(percents[-1]), 100) if percents else None
