"""A run whose variant is served: real GuideLLM traffic on llama.cpp's own server, and the variant as a draft.

The tiny model's tokens come faster than a client can tell apart, so no time is judged here: what is held is that both
arms are served, sent the same requests, answered whole, and that a draft is an arm of its own.
"""

from __future__ import annotations

import json

import pytest
from program import command, tiny_recipe, write_recipe

from quantize.benchmark import read
from quantize.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.alone]

BLOCKS = 6


@pytest.fixture(scope="module")
def served(environment, tmp_path_factory):
    """A finished run: (store, its JSON document)."""
    for name in ("guidellm", "llamacpp"):
        environment(name)
    folder = tmp_path_factory.mktemp("served")
    recipe = tiny_recipe(
        variants=[{"name": "q8", "scheme": "Q8_0", "method": {"kind": "gguf"}}],
        registry={"kind": "mlflow", "name": "tiny", "targets": {"edge": {"from": ["q8"]}}},
        gates=[
            {"kind": "noninferiority", "metric": "facts.accuracy", "margin": 0.1},
            {"kind": "latency", "metric": "load.failures/traffic", "at_most": 0.1},
        ],
        benchmark={
            "requests": {"kind": "synthetic", "shapes": [{"input": 12, "output": 8}]},
            "loads": [
                {"kind": "synchronous", "name": "single", "requests": 4},
                {"kind": "poisson", "name": "traffic", "rate": 20, "requests": 8},
                {"kind": "sweep", "name": "sweep", "of_knee": [0.1, 0.3], "requests": 4},
            ],
            "blocks": BLOCKS,
            "warmup": 1,
            "drift": 0.99,
            "foreign": 1.0,
            "reruns": 20,
            "curve": [1, 2],
            "curve_requests": 4,
            "draft": "q8",
        },
    )
    path = write_recipe(folder, recipe)
    result = command("run", path, "--store", folder / "store", "--json", "--no-release", seconds=1200)
    assert result.returncode in (0, 4), result.stderr
    return folder / "store", json.loads(result.stdout)


def artifact(served, label):
    store, document = served
    (variant,) = document["variants"]
    return read(Store(store).path("benchmark", variant["stages"][label]))


@pytest.mark.parametrize("label", ["benchmark", "benchmark.ahead"])
def test_both_arms_are_served_and_answer_every_request_whole(served, label):
    found = artifact(served, label)
    assert len(found.valid) == BLOCKS
    sent = [row for row in found.rows if not row["warmup"]]
    assert len(sent) == BLOCKS * 2 * (4 + 8 + 2 * 4)
    assert found.loads == ["single", "traffic", "sweep-10", "sweep-30"]
    assert {row["error.type"] for row in sent} == {None}
    assert {(row["gen_ai.usage.input_tokens"], row["gen_ai.usage.output_tokens"]) for row in sent} == {(12, 8)}
    for row in sent:
        assert row["scheduled"] <= row["dispatched"] <= row["tokens"][0] <= row["tokens"][-1] <= row["end"]
    facts = found.valid[-1].facts
    assert set(facts) == {"baseline", "variant"}
    assert all("version" in said for said in facts.values())


def test_arrivals_are_the_same_for_both_arms_of_a_block_and_others_in_the_next(served):
    rows = [row for row in artifact(served, "benchmark").rows if row["load"] == "traffic" and not row["warmup"]]
    scheduled = {
        # Two that are a millisecond apart may be sent in either order, and a disturbed block is measured again.
        (block, arm): sorted({round(row["scheduled"], 6) for row in rows if (row["block"], row["arm"]) == (block, arm)})
        for block in range(1, BLOCKS + 1)
        for arm in ("baseline", "variant")
    }
    assert all(scheduled[block, "baseline"] == scheduled[block, "variant"] for block in range(1, BLOCKS + 1))
    assert scheduled[1, "baseline"] != scheduled[2, "baseline"]


def test_the_report_shows_the_draft_beside_the_baseline_and_judges_nothing_by_it(served):
    store, document = served
    told = " ".join(command("report", document["run"], "--store", store).stdout.split())
    assert "the baseline with q8 guessing ahead, beside the baseline alone" in told
    assert "q8 is smaller" in told
    arms = json.loads(command("capacity", document["run"], "--rps", "5", "--store", store, "--json").stdout)["arms"]
    assert [arm["name"] for arm in arms] == ["baseline", "q8", "baseline with q8 ahead"]
    assert all(arm["production"] and arm["replicas"] == 1 for arm in arms)
