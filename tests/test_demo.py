"""The demo's recipe on the real small model, minutes long: two of its variants; `make demo` makes all five."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import command

from quantize.store import Store

pytestmark = pytest.mark.slow

#: Chance is 25 %; ten points above it there is something for a damaged variant to lose.
MIN_WILSON_LOWER = 0.35
DEMO = Path(__file__).parents[1] / "recipes" / "demo.yaml"
ASK = """
from mlflow import MlflowClient
import sys
MlflowClient(tracking_uri=sys.argv[1], registry_uri=sys.argv[1]).search_model_versions("name='smollm2-135m-instruct'")
"""


def seconds(run) -> float:
    """The least of three wall times: what is measured is the work, not the machine's other business."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        run()
        times.append(time.monotonic() - started)
    return min(times)


#: Those that take no search: GPTQ and AWQ take as long as all the rest together.
ONLY = ("--only", "int8", "--only", "int4-rtn")


@pytest.fixture(scope="module")
def store():
    """The store of `make demo`: what it made is reused, what it did not is made here."""
    place = DEMO.parents[1] / "artifacts"
    result = subprocess.run(
        [sys.executable, "-m", "quantize", "run", DEMO, "--store", place, *ONLY], cwd=DEMO.parents[1], timeout=3000
    )
    assert result.returncode in (0, 3, 4)
    return place


def test_the_demo_decides_its_variants(store):
    document = json.loads(command("report", "--store", store, "--json").stdout)
    outcomes = {variant["name"]: variant["verdict"]["outcome"] for variant in document["variants"]}
    assert list(outcomes) == ["int8", "int4-rtn"]
    assert outcomes["int8"] == "pass"
    assert "error" not in outcomes.values()


def test_a_second_run_is_hardly_slower_than_asking_the_registry_one_question(store):
    uri = f"sqlite:///{store}/mlflow.db"
    asking = seconds(lambda: subprocess.run([sys.executable, "-c", ASK, uri], check=True, capture_output=True))
    again: list[dict[str, object]] = []
    running = seconds(
        lambda: again.append(json.loads(command("run", DEMO, "--store", store, "--json", *ONLY).stdout)),
    )
    print(f"\none question: {asking:.2f} s, a second run: {running:.2f} s")
    assert [document["ran"] for document in again] == [[], [], []]
    assert running <= asking + 2.0


def wilson_lower(right: int, n: int, z: float = 1.959964) -> float:
    """Lower limit of the two-sided 95 % Wilson score interval of a proportion (Wilson 1927)."""
    p = right / n
    return (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def test_the_baseline_is_clearly_above_chance_on_every_slice_of_its_eval_set(store):
    """Where it guesses, no variant can be seen to be worse."""
    from pyarrow import parquet

    evaluations = {manifest.name: place for place, manifest in Store(store).manifests("evaluate")}
    rows = parquet.read_table(evaluations["baseline facts"] / "rows.parquet", columns=["slice", "score"]).to_pylist()
    slices = {row["slice"] for row in rows}
    assert len(slices) > 3
    for name in slices:
        right = [row["score"] for row in rows if row["slice"] == name]
        assert wilson_lower(sum(right), len(right)) >= MIN_WILSON_LOWER, name
