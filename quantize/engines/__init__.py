"""Engines: what runs an artifact and answers for it."""

from __future__ import annotations

from quantize.engines.transformers import Transformers

__all__ = ["EngineConfig", "Transformers"]

EngineConfig = Transformers
