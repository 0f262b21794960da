"""What turns text into ids and ids into an end of text, in the checkpoint's files and in the engine itself.

The baseline's rule for a prompt is what its tokenizer does with a text when nothing is asked for, special tokens
included: `tokenizer(text)`. Engines do the same with a completion prompt, each by its own switch (a BOS token is put in
front if the tokenizer's configuration says so). For a conversation it is the chat template's text with a generation
prompt, to which nothing is added.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantize.errors import EngineLost, Interrupted, QuantizeError
from quantize.handed import Session
from quantize.proof.prompts import CONVERSATIONS, PROMPTS
from quantize.proof.result import Numbers

__all__ = ["engine_differences", "text_differences"]

STOP_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def text_differences(checkpoint: Path, baseline: Path) -> list[str]:
    """The checkpoint's text files beside the baseline's: a sentence for each thing that is not the same."""
    from transformers import AutoTokenizer

    broken = []
    theirs, ours = AutoTokenizer.from_pretrained(baseline), AutoTokenizer.from_pretrained(checkpoint)
    changed = [p for p in PROMPTS if list(theirs(p).input_ids) != list(ours(p).input_ids)]
    if changed:
        broken.append(f"the tokenizer gives other ids than the baseline's for {len(changed)} of {len(PROMPTS)} prompts")
    if theirs.chat_template != ours.chat_template:
        broken.append("the chat template is not the baseline's")
    for place in ("config.json", "generation_config.json"):
        before, after = _stop_tokens(baseline / place), _stop_tokens(checkpoint / place)
        broken += [
            f"{name} in {place} is {after[name]}, the baseline's is {before[name]}"
            for name in STOP_TOKENS
            if before[name] != after[name]
        ]
    broken += [
        f"the tokenizer's {name} is {getattr(ours, name)}, the baseline's is {getattr(theirs, name)}"
        for name in STOP_TOKENS
        if getattr(ours, name) != getattr(theirs, name)
    ]
    return [*broken, *_gguf_differences(checkpoint / "model.gguf", end_tokens(baseline, theirs))]


def _gguf_differences(path: Path, ends: list[int]) -> list[str]:
    """The end of text that a GGUF file names itself.

    Asking the engine is not enough: llama.cpp also stops at every token that looks like an end of text to it, so that a
    file which names another token still stops where it should, and at that token besides.
    """
    if not path.is_file():
        return []
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.eos_token_id")
    named = None if field is None else int(field.contents())
    if not ends or named in ends:
        return []
    return [f"eos_token_id in {path.name} is {named}, the baseline's is {' or '.join(map(str, ends))}"]


def engine_differences(session: Session, baseline: Path, numbers: Numbers) -> list[str]:
    """What the engine itself makes of prompts, conversations and end-of-text tokens; fills `numbers`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(baseline)
    return [
        *_prompt_differences(session, tokenizer),
        *_chat_differences(session, tokenizer, numbers),
        *_stop_differences(session, tokenizer, baseline, numbers),
    ]


def _prompt_differences(session: Session, tokenizer: Any) -> list[str]:
    pairs = [(list(tokenizer(prompt).input_ids), session.tokenize(prompt)) for prompt in PROMPTS]
    changed = [(before, after) for before, after in pairs if before != after]
    if not changed:
        return []
    before, after = changed[0]
    said = f"the engine makes other ids of {len(changed)} of {len(PROMPTS)} prompts than the baseline's tokenizer"
    if all(after[1:] == before for before, after in changed):
        return [f"{said}: it puts token {after[0]} in front"]
    if all(after == before[1:] for before, after in changed):
        return [f"{said}: it leaves out token {before[0]} in front"]
    return [f"{said}: {_first_difference(before, after)}"]


def _chat_differences(session: Session, tokenizer: Any, numbers: Numbers) -> list[str]:
    numbers["conversations"] = 0
    if not tokenizer.chat_template:
        return []
    broken = []
    for number, conversation in enumerate(CONVERSATIONS):
        messages = [dict(message) for message in conversation]
        try:
            before = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        # a template raises what it likes; one that takes no question is broken itself
        except Exception as error:  # noqa: BLE001
            if number == 0:
                return [f"the baseline's own chat template does not take a question: {error}"]
            continue
        numbers["conversations"] = number + 1
        try:
            after = session.chat(messages)
        except (Interrupted, EngineLost):
            raise
        except QuantizeError as error:
            broken.append(f"the engine's chat template fails: {error.what.partition(chr(10))[0]}")
            continue
        if list(before) != after:
            broken.append(
                f"the engine makes other ids of conversation {number + 1} of {len(CONVERSATIONS)} than the baseline's "
                f"chat template: {_first_difference(list(before), after)}"
            )
    return broken[:1]


def _stop_differences(session: Session, tokenizer: Any, baseline: Path, numbers: Numbers) -> list[str]:
    ids = list(tokenizer(PROMPTS[0]).input_ids)
    ends = end_tokens(baseline, tokenizer)
    numbers["end_tokens"] = len(ends)
    broken = [
        f"generation does not stop at {_named(tokenizer, token)}, an end of text of the baseline's"
        for token in ends
        if not session.stops(ids, token)
    ]
    # The last token of a text is a word that the model may well go on from.
    ordinary = next((token for token in reversed(ids) if token not in ends), None)
    if ordinary is not None and session.stops(ids, ordinary):
        broken.append(f"generation stops at {_named(tokenizer, ordinary)}, which is no end of text of the baseline's")
    return broken


def _named(tokenizer: Any, token: int) -> str:
    return f"token {token} ({tokenizer.convert_ids_to_tokens(token)!r})"


def end_tokens(baseline: Path, tokenizer: Any) -> list[int]:
    """The tokens at which the baseline ends a text, by its generation settings, else its config, else its tokenizer."""
    for place in ("generation_config.json", "config.json"):
        found = _stop_tokens(baseline / place)["eos_token_id"]
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def _first_difference(before: list[int], after: list[int]) -> str:
    pairs = zip(before, after, strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    sides = [str(side[place]) if place < len(side) else "the end" for side in (after, before)]
    return f"{sides[0]} at position {place}, where the baseline has {sides[1]}"


def _stop_tokens(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    nested = values.get("text_config") or {}
    return {name: values.get(name, nested.get(name)) for name in STOP_TOKENS}
