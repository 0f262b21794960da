"""How the stages of a run share a machine: what there is, what each asks for, and which comes first.

The earliest possible decision comes first: a stage is as urgent as the variant with the fewest seconds left to its
verdict that needs it, of equal ones that which the recipe names first. What several variants need goes before what one
of them needs. Nothing of this is part of a key.

Where several stages run at once the last decision counts too. A variant that has so much left that the others' work,
shared out, may end before it is *long*: it comes right after the nearest one, the longest first. A benchmark keeps the
machine from beginning anything until what runs has ended; while a variant is long, all benchmarks but the nearest
variant's let all else go first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from quantize.device import Device
from quantize.handed import WITHOUT_DEVICE
from quantize.plan import Plan, Stage, VariantPlan
from quantize.recipe import Resources
from quantize.slots import Capacity, Request

__all__ = ["Cost", "Sharing", "at_once", "share_of_threads"]

#: A variant is long that has more than this share of the time in which all work could be done by as many stages as fit,
#: where those are so many on average: with fewer, it would rather keep the others waiting.
_LONG, _MANY = 0.5, 2.5
#: Kinds of stages that hold the whole model in the host's memory even where a GPU computes.
_IN_HOST = ("convert", "imatrix", "quantize")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage is expected to take: seconds, and bytes of memory; None where that is not known."""

    seconds: float | None
    memory: float | None


@dataclass
class Sharing:
    """One run's use of a machine. `threads` are a stage's CPU threads (None: the executor's).

    `costs` by label; a stage that is not in it is expected to take no time and no memory. `ways` are the stages that
    each variant's verdict needs, `beside` how many like it fit at once, of each stage that runs beside others.
    """

    capacity: Capacity
    threads: int | None
    costs: Mapping[str, Cost]
    ways: Sequence[frozenset[str]]
    beside: Mapping[str, int] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, plan: Plan, resources: Resources, gpus: Sequence[Device], memory: float | None, costs: Mapping[str, Cost]
    ) -> Sharing:
        """How a plan's stages share these GPUs (none on a CPU) and the host's bytes of memory."""
        stages = [_stages_of(plan, way) for way in plan.variants]
        ways = [frozenset(stage.label for stage in way) for way in stages]
        capacity = _capacity(resources, plan.device, gpus, memory, costs)
        sharing = cls(capacity, share_of_threads(resources, plan.device, gpus), costs, ways)
        together = {stage.label: stage for way in stages for stage in way if not stage.alone}
        many = len(capacity.devices)
        sharing.beside = {
            label: many // devices
            for label, stage in together.items()
            if 0 < (devices := sharing.request(stage).devices) <= many
        }
        return sharing

    def request(self, stage: Stage) -> Request:
        """What a stage asks for."""
        cost = self.costs.get(stage.label, Cost(None, None))
        devices = 0 if stage.kind in WITHOUT_DEVICE else self._devices(stage, cost)
        on_gpu = devices > 0 and stage.device != "cpu"
        return Request(
            who=f"stage {stage.label}",
            priority=self.urgency(stage.label, alone=stage.alone),
            devices=devices,
            memory=cost.memory if not on_gpu or stage.kind in _IN_HOST else None,
            device_memory=cost.memory if on_gpu else None,
            alone=stage.alone,
        )

    def urgency(self, label: str, alone: bool = False) -> tuple[float, ...]:
        """What is lower comes first: rank, seconds left to the verdict, whether one variant alone needs it, its number.

        Ranks are 0 for the nearest variant, 1 for long ones, 2 for others, 3 for benchmarks while there are long ones.
        """
        left = {number: self._left(way) for number, way in enumerate(self.ways) if way - self._done}
        nearest = min(left, key=lambda number: (left[number], number), default=None)
        long = self._long(left)
        needing = [number for number, way in enumerate(self.ways) if label in way]
        several = len(needing) > 1
        found = []
        for number in needing:
            seconds = left.get(number, 0.0)
            if number == nearest:
                found.append((0.0, seconds, not several, number))
            elif alone and long:
                found.append((3.0, seconds, not several, number))
            elif number in long:
                found.append((1.0, -seconds, not several, number))
            else:
                found.append((2.0, seconds, not several, number))
        return min(found, default=(0.0,))

    def passed(self, label: str) -> None:
        """A stage is done: no verdict waits for it any more."""
        self._done.add(label)

    def _long(self, ways: Collection[int]) -> set[int]:
        """Those that the last verdict may wait for, however the rest is shared out; none where few stages fit."""
        left = {label: self._seconds(label) for label in self.beside.keys() - self._done}
        shared = math.fsum(seconds / self.beside[label] for label, seconds in left.items())
        if math.fsum(left.values()) <= _MANY * shared:
            return set()
        return {number for number in ways if self._left(self.ways[number] & left.keys()) > _LONG * shared}

    def _left(self, labels: frozenset[str]) -> float:
        """Expected seconds of those of the stages that are not done."""
        # Summed exactly: a verdict's distance must not depend on the order of a set.
        return math.fsum(self._seconds(label) for label in labels - self._done)

    def _seconds(self, label: str) -> float:
        cost = self.costs.get(label)
        return (cost.seconds or 0.0) if cost is not None else 0.0

    def _devices(self, stage: Stage, cost: Cost) -> int:
        """How many devices a stage uses: what its engine is told, and as many as its memory needs, as far as known."""
        if stage.device == "cpu":
            return 1
        engine = stage.config.get("engine")
        told = engine.get("tensor_parallel_size", 1) if isinstance(engine, dict) else 1
        sizes = [size for size in self.capacity.devices.values() if size is not None]
        several = len(self.capacity.devices)
        needed = math.ceil(cost.memory / min(sizes)) if sizes and cost.memory is not None else several
        return max(1, int(told), min(needed, several))


