"""What fails in one engine, fails one variant: the others are decided, nothing is left running, nothing is believed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from format_world import NF4, Q8, W8A8, outcomes, processes, reseal, said_of, variants_of
from program import workers_of

pytestmark = pytest.mark.engine

#: After this many seconds nothing of a run may be left: the guard's grace, and the time to see it on a busy machine.
SOON = 30.0
#: A block of Q8_0: a scale and as many bytes as weights.
Q8_0_WEIGHTS, Q8_0_BYTES = 32, 34


def gone(*words: str | Path) -> bool:
    """Whether no process with these words is left, soon."""
    deadline = time.monotonic() + SOON
    while processes(*words) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes(*words)


@pytest.mark.parametrize("kind", ["prove", "evaluate"])
def test_an_engine_that_is_killed_while_it_loads_stops_its_variant_alone_and_the_next_run_tries_again(world, kind):
    victim = world.find("quantize", "q8")
    before = world.contents()
    world.forget(kind, *(["look"] if kind == "evaluate" else []), arm="q8")
    code, document, said = world.run(
        "--no-release", ENGINE_FAULT="killed", ENGINE_VICTIM=f"/{victim.name}/checkpoint/model.gguf"
    )
    assert code == 1, said
    assert outcomes(document) == {**outcomes(world.document), "q8": "error"}
    assert "llama.cpp was killed (SIGKILL)" in said_of(document, "q8")
    assert "Traceback" not in said_of(document, "q8")
    assert not [name for name in world.names(kind) if name.split()[0] == "q8"]
    code, document, said = world.run("--no-release")
    assert code == world.document["exit_code"], said
    assert outcomes(document) == outcomes(world.document)
    assert {label.split()[0] for label in document["ran"]} == {kind}
    assert world.contents() == before
    assert gone(world.store)


def test_an_engine_that_hangs_is_stopped_at_its_deadline_and_leaves_no_process(world):
    """How long to wait is in no key: what was measured with another deadline is believed."""
    hasty = world.with_variants({**Q8, "engine": {"kind": "llamacpp", "load_seconds": 3}}, NF4)
    victim = world.find("quantize", "q8")
    world.forget("prove", arm="q8")
    code, document, said = hasty.run("--no-release", ENGINE_FAULT="hangs", ENGINE_VICTIM=f"/{victim.name}/checkpoint/")
    assert code == 1, said
    assert outcomes(document) == {**outcomes(world.document), "q8": "error"}
    assert "llama.cpp did not load the model within 3 seconds and was stopped" in said_of(document, "q8")
    assert "raise the engine's load_seconds" in said_of(document, "q8")
    assert document["ran"] == []
    assert "q8" not in world.names("prove")
    assert gone(world.store)
    code, document, said = world.run("--no-release")
    assert document["ran"] == ["prove q8"], said
    assert outcomes(document) == outcomes(world.document)


def damage_a_row(path: Path) -> None:
    """The signs of the scales of one row: a bit each, in a Linear of 28."""
    from gguf import GGUFReader

    tensor = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "blk.2.ffn_down.weight")
    blocks = int(tensor.shape[0]) // Q8_0_WEIGHTS
    with path.open("r+b") as file:
        for block in range(blocks):
            place = int(tensor.data_offset) + block * Q8_0_BYTES + 1  # float16, its low byte first
            file.seek(place)
            (high,) = file.read(1)
            file.seek(place)
            file.write(bytes([high ^ 0x80]))


def cut_short(path: Path) -> None:
    """A copy that ran out of disk."""
    os.truncate(path, path.stat().st_size * 2 // 3)


@pytest.mark.parametrize("damage", [damage_a_row, cut_short])
def test_a_gguf_file_that_was_damaged_after_it_was_made_fails_its_proof_and_only_it(world, damage):
    made = world.find("quantize", "q8")
    damage(made / "checkpoint" / "model.gguf")
    reseal(made)
    world.forget("prove", arm="q8")
    code, document, said = world.run("--no-release")
    assert code == 3, said
    assert outcomes(document) == {**outcomes(world.document), "q8": "fail"}
    assert "prove q8" in document["ran"]
    assert not [label for label in document["ran"] if label.startswith("evaluate")]
    named = {damage_a_row: "blk.2.ffn_down", cut_short: "cut short"}[damage]
    assert named in said_of(document, "q8")
    proof = json.loads((world.find("prove", "q8") / "proof.json").read_text(encoding="utf-8"))
    assert proof["outcome"] == "fail"
    assert outcomes(world.run("--no-release")[1])["q8"] == "fail"


def test_a_forced_variant_that_its_engine_cannot_load_ends_in_a_clear_proof(world):
    forced = world.with_variants({**W8A8, "engine": {"kind": "llamacpp"}, "force": True}, Q8)
    planned = forced.command("plan")
    assert planned.returncode == 0
    assert "note: variants.int8: llamacpp does not serve compressed-tensors W8A8 here" in planned.stdout
    code, document, said = forced.run("--no-release")
    assert code == 3, said
    assert outcomes(document) == {"int8": "fail", "q8": outcomes(world.document)["q8"]}
    assert "there is no GGUF model" in said_of(document, "int8")
    assert "use the method gguf, or another engine" in said_of(document, "int8")
    assert not [label for label in document["ran"] if label.startswith("evaluate")]


def test_a_head_that_bitsandbytes_would_quantize_is_named_and_stops_that_variant_alone(world):
    code, document, said = world.with_variants({**NF4, "name": "headless", "ignore": []}, NF4, Q8).run("--no-release")
    assert code == 1, said
    assert outcomes(document) == {**outcomes(world.document), "headless": "error"}
    assert "would quantize the output head lm_head. Put lm_head into the variant's `ignore`" in said_of(
        document, "headless"
    )


def test_a_variant_whose_environment_is_gone_stops_the_others_not_at_all(world, tmp_path):
    """What is there already is believed without the engine; what is not is refused before any work."""
    nothing = dict.fromkeys(world.variables, "") | {"QUANTIZE_ENVS": str(tmp_path / "envs")}
    refused = world.command("run", "--no-release", **nothing)
    assert refused.returncode == 2
    assert "run `quantize env create llamacpp`" in refused.stderr
    code, document, said = world.run("--no-release", "--only", "nf4", **nothing)
    assert code in (0, 3, 4), said
    assert outcomes(document) == {"nf4": outcomes(world.document)["nf4"]}, said
    assert not [
        label for label in document["ran"] if not label.startswith(("evaluate baseline", "evaluate nf4", "judge"))
    ]


@pytest.mark.parametrize("with_its_worker", [False, True])
def test_the_engine_of_a_killed_run_ends_and_the_run_resumes(world, with_its_worker, monkeypatch):
    """The worker of a killed driver may end its stage; one that is killed as well takes its engine with it."""
    for name, value in world.variables.items():
        monkeypatch.setenv(name, value)
    before = world.contents()
    world.forget("evaluate", "look", arm="q8")
    driver = world.begin()
    deadline = time.monotonic() + 120
    while not (engines := processes("_llamacpp_process.py", world.store)):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = workers_of(driver)
    assert engines and workers
    for pid in (driver.pid, *(workers if with_its_worker else [])):
        os.kill(pid, signal.SIGKILL)
    driver.communicate()
    if with_its_worker:
        assert gone(world.store)
        assert len(world.contents()) < len(before)
    code, document, said = world.run("--no-release")
    assert code == world.document["exit_code"], said
    assert outcomes(document) == outcomes(world.document)
    assert ("evaluate q8 prose" in document["ran"]) == with_its_worker
    assert world.contents() == before
    assert gone(world.store)
    assert "decision" in variants_of(document)["q8"]
    assert list((world.store / "drafts").iterdir()) == []
