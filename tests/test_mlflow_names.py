"""What a real run leaves in MLflow, by name: metrics, tags and datasets that dashboards and filters rest on.

The lists are written out. To change one is a decision: whoever filters by a name finds nothing any more.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from program import TINY

from quantize.metrics import Items
from quantize.registries._client import asking

DOCS = Path(__file__).parent.parent / "docs" / "mlflow.md"
#: Of each arm, with an interval.
BOUNDED = ["facts.accuracy", "facts.accuracy/facts", "facts.accuracy/sums", "prose.perplexity"]
#: Of each variant besides, with an interval.
VARIANTS = ["prose.delta_p", "prose.delta_p_rms", "prose.kl_divergence", "prose.top1_agreement"]
DIFFERENCES = [*BOUNDED, "prose.delta_p_rms", "prose.kl_divergence", "prose.top1_disagreement"]
TAIL = [f"prose.kl_divergence/{share}" for share in ("max", "median", "p90", "p95", "p99", "p99.9")]
PLAIN = ["weights.bytes", "weights.bits_per_weight"]
OF_VARIANTS = ["attempt", "facts.items", "facts.answered", "memory.peak", "memory.weights", "weights.bytes.difference"]
STAGES = {"baseline": ["calibrate", "fetch"], "int8": ["prove", "quantize"], "int4-gptq": ["prove", "quantize"]}
SHARED = ["evaluate.facts", "evaluate.prose"]
TAGS = ["device", "engine", "model", "program", "recipe", "run", "variant"]


@pytest.fixture(scope="module")
def runs(finished: tuple[Path, dict[str, Any], Path]) -> dict[str, Any]:
    """The MLflow runs of the arms of a finished run, by name."""
    return {run.info.run_name: run for run in search(finished[0], "") if "mlflow.parentRunId" in run.data.tags}


def search(store: Path, words: str) -> list[Any]:
    """What MLflow finds by a filter."""
    with asking(f"sqlite:///{store}/mlflow.db") as client:
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()], words))


def bounded(names: list[str]) -> set[str]:
    """Each of the names, and those of its interval."""
    return {f"{name}{end}" for name in names for end in ("", ".low", ".high")}


@pytest.mark.parametrize("name", ["baseline", "int8", "int4-gptq"])
def test_the_names_of_metrics_are_these(runs, name):
    wanted = bounded(BOUNDED) | set(PLAIN)
    wanted |= {f"stage.{s}.{u}" for s in (*SHARED, *STAGES[name]) for u in ("seconds", "peak_memory_bytes")}
    if name != "baseline":
        wanted |= bounded(VARIANTS) | bounded([f"{metric}.difference" for metric in DIFFERENCES])
        wanted |= {*OF_VARIANTS, *TAIL, "facts.harmful_flips.difference"}
    assert set(runs[name].data.metrics) == wanted


@pytest.mark.parametrize("name", ["baseline", "int8", "int4-gptq"])
def test_the_tags_to_filter_by_are_these_and_the_documentation_has_them(runs, name):
    found = {key.removeprefix("quantize.") for key in runs[name].data.tags if key.startswith("quantize.")}
    assert found == {*TAGS, *(["action", "method", "outcome", "scheme"] if name != "baseline" else [])}
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`quantize.{tag}`" in text for tag in found)


def test_what_took_long_and_what_took_memory_is_a_number_of_the_stage(runs):
    metrics = runs["int4-gptq"].data.metrics
    assert metrics["stage.quantize.seconds"] > 0
    assert 1e7 < metrics["stage.quantize.peak_memory_bytes"] < 1e11


def test_the_eval_sets_are_datasets_of_every_arm_and_the_calibration_text_of_the_one_that_read_it(runs):
    own = Items(name="facts", path=str(TINY / "items.jsonl")).dataset()
    for name, run in runs.items():
        held = {use.dataset.name: (use.dataset, use.tags[0].value) for use in run.inputs.dataset_inputs}
        read = ["calibration-self"] if name == "int4-gptq" else []
        assert sorted(held) == sorted(["facts", "prose", *read])
        facts, context = held["facts"]
        assert context == "evaluation" and own.startswith(facts.digest) and len(facts.digest) == 36
        assert json.loads(facts.profile) == {"items": 200, "kind": "items", "digest": own}
        assert facts.source_type == "local" and json.loads(facts.source)["uri"].endswith("items.jsonl")
        assert "prompt" in [column["name"] for column in json.loads(facts.schema)["mlflow_colspec"]]
        if read:
            text, context = held["calibration-self"]
            assert context == "calibration" and json.loads(text.profile)["samples"] == 16


def test_the_filters_of_the_documentation_find_what_they_say(finished, runs):
    written = re.findall(r"^    ((?:tags|dataset|metrics)\..*)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    found = {words: {run.info.run_name for run in search(finished[0], words)} for words in written}
    passed = {name for name, run in runs.items() if run.data.tags.get("quantize.outcome") == "pass"}
    by_scheme, by_limit, by_stage, by_dataset = found.values()
    assert by_scheme == passed & {"int8"} == {"int8"}
    assert by_limit == {"int8"}
    assert by_stage == {"int8", "int4-gptq"}
    assert by_dataset == {"baseline", "int8", "int4-gptq"}
