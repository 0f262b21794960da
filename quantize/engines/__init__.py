"""Engines: what runs an artifact and answers for it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.engines.llamacpp import LlamaCpp
from quantize.engines.transformers import Transformers
from quantize.engines.vllm import Vllm

__all__ = ["ENGINES_BY_FORMAT", "EngineConfig", "LlamaCpp", "Transformers", "Vllm"]

EngineConfig = Annotated[Transformers | LlamaCpp | Vllm, Field(discriminator="kind")]

#: What loads a format that the recipe's own engine may not: a variant that names no engine is served by it.
ENGINES_BY_FORMAT: dict[str, Transformers | LlamaCpp | Vllm] = {
    "gguf": LlamaCpp(),
    "gptq": Transformers(runs_in="gptqmodel"),
    "awq": Transformers(runs_in="gptqmodel"),
}
