"""Sources: where the model comes from. Each hands on a checked Hugging Face checkpoint directory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.sources._check import LICENCE_FILES, check_checkpoint, check_files
from quantize.sources._facts import checkpoint_facts, config_facts, linear_names, read_config
from quantize.sources._upload import Held, bring, held, identify, lacking
from quantize.sources.directory import Directory
from quantize.sources.gguf import SOURCE_FILE, Gguf
from quantize.sources.hub import Hub
from quantize.sources.lora import Lora
from quantize.sources.package import Package

__all__ = [
    "LICENCE_FILES",
    "SOURCE_FILE",
    "Directory",
    "Gguf",
    "Held",
    "Hub",
    "Lora",
    "Package",
    "SourceConfig",
    "bring",
    "check_checkpoint",
    "check_files",
    "checkpoint_facts",
    "config_facts",
    "held",
    "identify",
    "lacking",
    "linear_names",
    "read_config",
]

SourceConfig = Annotated[Hub | Directory | Gguf | Package | Lora, Field(discriminator="kind")]
