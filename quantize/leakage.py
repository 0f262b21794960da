"""Whether calibration data holds what the model is examined on.

A method that calibrates on the eval's own items has seen the examination: its variant looks better than it is. Texts
are compared by hashes of normalised words (Unicode NFKC, case and punctuation dropped), so that neither layout nor
spelling of quotes hides a copy. Of scripts that put no blanks between words, Chinese and Japanese, every character
counts as a word.

    a line of an item of 8 words or more    overlaps when each run of 8 words in it occurs in the calibration data
    an item without such a line             is taken as one line, if it has 8 words
    a shorter item                          overlaps when a line or a document of the calibration data is the same

Lines that more than half of the items share are a template and say nothing. Runs of words are how the field looks for
contamination (T. Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C, with 13 words).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["overlaps", "seen_hashes"]

_RUN = 8
_BYTES = 8
_TEMPLATE_FROM = 4
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # kana and Han
#: Not the underscore: it is Markdown's emphasis.
_WORD = re.compile(rf"(?=\w)[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def seen_hashes(documents: Iterable[str]) -> list[str]:
    """What is kept of calibration documents: hashes (hex) of every line and every run of words, sorted."""
    found: set[str] = set()
    for document in documents:
        words = _words(document)
        found |= {_hash(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}
        found |= {_hash(line) for line in (words, *map(_words, document.split("\n"))) if line}
    return sorted(found)


def overlaps(items: Sequence[tuple[str, str]], seen: Iterable[str]) -> list[str]:
    """Ids of the items (id, text) that the calibration data holds, in their order."""
    known = frozenset(seen)
    if not known:
        return []
    lines = [[words for line in text.split("\n") if (words := _words(line))] for _, text in items]
    common = Counter(tuple(words) for item in lines for words in {tuple(line): line for line in item}.values())
    most = len(items) / 2 if len(items) >= _TEMPLATE_FROM else len(items)
    found = []
    for (name, _), item in zip(items, lines, strict=True):
        own = [words for words in item if common[tuple(words)] <= most]
        whole = [word for words in own for word in words]
        long = [words for words in (own if any(len(line) >= _RUN for line in own) else [whole]) if len(words) >= _RUN]
        copied = any(all(_hash(words[i : i + _RUN]) in known for i in range(len(words) - _RUN + 1)) for words in long)
        if copied or (0 < len(whole) < _RUN and _hash(whole) in known):
            found.append(name)
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _hash(words: Sequence[str]) -> str:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=_BYTES).hexdigest()
