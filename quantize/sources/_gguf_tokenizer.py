"""A tokenizer from a GGUF file's own metadata.

The tokenizer that transformers derives from a GGUF file goes by the architecture, not by what the file says: for a
`llama` file with a byte-level vocabulary it sets byte_fallback, does not split digits, and guesses the special tokens.
A model fed by it sees other ids than it was trained on, and a later GGUF conversion takes the vocabulary for a
SentencePiece one. So `tokenizer.ggml.*` is read here, and a vocabulary kind that is not known exactly is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantize.errors import SourceError
from quantize.gguf_file import GgufFile

__all__ = ["USE_ORIGINAL", "build_tokenizer"]

USE_ORIGINAL = "Give the original checkpoint by its hub id or directory instead of the GGUF file."

# Token kinds of the GGUF specification that are cut out of the text before the pre-tokenizer sees it.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Pre:
    """How one `tokenizer.ggml.pre` cuts text into the words that merges stay inside of.

    `pattern` is the cutting regex, None for GPT-2's own; `digits` cuts out each digit first; `ignore_merges` takes a
    word that is in the vocabulary whole; `nfc` composes accents first, as the model's training did; `bos` is what an
    absent `add_bos_token` means.
    """

    pattern: str | None = None
    digits: bool = False
    ignore_merges: bool = False
    nfc: bool = False
    bos: bool = False


_PRE = {
    "gpt-2": _Pre(),
    "smollm": _Pre(digits=True),
    "llama-bpe": _Pre(
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
        ignore_merges=True,
        bos=True,
    ),
    "qwen2": _Pre(
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
        nfc=True,
    ),
}


def build_tokenizer(source: GgufFile) -> Any:
    """A fast transformers tokenizer (`PreTrainedTokenizerFast`) with the ids and special tokens that `source` lists.

    Control and unknown tokens become special; user-defined ones are matched whole but stay text. Bytes that the
    vocabulary has no token for are dropped, as in the original tokenizers of this kind.

    Raises SourceError for a vocabulary that is not byte-level BPE with a known pre-tokenizer, or that is incomplete.
    """
    from transformers import PreTrainedTokenizerFast

    pre = _known_pre(source)
    tokens: list[str] = _needed(source, "tokenizer.ggml.tokens")
    named = {
        f"{name}_token": _token(source, tokens, role)
        for name, role in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    length = source.hyperparameter("context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(source, pre, tokens),
        add_bos_token=bool(source.metadata.get("tokenizer.ggml.add_bos_token", pre.bos)),
        add_eos_token=bool(source.metadata.get("tokenizer.ggml.add_eos_token", False)),
        chat_template=_chat_template(source),
        # Merging " ," into "," on decoding would make decode(encode(text)) differ from text.
        clean_up_tokenization_spaces=False,
        **({} if length is None else {"model_max_length": int(length)}),
        **{name: token for name, token in named.items() if token is not None},
    )


def _refused(source: GgufFile, what: str) -> SourceError:
    return SourceError(what, where=str(source.path), fix=USE_ORIGINAL)


def _known_pre(source: GgufFile) -> _Pre:
    kind = source.metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise _refused(
            source,
            f"tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) can be rebuilt from a GGUF file.",
        )
    name = source.metadata.get("tokenizer.ggml.pre")
    if name not in _PRE:
        raise _refused(source, f"tokenizer.ggml.pre is {name!r}; the known ones are {', '.join(sorted(_PRE))}.")
    if source.metadata.get("tokenizer.ggml.add_space_prefix", False):
        # llama.cpp ignores the key for byte-level BPE and transformers does not: two ids for one text, so neither.
        raise _refused(
            source, "tokenizer.ggml.add_space_prefix is True, which engines read differently for byte-level BPE."
        )
    return _PRE[str(name)]


def _byte_level_bpe(source: GgufFile, pre: _Pre, tokens: list[str]) -> Any:
    """A `tokenizers.Tokenizer`: merges over the letters that stand for bytes, special tokens cut out first."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kinds: list[int] = _needed(source, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _needed(source, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if not len(kinds) == len(tokens) == len(vocabulary):
        raise _refused(source, f"{len(tokens)} tokens, {len(vocabulary)} distinct, but {len(kinds)} token types.")
    try:
        model = models.BPE(vocabulary, merges, byte_fallback=False, fuse_unk=False, ignore_merges=pre.ignore_merges)
    except Exception as error:  # tokenizers raises a bare Exception for a merge outside the vocabulary
        raise _refused(source, f"tokenizer.ggml.merges do not fit the tokens ({error}).") from error
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.pattern is not None:
        cuts.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    whole = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])
    return tokenizer


def _needed(source: GgufFile, key: str) -> Any:
    if key not in source.metadata:
        raise _refused(source, f"{key} is missing.")
    return source.metadata[key]


def _token(source: GgufFile, tokens: list[str], role: str) -> str | None:
    index = source.token_id(role)
    if index is not None and not 0 <= index < len(tokens):
        raise _refused(source, f"tokenizer.ggml.{role}_token_id is {index}, outside the {len(tokens)} tokens.")
    return None if index is None else tokens[index]


def _chat_template(source: GgufFile) -> str | dict[str, str] | None:
    """The default template, or a table of them by name where the file holds several."""
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).removeprefix(".") or "default": str(value)
        for key, value in source.metadata.items()
        if key == prefix or key.startswith(f"{prefix}.")
    }
    return templates.get("default") if set(templates) <= {"default"} else templates
