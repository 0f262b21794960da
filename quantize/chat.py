"""Conversations as the text that a model is given: rendered once, by the baseline's own chat template.

Of eval items every engine is asked the same text, so what differs between arms is never the template. The text brings
its special tokens with it: nobody adds any, and the ids are those that the tokenizer itself makes of the conversation.

Templates may tell the model the date (`strftime_now`). Here it is always the same one: arms that are measured on two
days would otherwise be asked different things, and a recipe would be calibrated on other tokens every day.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantize.errors import DataError
from quantize.record import digest

__all__ = ["ChatTemplate", "chat_template", "template_of"]

#: The day that every conversation takes place on: the one that Llama 3's template names where it knows none.
_TODAY = dt.datetime(2024, 7, 26, 12, tzinfo=dt.UTC)


class ChatTemplate:
    """A tokenizer's chat template; `digest` (sha256, hex) is that of its text."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._tokenizer = tokenizer
        self.digest = digest(text)

    def render(self, messages: Sequence[tuple[str, str]], where: str, *, ended: bool = False) -> str:
        """The conversation up to where the answer begins; `ended`: as it stands, the last answer included.

        Raises DataError where the template refuses it; `where` is the conversation's place.
        """
        import jinja2

        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=not ended,
                strftime_now=_TODAY.strftime,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the model's chat template does not take the conversation: {error}",
                where=where,
                fix="Write the messages as this model takes them: some know no system message, or no two in a row.",
            ) from error
        if not text.strip():
            raise DataError("the model's chat template makes nothing of the conversation.", where=where)
        return text


def chat_template(checkpoint: Path | None, fix: str) -> ChatTemplate:
    """The template of a checkpoint's tokenizer. Raises DataError with `fix` where it has none."""
    from transformers import AutoTokenizer

    if checkpoint is None:
        raise DataError("there is no checkpoint to take a chat template from.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _none(error, checkpoint, fix) from error
    return template_of(tokenizer, checkpoint, fix)


def template_of(tokenizer: Any, checkpoint: Path, fix: str) -> ChatTemplate:
    """The template of a tokenizer that is loaded. Raises DataError with `fix` where it has none."""
    try:
        return ChatTemplate(tokenizer, str(tokenizer.get_chat_template()))
    except ValueError as error:
        raise _none(error, checkpoint, fix) from error


def _none(error: Exception, checkpoint: Path, fix: str) -> DataError:
    return DataError(
        f"the baseline's tokenizer has no chat template that can be used ({error}).", where=str(checkpoint), fix=fix
    )
