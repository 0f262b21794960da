"""What a job asks a cluster for: as told on the command line, else as the recipe says, else nothing, and said so.

No hub is asked. A model that lies on this machine is looked at (its files' headers): the memory of a stage follows
from its size, as `plan` estimates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantize.device import Device
from quantize.engines import Vllm
from quantize.errors import QuantizeError, UsageError
from quantize.preflight import memory_of_stage
from quantize.recipe import Recipe
from quantize.sources import Directory, Gguf

__all__ = ["Asked", "asked_of"]

#: Memory beside that of the stages, in GB: the driver, the process that stages are forked from, and /dev/shm.
_BESIDE_GB = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """GPUs, CPUs and memory in GB (1e9 bytes) of one job; None: the cluster's default. `reasons` are sentences."""

    gpus: int
    cpus: int | None
    memory_gb: float | None
    reasons: tuple[str, ...]


def asked_of(recipe: Recipe, gpus: int | None, cpus: int | None, memory_gb: float | None) -> Asked:
    """What to ask for. Raises UsageError where the GPUs told and the recipe's device contradict each other."""
    cards, why_cards = (gpus, "--gpus") if gpus is not None else _gpus(recipe)
    device = recipe.resources.device
    if (cards == 0 and device == "cuda") or (cards > 0 and device == "cpu"):
        what = f"the recipe's resources.device is {device}, and the job is given {cards or 'no'} GPUs."
        raise UsageError(what, where="--gpus", fix="Leave --gpus out, or say --set resources.device=auto.")
    several = recipe.resources.stages or max(1, cards)
    cores, why_cores = (cpus, "--cpus") if cpus is not None else _cpus(recipe, several)
    memory, why_memory = (memory_gb, "--memory-gb") if memory_gb is not None else _memory(recipe, cards, several)
    return Asked(
        cards,
        cores,
        memory,
        (
            f"GPUs: {cards} ({why_cards})",
            f"CPUs: {cores if cores is not None else 'the default of the cluster'} ({why_cores})",
            f"memory: {f'{memory:g} GB' if memory is not None else 'the default of the cluster'} ({why_memory})",
        ),
    )


def _gpus(recipe: Recipe) -> tuple[int, str]:
    resources = recipe.resources
    if resources.device == "cpu":
        return 0, "resources.device: cpu"
    engines = [recipe.engine, *(variant.engine for variant in recipe.variants)]
    split = max((engine.tensor_parallel_size for engine in engines if isinstance(engine, Vllm)), default=1)
    several = (resources.stages or 1) * split
    parts = [f"resources.device: {resources.device}"]
    parts += [f"resources.stages: {resources.stages}"] if resources.stages is not None else []
    parts += [f"tensor_parallel_size: {split}"] if split > 1 else []
    parts += ["--gpus 0 asks for none"] if resources.device == "auto" else []
    return several, ", ".join(parts)


def _cpus(recipe: Recipe, several: int) -> tuple[int | None, str]:
    threads = recipe.resources.threads
    if threads is None:
        return None, "the recipe has no resources.threads; --cpus says how many"
    return threads * several, f"resources.threads: {threads}{f' of {several} stages' if several > 1 else ''}"


def _memory(recipe: Recipe, gpus: int, several: int) -> tuple[float | None, str]:
    told = recipe.resources.memory_gb
    if told is not None:
        return told + _BESIDE_GB, f"resources.memory_gb: {told:g}, and {_BESIDE_GB} beside the stages"
    estimate = _of_local_model(recipe, "cuda" if gpus else "cpu")
    if estimate is None:
        return None, "nothing is known of the model's size here; --memory-gb says how much"
    each = math.ceil(estimate / 1e9)
    stages = f"{several} stages of" if several > 1 else "a stage of"
    return each * several + _BESIDE_GB, f"{stages} {each} GB by the model's size, and {_BESIDE_GB} beside"


def _of_local_model(recipe: Recipe, kind: str) -> float | None:
    """Bytes of a stage that holds the model; None where it does not lie here, or is not what it should be."""
    if not isinstance(recipe.model, Directory | Gguf):
        return None
    try:
        return memory_of_stage(recipe.model.facts(), Device(kind, kind, None))
    except QuantizeError:
        return None
