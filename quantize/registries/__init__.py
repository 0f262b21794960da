"""Registries: versions and aliases that consumers load, and the record of runs behind them."""

from __future__ import annotations

from quantize.registries._aliases import Target, alias_problem
from quantize.registries._client import public
from quantize.registries._journal import SUFFIX
from quantize.registries.mlflow import Mlflow

__all__ = ["SUFFIX", "Mlflow", "RegistryConfig", "Target", "alias_problem", "public"]

RegistryConfig = Mlflow
