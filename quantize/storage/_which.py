"""From an address to the place that it names."""

from __future__ import annotations

from pathlib import Path

from quantize.storage._address import parts
from quantize.storage._bucket import Bucket, filesystem
from quantize.storage._folder import Folder
from quantize.storage.place import Place

__all__ = ["at"]


def at(uri: str) -> Place:
    """The place of an address; nothing is asked of it yet.

    Raises StorageError for what is no address, MissingDependency where the bucket's library is not installed.
    """
    scheme, bucket, path = parts(uri)
    if scheme == "file":
        return Folder(Path(path))
    return Bucket(scheme, bucket, path, filesystem(scheme))
