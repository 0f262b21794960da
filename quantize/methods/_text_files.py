"""The text files beside the weights: what turns text into ids, and how to generate. Copied byte for byte.

Saving a tokenizer again may rewrite it, and the ids with it. Saving generation settings again may refuse them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["GENERATION_CONFIG", "TOKENIZER_FILES", "copy_text_files"]

#: What makes up a tokenizer on disk.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
#: What turns images, sound and video into a model's inputs; servers do not start without them.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
GENERATION_CONFIG = "generation_config.json"
_TEMPLATES = "additional_chat_templates"


def copy_text_files(source: Path, out: Path) -> None:
    """Make `out`'s tokenizer and generation settings exactly `source`'s: what `source` lacks, `out` does not keep."""
    for name in (*TOKENIZER_FILES, *_PROCESSOR_FILES, GENERATION_CONFIG):
        (out / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, out / _TEMPLATES, dirs_exist_ok=True)
