"""`python -m quantize.worker STAGE.json`: runs exactly one stage and commits it, in any environment.

The process owns its memory and its device: both are free again when it ends, however it ends. It says what it is doing
as JSON lines on the descriptor that STAGE.json names; whatever the libraries print goes to its standard output and
error, which the executor points at the stage's log. It holds the stage's lease by an inherited descriptor and beats
for it, so a stage whose driver was killed still finishes and commits, and nobody starts it twice; one that another node
has taken over ends.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from quantize import faults
from quantize.artifact import Provenance
from quantize.errors import Interrupted, LeaseLost, QuantizeError
from quantize.handed import Host
from quantize.leases import Lease, beating
from quantize.parts import StoreParts
from quantize.store import FULL_DISK, Store, writing

__all__ = ["main"]

_INTERVAL_SECONDS = 0.2


class Events:
    """JSON lines to the driver. A driver that is gone is no reason to stop."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = 0.0
        self._own: tuple[str, float, float] | None = None

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Tell the driver how far the stage is."""
        self._own = (what, done, total) if total is not None else None
        self._tell(what, done, total)

    def inside(self, what: str, done: float, total: float | None) -> None:
        """Tell it how far a library is. Where the stage counts itself, that stays the bar and this a remark on it."""
        if self._own is None:
            self._tell(what, done, total)
        else:
            own, mine, all_ = self._own
            of = f"/{total:g}" if total is not None else ""
            self._tell(f"{own}, {what} {done:g}{of}", mine, all_)

    def _tell(self, what: str, done: float, total: float | None) -> None:
        """Send it, at most a few times a second."""
        now = time.monotonic()
        if now - self._last >= _INTERVAL_SECONDS or (total is not None and done >= total):
            self._last = now
            self.send({"progress": [what, done, total]})

    def send(self, event: dict[str, Any]) -> None:
        """Write one event; the pipe takes lines up to 4 KiB whole."""
        try:
            os.write(self._descriptor, (json.dumps(event) + "\n").encode())
        except (BrokenPipeError, OSError):
            return


def carry_tqdm(progress: Callable[[str, float, float | None], None]) -> None:
    """Carry the libraries' own progress bars to the driver: nearly all of them draw through `tqdm.std.tqdm`."""
    from tqdm.std import tqdm

    original = tqdm.update

    def update(self: Any, n: float = 1) -> bool | None:
        shown = original(self, n)
        if not self.disable:
            progress(str(self.desc or "").strip(": "), self.n, self.total)
        return bool(shown)

    def display(self: Any, *_: Any, **__: Any) -> bool:
        progress(str(self.desc or "").strip(": "), self.n, self.total)
        return True

    tqdm.update = update
    tqdm.display = display


def run(job: dict[str, Any], events: Events, lease: Lease) -> None:
    """Run the stage that `job` describes and commit what it made."""
    from quantize.stages import STAGES, Work

    store = Store(Path(job["store"]))
    started = time.monotonic()
    lease.check()
    draft = store.draft(job["kind"], job["key"], lease)

    @contextmanager
    def parts(base: str, name: str) -> Iterator[StoreParts]:
        with store.lease("parts", base, lambda _owner: events.progress("waiting for the same evaluation", 0, None)):
            yield StoreParts(store, base, name, lambda seconds: _provenance(seconds, job["libraries"]))

    work = Work(
        inputs={name: Path(path) for name, path in job["inputs"].items()},
        out=draft,
        device=job["device"],
        progress=events.progress,
        parts=parts,
        host=Host(
            interpreters={name: Path(path) for name, path in job["interpreters"].items()},
            log=Path(job["logs"]),
            threads=job["threads"],
        ),
    )
    carry_tqdm(events.inside)
    with writing(draft):
        faults.point("worker.started")
        summary = STAGES[job["kind"]].run(job["config"], work)
    faults.point("worker.made")
    store.commit(
        draft,
        kind=job["kind"],
        name=job["name"],
        key=job["key"],
        inputs=job["input_keys"],
        summary=summary,
        provenance=_provenance(time.monotonic() - started, job["libraries"]),
        lease=lease,
    )


def _provenance(seconds: float, libraries: list[str]) -> Provenance:
    """Where, when and with what something was made, in how many seconds."""
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        seconds=round(seconds, 3),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        python=platform.python_version(),
        libraries={name: metadata.version(name) for name in libraries},
    )


class _Stop:
    """What SIGTERM does: the stage ends, as one that was asked to or as one that another node has taken over."""

    def __init__(self) -> None:
        self._why: QuantizeError = Interrupted("stopped by a signal.")

    def lost(self, error: LeaseLost) -> None:
        """End it from another thread."""
        self._why = error
        os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        raise self._why


def main(arguments: list[str], events: int | None = None) -> int:
    """Entry point. Exit 0 when the stage is committed; otherwise an `error` event says why.

    A process that was forked has the pipe for `events` under another number than its driver, who wrote STAGE.json.
    """
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    return _ended(job, Events(job["events"] if events is None else events))


def _ended(job: dict[str, Any], events: Events) -> int:
    """Run the stage; its exit code."""
    stop, lease = _Stop(), Lease.inherited(job["lease"])
    signal.signal(signal.SIGTERM, stop)
    try:
        with beating(lease, stop.lost):
            run(job, events, lease)
    except QuantizeError as error:
        traceback.print_exc()
        events.send({"error": {"what": error.what, "where": error.where, "fix": error.fix}})
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the boundary of the process: everything else becomes a line in the driver)
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        # Some libraries wrap the operating system's refusal in an error of their own.
        full = FULL_DISK if os.strerror(errno.ENOSPC) in str(error) else None
        events.send({"error": {"what": f"{type(error).__name__}: {lines[0][:500]}", "where": None, "fix": full}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
