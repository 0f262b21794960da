"""A run in virtual time: the shipped `Sharing` asks and the shipped `Slots` grant, nothing is run.

The order in which stages are asked for is that of `run.Runner` and `in_common.InCommon`: fetching first; then a task
for every stage that variants have in common, and one for each variant's way, all at once. A task asks for its next
stage when the one before is done and all that the stage reads is there. Whoever comes to a stage that another task is
doing waits for that. Every variant passes: no way is cut short.

The lower bound holds for every schedule of these stages on this machine, and is the largest of

    critical path    the longest chain of stages, each of which waits for the one before
    alone            all that want the machine alone, and the longest chain of the others: they exclude each other
    work             from any moment h on, what cannot begin before h: seconds x share of the machine, and after it what
                     must follow any of it. One that is alone has all of it. Shares are counted as they are, and
                     as they can be packed: of requests for 3 of 8 GPUs two fit, so each is worth half
                     (dual feasible functions, G. S. Lueker 1983). The same for the host's memory.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from itertools import chain, pairwise

from quantize.plan import Plan, Stage, VariantPlan
from quantize.sharing import Sharing
from quantize.slots import Request, Slots

#: A chain of stages, one after the other.
Task = list[Stage]
#: How finely shares are rounded for the bound.
_PACKINGS = range(1, 17)


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a virtual run, in seconds. `spans`: begin, end and devices of every stage, by label."""

    makespan: float
    first: float
    spans: dict[str, tuple[float, float, tuple[str, ...]]]
    devices: int

    @property
    def utilisation(self) -> float:
        """Share of the GPUs' time in which a stage had them."""
        used = sum((end - begin) * len(names) for begin, end, names in self.spans.values())
        return used / (self.makespan * self.devices)


def tasks(plan: Plan) -> Iterator[Task]:
    """The tasks of a run, in the order in which they are spawned."""
    yield from ([stage] for stage in plan.calibrations())
    yield from ([stage] for baseline in plan.baselines for stage in baseline.stages())
    yield from (_way(way) for way in plan.variants)


def _way(way: VariantPlan) -> Task:
    measured = way.measured(1)
    made = [*way.forms, way.quantize, way.prove, *measured.evaluate.values()]
    if measured.benchmark is None:
        return [*made, measured.judges[-1]]
    timed = [way.baseline.benchmark, measured.benchmark, measured.ahead]
    before = measured.judges[len(measured.evaluate)]  # only what passed its evals is benchmarked
    return [*made, before, *(stage for stage in timed if stage is not None), measured.judges[-1]]


@dataclass
class _Walk:
    """Tasks on their way. `left` are what each still has to do."""

    sharing: Sharing
    seconds: Mapping[str, float]
    slots: Slots
    left: list[Task]
    now: float = 0.0
    done: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    waiting: dict[int, Stage] = field(default_factory=dict)
    ending: list[tuple[float, int, Stage]] = field(default_factory=list)
    spans: dict[str, tuple[float, float, tuple[str, ...]]] = field(default_factory=dict)
    verdicts: list[float] = field(default_factory=list)

    def ask(self) -> None:
        """Every task asks for its next stage, if it may."""
        for task in self.left:
            while task and task[0].key in self.done:
                self.sharing.passed(task.pop(0).label)
                if not task:
                    self.verdicts.append(self.now)
            if task and task[0].key not in self.asked and {s.key for s in task[0].inputs.values()} <= self.done:
                self.asked.add(task[0].key)
                self.waiting[self.slots.submit(self.sharing.request(task[0]))] = task[0]

    def grant(self) -> None:
        """What is granted begins."""
        for ticket, devices in self.slots.granted():
            stage = self.waiting.pop(ticket)
            end = self.now + self.seconds[stage.label]
            self.spans.setdefault(stage.key, (self.now, end, devices))
            heapq.heappush(self.ending, (end, ticket, stage))

    def end(self) -> None:
        """Go on to when the next stages end."""
        self.now = self.ending[0][0]
        while self.ending and self.ending[0][0] <= self.now:
            _, ticket, stage = heapq.heappop(self.ending)
            self.slots.release(ticket)
            self.done.add(stage.key)


