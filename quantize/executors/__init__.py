"""Executors: how one stage's command is run with its resources."""

from __future__ import annotations

from quantize.executors.local import Local

__all__ = ["ExecutorConfig", "Local"]

ExecutorConfig = Local
