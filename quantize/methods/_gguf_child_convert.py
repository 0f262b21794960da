"""Run in the llamacpp environment: `python -I THIS MODEL_DIR ...` is llama.cpp's own converter, with its own arguments.

The converter knows a byte-level vocabulary's pre-tokenizer by a hash of what it makes of one text, so it only knows the
published tokenizers. Where it does not know one, it is told here by its parts: `tokenizer.json` says how text is cut
into words, and a rule that is exactly one of llama.cpp's gets that one's name. Anything else stays refused: a model fed
by a similar tokenizer would run, and see other ids than it was trained on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "pre_tokenizer"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
#: Cutting rules of `tokenizer.json` -> llama.cpp's name.
_SPLITS = {
    _CONTRACTIONS + _WORDS % "{1,3}" + _SPACES: "llama-bpe",
    _CONTRACTIONS + _WORDS % "" + _SPACES: "qwen2",
}


def pre_tokenizer(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for the rules in a `tokenizer.json`; None where they are not exactly known."""
    outer = tokenizer.get("pre_tokenizer") or {}
    parts = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    own_rule, cuts = parts[-1].get("use_regex", True), parts[:-1]
    normalized = tokenizer.get("normalizer") is not None
    if own_rule and not normalized:
        if not cuts:
            return "gpt-2"
        return "smollm" if cuts == [{"type": "Digits", "individual_digits": True}] else None
    if len(cuts) != 1 or cuts[0].get("type") != "Split" or cuts[0].get("behavior") != "Isolated":
        return None
    name = None if cuts[0].get("invert") else _SPLITS.get(cuts[0]["pattern"].get("Regex", ""))
    # Qwen composes accents first, and llama.cpp has no other rule of that name; Llama must not.
    return name if name == "qwen2" or not normalized else None


def main() -> None:
    """Teach the converter, then let it work."""
    import convert_hf_to_gguf
    from conversion.base import TextModel

    by_hash = TextModel.get_vocab_base_pre

    def by_hash_or_parts(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_hash(self, tokenizer))
        except NotImplementedError:
            file = Path(self.dir_model) / "tokenizer.json"
            name = pre_tokenizer(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
            if name is None:
                raise
            sys.stdout.write(f"the pre-tokenizer is {name}'s by its parts\n")
            return name

    TextModel.get_vocab_base_pre = by_hash_or_parts
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
