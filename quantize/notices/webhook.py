"""A web address that is told by a POST of the document.

The address is a secret: who knows it may speak. So only its host is ever shown, and it is never followed elsewhere.
"""

from __future__ import annotations

import http.client
import os
import queue
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_serializer, field_validator, model_validator

from quantize import __version__
from quantize.errors import QuantizeError
from quantize.notices._events import DEFAULT, What
from quantize.record import Record

__all__ = ["Webhook"]

#: How an address ends in a copy of a recipe.
_HIDDEN = "/..."


class Webhook(Record):
    """POSTs to the address in the environment variable `url_env`, or to `url`, which a recipe's copies hide.

    It has answered with a status of 2xx within `seconds`, or it failed. A redirect is a failure.
    """

    kind: Literal["webhook"] = "webhook"
    url_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    url: SecretStr | None = None
    on: list[What] = Field(default_factory=lambda: list(DEFAULT), min_length=1)
    seconds: Annotated[float, Field(gt=0, le=60)] = 10

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _host(value.get_secret_value()):
            raise ValueError("this is not an address: write https://host/path")
        return value

    @model_validator(mode="after")
    def _has_one_address(self) -> Webhook:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give the address in one way: url_env (the name of a variable that holds it), or url")
        return self

    @field_serializer("url")
    def _hidden(self, value: SecretStr | None) -> str | None:
        """An address that says no more than the host."""
        return _public(value.get_secret_value()) if value is not None else None

    @property
    def shown(self) -> str:
        """How it is spoken of: by its host, or by the variable where that holds no address."""
        found = _host(self._address())
        return f"webhook at {found}" if found else f"webhook of ${self.url_env}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """See `protocols.Notifier`."""
        return (self.url.get_secret_value(),) if self.url is not None else ()

    def send(self, document: str, facts: Mapping[str, str]) -> None:
        """See `protocols.Notifier`."""
        address = self._address()
        if not _host(address):
            raise QuantizeError(f"the variable {self.url_env} is not set, or holds no https://host/path.")
        if address.endswith(_HIDDEN):
            raise QuantizeError("the copy of the recipe hides its address: name the recipe itself, or take url_env.")
        told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # In a thread: a timeout of a socket is one of each piece, and a name's look-up has none.
        work = threading.Thread(target=lambda: told.put(_post(address, document, self.seconds)), daemon=True)
        work.start()
        try:
            problem = told.get(timeout=self.seconds)
        except queue.Empty:
            problem = f"no answer within {self.seconds:g} seconds."
        if problem is not None:
            raise QuantizeError(problem)

    def _address(self) -> str:
        return self.url.get_secret_value() if self.url is not None else os.environ.get(self.url_env or "", "")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the document to somebody else, or turn the POST into a GET that tells nothing."""

    def redirect_request(self, *_: object) -> None:
        """Follow none: the status is the answer."""


def _post(address: str, document: str, seconds: float) -> str | None:
    """POST, and return why it failed, in words without the address; None where it was taken."""
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": f"quantize/{__version__}"}
    try:
        request = urllib.request.Request(address, document.encode(), headers, method="POST")  # noqa: S310 (http or https)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        moved = " It redirects: set the address that it redirects to." if 300 <= error.code < 400 else ""
        return f"it answers with HTTP status {error.code}.{moved}"
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)


def _reason(error: object) -> str:
    """Why nobody was reached, in words that cannot hold the address."""
    if isinstance(error, TimeoutError):
        return "no answer in time."
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})."
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be reached ({error.strerror})."
    return f"it cannot be reached ({type(error).__name__})."


def _host(address: str) -> str:
    """The host, with its port, of an http or https address; "" for what is none."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in address):
        return ""
    return f"{parts.hostname}:{port}" if port else parts.hostname


def _public(address: str) -> str:
    return f"{urlsplit(address).scheme}://{_host(address)}{_HIDDEN}"
