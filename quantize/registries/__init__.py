"""Registries: versions and aliases that consumers load, and the record of runs behind them."""

from __future__ import annotations

from quantize.registries.mlflow import Mlflow, Target

__all__ = ["Mlflow", "RegistryConfig", "Target"]

RegistryConfig = Mlflow
