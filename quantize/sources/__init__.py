"""Sources: where the model comes from. Each hands on a checked Hugging Face checkpoint directory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.sources._check import check_checkpoint, check_files
from quantize.sources._facts import checkpoint_facts, config_facts, read_config
from quantize.sources.directory import Directory
from quantize.sources.gguf import Gguf
from quantize.sources.hub import Hub
from quantize.sources.package import Package

__all__ = [
    "Directory",
    "Gguf",
    "Hub",
    "Package",
    "SourceConfig",
    "check_checkpoint",
    "check_files",
    "checkpoint_facts",
    "config_facts",
    "read_config",
]

SourceConfig = Annotated[Hub | Directory | Gguf | Package, Field(discriminator="kind")]