def simulate(plan: Plan, sharing: Sharing, seconds: Mapping[str, float]) -> Ran:
    """Run a plan in virtual time. `seconds` by label are what stages take, whatever `sharing` expects of them."""
    first = [[plan.fetch]]
    walk = _Walk(sharing, seconds, Slots(sharing.capacity), first)
    for left in (first, list(tasks(plan))):
        walk.left, walk.verdicts = left, []
        walk.ask()
        while any(left):
            walk.grant()
            assert walk.ending, "nothing runs and something waits"
            walk.end()
            walk.ask()
    ways = walk.verdicts
    return Ran(max(ways), _first(plan, walk), walk.spans, len(sharing.capacity.devices))


def _first(plan: Plan, walk: _Walk) -> float:
    """When the first variant was judged in the end."""
    return min(walk.spans[way.measured(1).judges[-1].key][1] for way in plan.variants)


def lower_bound(plan: Plan, sharing: Sharing, seconds: Mapping[str, float]) -> tuple[float, float]:
    """Seconds that no schedule goes below: the critical path, and the larger of it and all bounds by work."""
    stages, heads, tails = _paths(plan, seconds)
    requests = {key: sharing.request(stage) for key, stage in stages.items()}
    took = {key: seconds[stage.label] for key, stage in stages.items()}
    path = max(heads[key] + took[key] + tails[key] for key in stages)
    alone = {stages[key].label: took[key] for key, request in requests.items() if request.alone}
    _, beside, _ = _paths(plan, {**seconds, **dict.fromkeys(alone, 0.0)})
    judged = [way.measured(1).judges[-1] for way in plan.variants]
    best = max(path, sum(alone.values()) + max(beside[judge.key] + seconds[judge.label] for judge in judged))
    for shares in _shares(requests, sharing):
        counted = sorted((key for key in stages if shares[key] > 0), key=heads.__getitem__, reverse=True)
        work, tail = 0.0, math.inf
        for key in counted:
            work, tail = work + shares[key] * took[key], min(tail, tails[key])
            best = max(best, heads[key] + work + tail)
    return path, best


def _shares(requests: Mapping[str, Request], sharing: Sharing) -> Iterator[dict[str, float]]:
    """What share of the machine each stage is worth while it runs: no stages at once are worth more than 1."""
    many, memory = len(sharing.capacity.devices), sharing.capacity.memory
    wanted = {key: 1.0 if it.alone else it.devices / many for key, it in requests.items()}
    held = {key: 1.0 if it.alone else (it.memory or 0.0) / memory if memory else 0.0 for key, it in requests.items()}
    for shares in (wanted, held):
        yield shares
        for finely in _PACKINGS:
            yield {key: _packed(share, finely) for key, share in shares.items()}


def _packed(share: float, finely: int) -> float:
    """A dual feasible function: what adds up to 1 at most still does."""
    parts = share * (finely + 1)
    return share if math.isclose(parts, round(parts)) else math.floor(parts) / finely


def _paths(plan: Plan, seconds: Mapping[str, float]) -> tuple[dict[str, Stage], dict[str, float], dict[str, float]]:
    """Stages by key, and the seconds that must pass before and after each."""
    chains = [[plan.fetch, *task] for task in tasks(plan)]
    stages = {stage.key: stage for stage in chain.from_iterable(chains)}
    reads = {key: {source.key for source in stage.inputs.values()} & stages.keys() for key, stage in stages.items()}
    # What several ways come to is done when the first of them does.
    comes: dict[str, set[str]] = {key: set() for key in stages}
    for earlier, later in chain.from_iterable(map(pairwise, chains)):
        comes[later.key].add(earlier.key)
    needs = {key: reads[key] | (comes[key] if len(comes[key]) == 1 else set()) for key in stages}
    took = {key: seconds[stage.label] for key, stage in stages.items()}
    order = list(TopologicalSorter({key: reads[key] | comes[key] for key in stages}).static_order())
    heads: dict[str, float] = {}
    for key in order:
        nearest = min((heads[found] + took[found] for found in comes[key]), default=0.0)
        heads[key] = max([nearest, *(heads[found] + took[found] for found in needs[key])])
    tails = dict.fromkeys(stages, 0.0)
    for key in reversed(order):
        for found in needs[key]:
            tails[found] = max(tails[found], took[key] + tails[key])
    return stages, heads, tails
