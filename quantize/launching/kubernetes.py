"""A Job or CronJob of Kubernetes, and the ConfigMap in which the recipe travels.

    75                            another pod goes on (counted, up to `backoffLimit`, with growing pauses)
    a node drained, pod evicted   another pod goes on, not counted
    1, 2, 3, 4                    the job ends: another pod would find the same
    killed (137: out of memory)   another pod goes on, counted

The store, the hub's cache and the environments lie on a PersistentVolumeClaim. Secrets are named, never written: the
pod takes their variables itself (`envFrom`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from quantize.errors import UsageError
from quantize.launching.asked import Asked
from quantize.launching.naming import PREFIX, job_name
from quantize.launching.times import TOLD_BEFORE
from quantize.record import digest

__all__ = ["CLAIM", "KubernetesJob", "as_yaml", "manifests"]

#: Where the claim is mounted, and what lies on it.
CLAIM = "/claim"
_STORE = f"{CLAIM}/store"
_VARIABLES = {"HF_HOME": f"{CLAIM}/huggingface", "QUANTIZE_ENVS": f"{CLAIM}/envs"}
_RECIPE_FOLDER, _RECIPE = "/recipe", "recipe.yaml"
#: Bytes of a ConfigMap's data, at most.
_MOST_BYTES = 2**20
_RETRIES = 6
_FINAL = (1, 2, 3, 4)
#: Seconds that a finished job stays to be looked at, before its name is free again: a week.
_KEPT = 7 * 24 * 3600
_DIGEST = 10


@dataclass(frozen=True, slots=True)
class KubernetesJob:
    """One job, or one at each tick of `schedule`. `text` is the recipe, whole; `seconds` the limit of a job."""

    name: str
    text: str
    overrides: tuple[str, ...]
    asked: Asked
    image: str
    claim: str
    namespace: str | None = None
    schedule: str | None = None
    seconds: int | None = None
    secrets: tuple[str, ...] = ()


def manifests(job: KubernetesJob) -> list[dict[str, Any]]:
    """The ConfigMap, then what runs it. Raises UsageError for a recipe that no ConfigMap can hold.

    The ConfigMap's name follows from the recipe's text, and a Job's from all that is in it: what runs keeps what it
    was started with, and the same command a second time changes nothing.
    """
    size = len(job.text.encode())
    if size > _MOST_BYTES:
        what = f"the recipe has {size / 2**20:.1f} MiB with all that it includes, and a ConfigMap holds 1 MiB."
        raise UsageError(what, where=job.name, fix="Leave out what it does not need.")
    name = job_name(job.name)
    labels = {"app.kubernetes.io/name": "quantize", "app.kubernetes.io/instance": name.removeprefix(PREFIX)}
    recipe = f"{name}-{digest(job.text)[:_DIGEST]}"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(recipe, labels, job),
        "immutable": True,
        "data": {_RECIPE: job.text},
    }
    spec = _job_spec(job, recipe, labels)
    if job.schedule is None:
        metadata = _metadata(f"{name}-{digest(spec)[:_DIGEST]}", labels, job)
        spec = {**spec, "ttlSecondsAfterFinished": _KEPT}
        return [config, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}]
    cron = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(name, labels, job),
        "spec": {
            "schedule": job.schedule,
            "concurrencyPolicy": "Forbid",
            # One that was missed by this much waits for its next tick.
            "startingDeadlineSeconds": 600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 5,
            "jobTemplate": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    return [config, cron]


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """The documents as one stream of YAML."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, allow_unicode=True, explicit_start=True)


class _Plain(yaml.SafeDumper):
    """Writes for people: what occurs twice is written twice, and a text of several lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def lines(self, text: str) -> yaml.ScalarNode:
        """A text as a node; in a block where it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _Plain.lines)


def _metadata(name: str, labels: dict[str, str], job: KubernetesJob) -> dict[str, Any]:
    return {"name": name, **({"namespace": job.namespace} if job.namespace is not None else {}), "labels": labels}


def _job_spec(job: KubernetesJob, recipe: str, labels: dict[str, str]) -> dict[str, Any]:
    rules: list[dict[str, Any]] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        _on_codes("Count", (75,)),
        _on_codes("FailJob", _FINAL),
    ]
    limit = {"activeDeadlineSeconds": job.seconds} if job.seconds is not None else {}
    return {
        "backoffLimit": _RETRIES,
        **limit,
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"labels": labels}, "spec": _pod(job, recipe)},
    }


def _on_codes(action: str, codes: tuple[int, ...]) -> dict[str, Any]:
    return {
        "action": action,
        "onExitCodes": {"containerName": "quantize", "operator": "In", "values": list(codes)},
    }


def _pod(job: KubernetesJob, recipe: str) -> dict[str, Any]:
    sets = [part for override in job.overrides for part in ("--set", override)]
    command = ["quantize", "run", f"{_RECIPE_FOLDER}/{_RECIPE}", "--store", _STORE, *sets]
    container = {
        "name": "quantize",
        "image": job.image,
        "command": [_literally(word) for word in command],
        "workingDir": CLAIM,
        "env": [{"name": name, "value": value} for name, value in _VARIABLES.items()],
        **({"envFrom": [{"secretRef": {"name": name}} for name in job.secrets]} if job.secrets else {}),
        "resources": _resources(job.asked),
        "volumeMounts": [
            {"name": "recipe", "mountPath": _RECIPE_FOLDER, "readOnly": True},
            {"name": "claim", "mountPath": CLAIM},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 (it is the pod's own)
        ],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": TOLD_BEFORE,
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {"name": "recipe", "configMap": {"name": recipe}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": job.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _literally(word: str) -> str:
    """A word of a command as the pod gets it: Kubernetes reads `$(NAME)` as a variable, and `$$` as `$`."""
    return word.replace("$", "$$")


def _resources(asked: Asked) -> dict[str, dict[str, str]]:
    """Memory and GPUs are limits too; CPUs are not, so that a stage may use cores that idle."""
    memory = {"memory": f"{math.ceil(asked.memory_gb * 1000)}M"} if asked.memory_gb is not None else {}
    gpus = {"nvidia.com/gpu": str(asked.gpus)} if asked.gpus else {}
    cpus = {"cpu": str(asked.cpus)} if asked.cpus is not None else {}
    found = {"requests": {**cpus, **memory, **gpus}, "limits": {**memory, **gpus}}
    return {name: quantities for name, quantities in found.items() if quantities}
