"""One MLflow client for one server, quiet, and with errors that a user can act on."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from quantize.errors import RegistryError

__all__ = ["asking", "public", "sanitize"]

#: Short enough that a dead server is said so within seconds; what the user has set counts.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_REFUSED = re.compile(r"[^\w\-. /]")


@lru_cache(maxsize=4)
def client(uri: str) -> Any:
    """An `MlflowClient` whose tracking and registry store is `uri`. Imports MLflow (about two seconds)."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with mlflow_errors(uri):
        # `models:/` addresses are looked up through MLflow's global settings, whatever a client was given.
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def asking(uri: str) -> Iterator[Any]:
    """The client for the time of a `with`; whatever goes wrong in it becomes a RegistryError."""
    mlflow = client(uri)
    with mlflow_errors(uri):
        yield mlflow


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, its HTTP client and its database raise into a RegistryError with the mend."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        text = str(error).splitlines()[0][:300]
        if "API request to" in text or "Max retries" in text or "Connection" in text:
            raise RegistryError("the MLflow server cannot be reached.", where=public(uri), fix=_UNREACHABLE) from error
        raise RegistryError(f"MLflow refuses: {text}", where=public(uri)) from error
    except RequestException as error:
        raise RegistryError("the MLflow server cannot be reached.", where=public(uri), fix=_UNREACHABLE) from error
    except (SQLAlchemyError, OSError) as error:
        text = str(error).splitlines()[0][:300]
        raise RegistryError(
            f"the registry's store does not work: {text}", where=public(uri), fix="Check that it can be written."
        ) from error


def public(uri: str) -> str:
    """`uri` without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))


def sanitize(name: str) -> str:
    """A metric or parameter name with the characters that MLflow allows."""
    return _REFUSED.sub("_", name)


_UNREACHABLE = (
    "Check the address and that `mlflow server` runs; what was measured stays in the store, "
    "and the same command releases it later."
)
