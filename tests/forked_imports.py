"""Imported by the server that processes are forked from, before the first of them."""

from __future__ import annotations

import gc

import pytest  # noqa: F401  the main module of whoever asks is imported in each process
import requests  # noqa: F401
from forked import import_libraries, use_mlflow

import quantize.approval
import quantize.arms
import quantize.capacity
import quantize.cli
import quantize.comparing
import quantize.display
import quantize.doctor
import quantize.history
import quantize.job
import quantize.operate
import quantize.promoting
import quantize.recheck
import quantize.reopening
import quantize.report
import quantize.run
import quantize.starter  # noqa: F401

import_libraries()
use_mlflow()
gc.freeze()
