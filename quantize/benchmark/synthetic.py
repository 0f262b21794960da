"""Texts of an exact length in a model's own tokens, no two of which begin alike.

Words are drawn from the model's vocabulary: those that it begins with a blank, of plain letters, are one token each
wherever they stand, as a rule. Only as a rule, so the text itself is counted again, the way a server will count it, and
words are added and taken away until the count is right. What the tokenizer puts around a text counts, as it does there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantize.errors import DataError

__all__ = ["Counter", "Writer", "open_tokenizer", "token_ids"]

#: The tokens of a text, with those that the tokenizer adds.
Counter = Callable[[str], list[int]]

#: Two texts differ within this many tokens. Servers share work by blocks of 16 tokens and more.
_ALIKE = 8
_FEW_WORDS = 64
_TRIES = 200
_NO_LIMIT = 1 << 60
_BLANKS = ("\u0120", "\u2581")  # how byte-level and SentencePiece vocabularies write the blank before a word


def open_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer of a checkpoint's directory. Nothing is fetched, no code of the checkpoint's own is run."""
    from transformers import AutoTokenizer

    try:
        # Its own limit only warns; what is too long is refused by whoever counts, with its place.
        return AutoTokenizer.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False, model_max_length=_NO_LIMIT
        )
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer does not load: {error}", where=str(checkpoint)) from error


def token_ids(tokenizer: Any) -> Counter:
    """Counts as a completions server does: by the tokenizer's default call, which adds what the model starts with."""
    return lambda text: list(tokenizer(text).input_ids)


class Writer:
    """Writes one text after another; the same seed gives the same texts."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._words = _words(tokenizer)
        self._ids = token_ids(tokenizer)
        self._random = random.Random(seed)  # noqa: S311 - nothing secret
        self._least = min(len(self._ids(word)) for word in self._words[:256])
        self._beginnings: set[tuple[int, ...]] = set()

    def write(self, tokens: int, where: str) -> str:
        """A text of exactly `tokens` tokens that begins unlike those before. Raises DataError where there is none."""
        if tokens < self._least:
            raise DataError(
                f"this model's tokenizer makes {self._least} tokens of the shortest prompt, and input is {tokens}.",
                where=where,
                fix=f"Ask for {self._least} or more.",
            )
        for _ in range(_TRIES):
            text = self._fitted(tokens)
            if text is None:
                continue
            beginning = tuple(self._ids(text)[:_ALIKE])
            if beginning not in self._beginnings:
                self._beginnings.add(beginning)
                return text
        raise DataError(
            f"no other prompt of exactly {tokens} tokens that begins unlike the {len(self._beginnings)} before was "
            f"found in {_TRIES} tries.",
            where=where,
            fix="Ask for longer prompts, or for fewer requests.",
        )

    def _fitted(self, tokens: int) -> str | None:
        """A text of that length, or None where this try led to none."""
        words = self._draw(tokens)
        for _ in range(_TRIES):
            over = len(self._ids(" ".join(words))) - tokens
            if over == 0:
                return " ".join(words)
            if over < 0:
                words += self._draw(-over)
            else:
                # One word at least is drawn anew, or a text that is one too long would come back as it was.
                words = words[: max(0, len(words) - over)] or self._draw(1)
        return None

    def _draw(self, count: int) -> list[str]:
        return self._random.choices(self._words, k=count)


def _words(tokenizer: Any) -> list[str]:
    """Words of the vocabulary, sorted: the order of a vocabulary is no part of what a seed stands for."""
    special = set(tokenizer.all_special_tokens)
    texts = [text for text in tokenizer.get_vocab() if isinstance(text, str) and text not in special]
    whole = {text[1:] for text in texts if text.startswith(_BLANKS)}
    found = sorted(word for word in whole if len(word) > 1 and word.isascii() and word.isalpha())
    if len(found) < _FEW_WORDS:
        found = sorted({bare for text in texts if (bare := text.lstrip("".join(_BLANKS))).isascii() and bare.isalpha()})
    if len(found) < 2:
        raise DataError(
            "this model's vocabulary holds no words of plain letters to write prompts with.",
            where=str(getattr(tokenizer, "name_or_path", "tokenizer")),
            fix="Give prompts of your own: `requests: {kind: prompts, path: FILE}`.",
        )
    return found
