"""A bucket, by fsspec: s3fs and gcsfs. Their own environment variables say who asks and at which endpoint.

An object appears when all of it is there, by the storage's own rules. That its name is free is a condition of the
request (`If-None-Match: *`, or generation 0). Where a storage refuses conditions or pays them no heed, somebody else
may put the same name between our look and our write, which changes nothing where names hold their content's digest.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import MissingDependency, StorageError
from quantize.storage._address import words
from quantize.storage.place import Found, Tick

__all__ = ["Bucket", "filesystem"]

_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}
#: What an object's own metadata calls the digest of its bytes.
_DIGEST = "sha256"
#: Bytes of a part, and parts of one file that are under way at once. Both are in memory together.
_PIECE, _PARTS = 50 << 20, 4
_CONNECT_SECONDS = 10
_NO_ACCESS = "Give the storage's environment variables the rights to read, write and list there."
_AWAY = "Check the address, the endpoint ({}) and the network; the same command then goes on."
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


def filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme, without caches. Raises MissingDependency where it is not installed."""
    library = _LIBRARIES[scheme]
    if importlib.util.find_spec(library) is None:
        raise MissingDependency(
            f"{scheme}:// needs the package {library}.",
            fix=f"Run: pip install 'quantize[{scheme}]' -c constraints.txt",
        )
    import fsspec

    for name in (library, "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log is raised, too
    options = {"config_kwargs": {"connect_timeout": _CONNECT_SECONDS}} if scheme == "s3" else {}
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)


@dataclass(frozen=True, slots=True)
class Bucket:
    """See `Place`. `prefix` is the path in the bucket; empty for the whole of it."""

    scheme: str
    bucket: str
    prefix: str
    fs: Any

    @property
    def uri(self) -> str:
        """See `Place`."""
        return f"{self.scheme}://{self._path('')}".rstrip("/")

    def find(self, name: str) -> Found | None:
        """See `Place`."""
        with self._reached(name):
            return self._found(name)

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        with self._reached(name):
            try:
                return bytes(self.fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def sha256(self, name: str) -> str:
        """See `Place`."""
        state = hashlib.sha256()
        with self._reached(name), self.fs.open(self._path(name), "rb", cache_type="readahead") as file:
            while piece := file.read(1 << 22):
                state.update(piece)
        return state.hexdigest()

    def put(self, name: str, source: Path, sha256: str, tick: Tick) -> bool:
        """See `Place`."""
        options: dict[str, Any] = {"chunksize": _PIECE}
        labels = {_DIGEST: sha256}
        options |= {"Metadata": labels, "max_concurrency": _PARTS} if self.scheme == "s3" else {"metadata": labels}

        def put(mode: str) -> None:
            self.fs.put_file(str(source), self._path(name), callback=_callback(tick), mode=mode, **options)

        return self._made(name, put)

    def create(self, name: str, data: bytes) -> bool:
        """See `Place`. Looked for first: there are storages that take a condition and pay it no heed."""
        if self.find(name) is not None:
            return False
        return self._made(name, lambda mode: self.fs.pipe_file(self._path(name), data, mode=mode))

    def get(self, name: str, out: Path, tick: Tick) -> None:
        """See `Place`."""
        options = {"chunksize": _PIECE, "max_concurrency": _PARTS} if self.scheme == "s3" else {}
        with self._reached(name):
            self.fs.get_file(self._path(name), str(out), callback=_callback(tick), **options)

    def probe(self, name: str) -> None:
        """See `Place`. Who may write and not delete leaves the probe there, each time the same."""
        with self._reached(name):
            path = self._path(name)
            self._found(name)  # who may not list is refused here, as long as it is not there
            self.fs.pipe_file(path, b"quantize asks whether it may write here\n")
            if self._found(name) is None:
                raise FileNotFoundError("what was written a moment ago")
            with suppress(PermissionError):
                self.fs.rm_file(path)

    def tidy(self, under: str) -> None:
        """See `Place`. Parts of an upload that was never completed are paid for and not listed."""
        if self.scheme != "s3":
            return
        with suppress(*_failures(self.scheme)):
            prefix = self._path(under).removeprefix(f"{self.bucket}/")
            listed = self.fs.call_s3("list_multipart_uploads", Bucket=self.bucket, Prefix=f"{prefix}/")
            for left in listed.get("Uploads", []):
                self.fs.call_s3(
                    "abort_multipart_upload", Bucket=self.bucket, Key=left["Key"], UploadId=left["UploadId"]
                )

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self.bucket, self.prefix, name) if part)

    def _found(self, name: str) -> Found | None:
        path = self._path(name)
        try:
            if self.scheme != "s3":
                known = self.fs.info(path)
                return Found(int(known["size"]), (known.get("metadata") or {}).get(_DIGEST))
            # Its `info` says nothing of metadata, and asks for a folder of that name besides.
            head = self.fs.call_s3("head_object", Bucket=self.bucket, Key=path.removeprefix(f"{self.bucket}/"))
            return Found(int(head["ContentLength"]), head.get("Metadata", {}).get(_DIGEST))
        except FileNotFoundError:
            return None

    def _made(self, name: str, make: Callable[[str], None]) -> bool:
        with self._reached(name):
            try:
                make("create")
            except _failures(self.scheme) as error:
                if self._found(name) is not None:
                    return False
                if getattr(error, "errno", None) != errno.ENOSYS:
                    raise
                make("overwrite")
        return True

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """What the libraries raise as StorageError."""
        where = f"{self.scheme}://{self._path(name)}"
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(
                f"there is no such bucket or object ({words(error)}).", where=where, fix="Check the address."
            ) from error
        except PermissionError as error:
            raise StorageError(f"access is refused ({words(error)}).", where=where, fix=_NO_ACCESS) from error
        except _failures(self.scheme) as error:
            mend = _AWAY.format(_ENDPOINTS[self.scheme])
            raise StorageError(f"the storage does not do it: {words(error)}", where=where, fix=mend) from error


def _failures(scheme: str) -> tuple[type[BaseException], ...]:
    """What a library may raise that is no fault of ours."""
    from aiohttp import ClientError

    if scheme == "s3":
        from botocore.exceptions import BotoCoreError

        return OSError, ClientError, BotoCoreError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return OSError, ClientError, HttpError, GoogleAuthError


def _callback(tick: Tick) -> Any:
    """An fsspec callback that tells `tick` of new bytes, however the library counts."""
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        told = 0

        def call(self, hook_name: str | None = None, **_: Any) -> None:
            new, self.told = self.value - self.told, self.value
            tick(new)

    return Counting()
