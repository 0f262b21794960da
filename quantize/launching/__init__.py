"""Jobs for clusters: pure functions from what is asked to a script or to manifests, and what hands them over."""

from __future__ import annotations

from quantize.launching.asked import Asked, asked_of
from quantize.launching.kubernetes import CLAIM, KubernetesJob, as_yaml, manifests
from quantize.launching.naming import job_name
from quantize.launching.places import elsewhere
from quantize.launching.slurm import SlurmJob, sbatch_script, scrontab_entry
from quantize.launching.submitting import apply_manifests, submit_script
from quantize.launching.times import check_schedule, limit_seconds

__all__ = [
    "CLAIM",
    "Asked",
    "KubernetesJob",
    "SlurmJob",
    "apply_manifests",
    "as_yaml",
    "asked_of",
    "check_schedule",
    "elsewhere",
    "job_name",
    "limit_seconds",
    "manifests",
    "sbatch_script",
    "scrontab_entry",
    "submit_script",
]
