"""Many files to a place and from it, several at once; the seal last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

from quantize import faults
from quantize.artifact import FileEntry
from quantize.errors import StorageError
from quantize.handed import Progress
from quantize.storage.place import Place, Tick

__all__ = ["fetch", "publish"]

#: Files under way at once.
_FILES = 3
_OTHER = "Nothing was overwritten. Find out who wrote it and remove it, or name another place."


def publish(
    place: Place, under: str, directory: Path, files: Sequence[FileEntry], seal: tuple[str, bytes], progress: Progress
) -> bytes:
    """Put the `files` of `directory` into the folder `under`, then the seal (its name and bytes).

    Returns the seal that is there: this one, or an earlier one, which the caller compares. What is there already, with
    the same size and digest, is not sent again. Raises StorageError, also for an object that is another one.
    """
    name, text = seal
    before = place.read(f"{under}/{name}")
    missing = [file for file in files if not _is_there(place, under, file, sealed=before is not None)]

    def put(file: FileEntry, tick: Tick) -> None:
        if not place.put(f"{under}/{file.path}", directory / file.path, file.sha256, tick):
            _is_there(place, under, file, sealed=False)  # somebody was faster
        faults.point("storage.put")

    _all(missing, put, lambda done, total: progress("sending", done, total))
    if before is not None and not missing:
        return before
    faults.point("storage.files")
    made = before is None and place.create(f"{under}/{name}", text)
    faults.point("storage.sealed")
    place.tidy(under)  # not earlier: who is at it beside us finds all files there now, and needs none of its parts
    return text if made else before or place.read(f"{under}/{name}") or b""


def fetch(place: Place, files: Sequence[FileEntry], out: Path, progress: Progress) -> None:
    """Copy `files` into the new folder `out`. Whoever asked compares their digests.

    Raises StorageError; what is in `out` then is worth nothing.
    """

    def get(file: FileEntry, tick: Tick) -> None:
        path = out / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        place.get(file.path, path, tick)

    out.mkdir()
    _all(files, get, lambda done, total: progress("fetching", done, total))


def _is_there(place: Place, under: str, file: FileEntry, *, sealed: bool) -> bool:
    """Whether a file is there already. Raises StorageError where another one is.

    Under a seal its size is enough. Without one, an object that says nothing of its digest is read.
    """
    name = f"{under}/{file.path}"
    found = place.find(name)
    if found is None:
        return False
    differs = found.size != file.size or found.sha256 not in (None, file.sha256)
    if differs or (found.sha256 is None and not sealed and place.sha256(name) != file.sha256):
        raise StorageError(
            f"another file is there already: {found.size} bytes, and {file.size} bytes with sha256 {file.sha256[:12]} "
            "belong there.",
            where=f"{place.uri}/{name}",
            fix=_OTHER,
        )
    return True


class _Ended(Exception):
    """Another file failed, or somebody asked to stop: this one goes no further."""


def _all(
    files: Sequence[FileEntry], move: Callable[[FileEntry, Tick], None], tell: Callable[[float, float], None]
) -> None:
    """Move every file, a few at once, the large ones first. Raises what the first failure raised."""
    total, done, lock, ended = float(sum(file.size for file in files)), 0.0, Lock(), False

    def tick(new: int) -> None:
        nonlocal done
        if ended:
            raise _Ended
        with lock:
            done += new
            tell(min(done, total), total)

    pool = ThreadPoolExecutor(max_workers=_FILES, thread_name_prefix="quantize-transfer")
    try:
        tasks = [pool.submit(move, file, tick) for file in sorted(files, key=lambda file: -file.size)]
        finished, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        _raise_first(finished)
    finally:
        ended = True
        pool.shutdown(cancel_futures=True)


def _raise_first(tasks: set[Future[None]]) -> None:
    for task in tasks:
        task.result()
