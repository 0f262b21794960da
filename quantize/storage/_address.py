"""Addresses of places: what they may say, and what they may not."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from quantize.errors import StorageError

__all__ = ["SCHEMES", "address_problem", "parts", "words"]

SCHEMES = ("s3", "gs", "file")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FORMS = "write s3://bucket/prefix, gs://bucket/prefix or file:///absolute/folder"
_THREE_SLASHES = "write a folder of this machine with three slashes: file:///absolute/folder"
_ELSEWHERE = "the storage's own environment variables say"
_NO_CREDENTIALS = (
    f"an address holds no credentials: {_ELSEWHERE} them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
    "GOOGLE_APPLICATION_CREDENTIALS)"
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"\?[^\s\"']*")


def address_problem(uri: str) -> str | None:
    """Why `uri` is no address of a place, or None. It repeats nothing of the address: there may be a secret in it."""
    try:
        split = urlsplit(uri)
    except ValueError:
        return "this is no address"
    folder = split.scheme == "file"
    names = split.path.removeprefix("/").removesuffix("/").split("/")
    rules = (
        (split.scheme not in SCHEMES or "://" not in uri, _FORMS),
        ("@" in split.netloc, _NO_CREDENTIALS),
        ("?" in uri or "#" in uri, f"an address has neither a query nor a fragment: {_ELSEWHERE} the rest"),
        (folder and (bool(split.netloc) or not split.path.startswith("/")), _THREE_SLASHES),
        (not folder and not _BUCKET.fullmatch(split.netloc), f"write a bucket's name behind {split.scheme}://"),
        (names != [""] and bool({"", ".", ".."} & set(names)), "an address has no empty and no dotted parts"),
    )
    return next((sentence for wrong, sentence in rules if wrong), None)


def parts(uri: str) -> tuple[str, str, str]:
    """Scheme, bucket (empty for a folder) and path of an address. Raises StorageError for what is none."""
    problem = address_problem(uri)
    if problem:
        raise StorageError(f"{problem}.", where="the address of the storage")
    split = urlsplit(uri)
    if split.scheme == "file":
        return "file", "", str(PurePosixPath(unquote(split.path)))
    return split.scheme, split.netloc, split.path.strip("/")


def words(error: BaseException) -> str:
    """The first line of a library's error, without credentials and without queries, which may sign a request."""
    lines = str(error).splitlines() or [type(error).__name__]
    return _QUERY.sub("", _CREDENTIALS.sub("", lines[0]))[:300]
