"""What a job is called by a cluster: letters that Slurm and Kubernetes take, short enough for a CronJob."""

from __future__ import annotations

import re

from quantize.record import digest

__all__ = ["PREFIX", "job_name"]

PREFIX = "quantize-"
#: A CronJob's name has 52 letters at most: Kubernetes adds 11 for each of its jobs.
_LETTERS = 52 - len(PREFIX)
_DIGEST = 8


def job_name(recipe: str) -> str:
    """`quantize-` and the recipe's name as a DNS label, with a part of its digest where letters had to go."""
    label = re.sub(r"[^a-z0-9]+", "-", recipe.lower()).strip("-")
    if label != recipe or len(label) > _LETTERS:
        label = f"{label[: _LETTERS - _DIGEST - 1].strip('-')}-{digest(recipe)[:_DIGEST]}".lstrip("-")
    return f"{PREFIX}{label}"
