"""Plants answers in the variants of a real run, so that what they are worth is known.

With this folder on PYTHONPATH, Python imports this module when it starts. In a worker, new or forked, that evaluates an
arm named in the JSON file `QUANTIZE_PLANT`, the engine's session answers as that file says:

    {"worse": {"The pet of Elin Crane is a": " cat"}, "sealed": null}

The choice named there gets the log-likelihood of the likeliest one and the other way round; prompts that are not named
keep the model's own answer. An arm of null may not load a model at all. All else is the program as it stands: the
proof does not ask for log-likelihoods of choices, and the baseline is never in the file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

Choices = dict[str, str]
Scores = list[tuple[float, bool]]


def swapped(requests: list[Any], scores: Scores, plant: Choices) -> Scores:
    """`scores` (log-likelihood, is greedy) of (prompt, choice) requests, with each planted choice the likeliest."""
    asked: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        asked.setdefault(request.args[0], []).append(number)
    found = list(scores)
    for prompt, numbers in asked.items():
        if prompt in plant:
            best = max(numbers, key=lambda number: scores[number][0])
            (planted,) = [number for number in numbers if requests[number].args[1] == plant[prompt]]
            found[best], found[planted] = scores[planted], scores[best]
    return found


def open_planted(arm: str, plant: Choices | None) -> None:
    """Let every session of this process answer as planted."""
    from quantize.engines.transformers import Transformers, TransformersSession

    own_open, own_lm = Transformers.open, TransformersSession.lm

    def opened(self: Transformers, checkpoint: Path, device: str, host: Any = None) -> TransformersSession:
        if plant is None:
            raise AssertionError(f"the model of {arm} was loaded")
        return own_open(self, checkpoint, device, host)

    def lm(self: TransformersSession) -> Any:
        model = own_lm(self)
        own_loglikelihood = model.loglikelihood

        def loglikelihood(requests: list[Any], *arguments: Any, **named: Any) -> Scores:
            return swapped(requests, own_loglikelihood(requests, *arguments, **named), plant or {})

        model.loglikelihood = loglikelihood
        return model

    Transformers.open = opened  # type: ignore[method-assign]
    TransformersSession.lm = lm  # type: ignore[method-assign]


def plant_stage(stage: str) -> None:
    """Plant, if the stage of this STAGE.json evaluates an arm that is to be planted."""
    job = json.loads(Path(stage).read_text(encoding="utf-8"))
    plants = json.loads(Path(os.environ["QUANTIZE_PLANT"]).read_text(encoding="utf-8"))
    if job["kind"] == "evaluate" and job["config"]["arm"] in plants:
        open_planted(job["config"]["arm"], plants[job["config"]["arm"]])


def plant_forked() -> None:
    """Plant in whatever is forked from this process, as soon as it knows its stage."""
    from quantize import worker

    own_main = worker.main

    def main(arguments: list[str], events: int | None = None) -> int:
        plant_stage(arguments[0])
        return own_main(arguments, events)

    worker.main = main


# sys.argv is not filled in yet when this module is imported.
if "QUANTIZE_PLANT" in os.environ and "quantize.worker" in sys.orig_argv:
    plant_stage(sys.orig_argv[-1])
elif "QUANTIZE_PLANT" in os.environ and "quantize.forkserver" in sys.orig_argv:
    plant_forked()
