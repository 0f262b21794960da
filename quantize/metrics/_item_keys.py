"""The keys of an item that say how it is asked: messages, where an answer ends, how long it may be."""

from __future__ import annotations

from typing import Any

from quantize.errors import DataError

__all__ = ["asked"]

_MESSAGES = 'Messages are [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}].'

#: Messages as (role, content), the stops and the most tokens of an answer; see `_items_file.Item`.
Asked = tuple[tuple[tuple[str, str], ...], tuple[str, ...] | None, int | None]


def asked(data: dict[str, Any], where: str) -> Asked:
    """What an item's line says of how it is asked. Raises DataError, which names the line."""
    messages = _messages(data["messages"], where) if "messages" in data else ()
    stop, most = data.get("stop"), data.get("max_tokens")
    if data.get("choices") is not None:
        for key in ("stop", "max_tokens"):
            if key in data:
                raise DataError(f"{key!r} has no meaning for an item with choices: nothing is generated.", where=where)
    if stop is not None and (not isinstance(stop, list) or not all(isinstance(one, str) and one for one in stop)):
        raise DataError("'stop' is a list of texts, none of them empty.", where=where)
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise DataError("'max_tokens' is a whole number of at least 1.", where=where)
    return messages, tuple(stop) if stop is not None else None, most


def _messages(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise DataError("'messages' is a list of messages, and not empty.", where=where, fix=_MESSAGES)
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise DataError("a message has a 'role' and a 'content', and nothing else.", where=where, fix=_MESSAGES)
        if not all(isinstance(text, str) for text in message.values()) or not message["role"].strip():
            raise DataError("a message's role and content are texts.", where=where, fix=_MESSAGES)
    if not any(message["content"].strip() for message in value):
        raise DataError("the messages say nothing.", where=where, fix=_MESSAGES)
    if value[-1]["role"] == "assistant":
        raise DataError(
            "the last message is the assistant's own: there is nothing to answer.",
            where=where,
            fix="End with the user's message; what must follow it is the item's 'answer'.",
        )
    return tuple((message["role"], message["content"]) for message in value)
