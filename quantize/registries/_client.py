"""One MLflow client per address: quiet, quick to give up, and with errors that a user can act on."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from quantize.errors import RegistryAway, RegistryError

__all__ = ["asking", "database_file", "public", "sanitize"]

#: What MLflow reads from the environment; whatever the user has set counts. Its retries wait about 30 seconds (0, 2, 4,
#: 8 and 16): a server that is started anew costs no release, and a lock, which holds for 60, is not lost meanwhile.
#: MLflow's own seven wait for minutes. The addresses of runs would be printed on stdout, which belongs to `--json`.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
#: Seconds to connect, and to wait for the first answer.
_PATIENCE = (5.0, 20.0)
_SQLITE = "sqlite:///"
_REFUSED = re.compile(r"[^\w\-. /]")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
#: How requests says, inside MLflow's own words, that nobody answered.
_CUT_OFF = ("failed with exception", "Max retries", "Connection aborted", "Connection refused", "Connection broken")
#: How requests and urllib3 tell what a server, or a proxy in front of it, answered instead of doing its work.
_STATUS = re.compile(r"\b([45]\d\d) (?:Client|Server) Error|too many ([45]\d\d) error responses")
#: Of those, the ones by which a proxy says that the server behind it is away.
_AWAY = ("502", "503", "504")
#: How SQLAlchemy, and MLflow after it, quote the database.
_STORAGE = re.compile(r"\(sqlite3\.\w*Error\) ([^\n]+)")
_KEY_LENGTH = 250
_UNREACHABLE = "Check the address and that the server runs; the same command then releases what was measured."
_TOO_LARGE = "Let the proxy in front of the server take files as large as the weights; the same command then releases."
_NO_ACCESS = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
_NO_RIGHT = (
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, say who asks: that user needs "
    "EDIT on the registered model, on its journal and on the experiment."
)
_clients: dict[str, Any] = {}


@contextmanager
def asking(uri: str) -> Iterator[Any]:
    """An `MlflowClient` for the time of a `with`, within which everything MLflow raises becomes a RegistryError.

    The first use imports MLflow (about a second) and makes sure that somebody answers. So does the first one after
    nobody did: what is then tried besides, to close runs or to give a lock back, does not wait once more.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Also silences what alembic says while MLflow lays out a new database, and the errors that are raised here as well.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    _check(uri)
    try:
        if uri not in _clients:
            _clients[uri] = _client(uri)
        yield _clients[uri]
    except (MlflowException, RequestException) as error:
        translated = _translated(error, uri)
        if isinstance(translated, RegistryAway):
            _clients.pop(uri, None)
        raise translated from error
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise _unusable(_line(error), uri) from error


def database_file(uri: str) -> Path | None:
    """The file of an embedded sqlite store; None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def public(uri: str) -> str:
    """`uri` without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1])) if "@" in parts.netloc else uri


def sanitize(name: str) -> str:
    """The name of a metric or parameter as MLflow takes it: letters, digits and `_-. /`, 250 at most.

    MLflow reads names as relative paths, so empty and dotted parts go too.
    """
    parts = [part for part in _REFUSED.sub("_", name).split("/") if part.strip(". ")]
    return "/".join(parts)[:_KEY_LENGTH].rstrip("/") or "_"


def _check(uri: str) -> None:
    """Refuse what is neither a server nor an sqlite file: MLflow's other stores look things up by global settings."""
    try:
        server = uri.startswith(("http://", "https://")) and bool(urlsplit(uri).hostname)
    except ValueError:
        server = False
    if not server and not (uri.startswith(_SQLITE) and len(uri) > len(_SQLITE)):
        raise RegistryError(
            "this is not an address that quantize can release to.",
            where=_CREDENTIALS.sub("", uri) or "the registry's address",
            fix="Give an MLflow server (https://host:port) or a database file (sqlite:////absolute/path/mlflow.db).",
        )


def _client(uri: str) -> Any:
    import requests
    from mlflow import MlflowClient

    file = database_file(uri)
    if file is None:
        if uri.startswith(("http://", "https://")):
            # Whatever the answer is, somebody is there. MLflow itself would take minutes to find out that nobody is.
            requests.get(f"{uri.rstrip('/')}/health", timeout=_PATIENCE)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file), warnings.catch_warnings():
        # MLflow would retry for minutes on a file that is no database.
        connection = sqlite3.connect(file)
        try:
            connection.execute("PRAGMA schema_version")
        finally:
            connection.close()
        # Its models use a loader that SQLAlchemy 2.1 deprecates; nothing that we or the user could mend.
        warnings.simplefilter("ignore")
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Two processes that lay out one new database at once would each find the other's half."""
    try:
        lock = file.with_name(f"{file.name}.lock").open("a")
    except OSError:
        if not file.exists():
            raise
        yield  # it can only be read, and is laid out already
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _translated(error: Exception, uri: str) -> RegistryError:
    from requests.exceptions import RequestException

    text = _line(error)
    answered = _STATUS.search(str(error))
    status = (answered[1] or answered[2]) if answered else ""
    code = getattr(error, "error_code", "")
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED") or status in ("401", "403"):
        mend = _NO_RIGHT if code == "PERMISSION_DENIED" or status == "403" else _NO_ACCESS
        return RegistryError(f"the MLflow server refuses access: {text}", where=public(uri), fix=mend)
    if status:
        mend = _TOO_LARGE if status == "413" else "Look into the server's log; the same command then releases."
        kind = RegistryAway if status in _AWAY else RegistryError
        return kind(f"the MLflow server answers with HTTP status {status}.", where=public(uri), fix=mend)
    # Of several files that do not come, each has its reason on a line of its own.
    if isinstance(error, RequestException) or any(sign in str(error) for sign in _CUT_OFF):
        return RegistryAway("the MLflow server does not answer.", where=public(uri), fix=_UNREACHABLE)
    if "out-of-date database schema" in str(error):
        mend = f"Back it up, then run `mlflow db upgrade {public(uri)}`."
        return RegistryError("the database was written by another version of MLflow.", where=public(uri), fix=mend)
    storage = _STORAGE.search(str(error))
    if storage:
        return _unusable(f"{storage[1]}.", uri)
    return RegistryError(f"MLflow refuses: {text}", where=public(uri))


def _unusable(why: str, uri: str) -> RegistryError:
    mend = "Check that it is what the address says and that it can be read and written."
    return RegistryError(f"the registry's storage does not work: {why}", where=public(uri), fix=mend)


def _line(error: Exception) -> str:
    """The first line of an error's text, without credentials."""
    lines = str(error).splitlines() or [type(error).__name__]
    return _CREDENTIALS.sub("", lines[0])[:300]