def at_once(resources: Resources, device: Device, gpus: Sequence[Device]) -> int:
    """How many stages may use devices at once: one for each GPU of the run's class, one on a CPU, else as told."""
    own = len(_own(device, gpus))
    return min(own, resources.stages or own) if own else resources.stages or 1


def share_of_threads(resources: Resources, device: Device, gpus: Sequence[Device]) -> int | None:
    """CPU threads of a stage where several run side by side and the recipe does not say; None: no limit of ours."""
    several = at_once(resources, device, gpus)
    if resources.threads is not None or several == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores // several)
    return min(share, int(told)) if told.isdecimal() and int(told) else share


def _capacity(
    resources: Resources, device: Device, gpus: Sequence[Device], memory: float | None, costs: Mapping[str, Cost]
) -> Capacity:
    """What there is. Only `memory_gb` refuses a stage: an estimate that the machine alone does not hold runs alone."""
    largest = max((cost.memory or 0.0 for cost in costs.values()), default=0.0)
    limit = resources.memory_gb * 1e9 if resources.memory_gb is not None else memory and max(memory, largest)
    if own := _own(device, gpus):
        least = largest / len(own)
        sizes = {f"{device.kind}:{n}": gpu.memory and max(gpu.memory, least) for n, gpu in own.items()}
        # With one GPU stages run one after the other, unless the recipe says that others may run beside.
        return Capacity(sizes, limit, resources.stages or (1 if len(own) == 1 else None))
    several = resources.stages or 1
    names = [f"{device.kind}:{n}" for n in range(several)] if several > 1 else [device.kind]
    return Capacity(dict.fromkeys(names), limit, several)


def _own(device: Device, gpus: Sequence[Device]) -> dict[int, Device]:
    """The GPUs of the class that stands in keys, by their number; none on a CPU."""
    if device.kind == "cpu":
        return {}
    return {n: gpu for n, gpu in enumerate(gpus) if gpu.device_class == device.device_class}


def _stages_of(plan: Plan, way: VariantPlan) -> list[Stage]:
    """All that a variant's verdict needs."""
    measured = way.measured(1)
    timed = (way.baseline.benchmark, measured.benchmark, measured.ahead) if measured.benchmark is not None else ()
    found = [plan.fetch, way.calibrate, *way.forms, *way.baseline.stages(), way.quantize, way.prove]
    found += [*measured.evaluate.values(), *timed, measured.judges[-1]]
    return [stage for stage in found if stage is not None]
