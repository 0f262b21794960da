"""Draws what planted variants answer: chosen rates of losses and gains against the baseline's own answers.

Every item's fate is a hash of (seed, prompt). A right answer is lost at the rate loss/a and a wrong one mended at the
rate gain/(1 - a), a the baseline's accuracy: so over seeds the mean difference is exactly gain - loss, and the share of
items that flip is gain + loss.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def fate(seed: int, prompt: str) -> float:
    """A number in [0, 1), the same wherever it is drawn."""
    return int.from_bytes(sha256(f"{seed} {prompt}".encode()).digest()[:8]) / 2**64


def draw(items: list[dict[str, Any]], baseline: dict[str, str], loss: float, gain: float, seed: int) -> dict[str, str]:
    """The answer to every prompt. `baseline` holds its answers by prompt; `loss` and `gain` are shares of all items."""
    right = {item["prompt"]: item["choices"][item["answer"]] for item in items}
    accuracy = sum(baseline[prompt] == answer for prompt, answer in right.items()) / len(items)
    plant = {}
    for item in items:
        prompt, answer = item["prompt"], baseline[item["prompt"]]
        if answer == right[prompt]:
            wrong = [choice for choice in item["choices"] if choice != answer]
            other, rate = wrong[int(3 * fate(-1 - seed, prompt))], loss / accuracy
        else:
            other, rate = right[prompt], gain / (1 - accuracy)
        plant[prompt] = other if fate(seed, prompt) < rate else answer
    return plant


def planted(folder: Path, plants: dict[str, dict[str, str] | None]) -> dict[str, str]:
    """The environment of a run whose arms named in `plants` answer as it says."""
    path = folder / "plants.json"
    path.write_text(json.dumps(plants), encoding="utf-8")
    return {"QUANTIZE_PLANT": str(path), "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"}
