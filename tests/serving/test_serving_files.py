"""The files that serve an artifact: whole, readable by bash and YAML, and only for engines that take the format."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from quantize.compatibility import verdict
from quantize.device import Device
from quantize.scheme import preset
from quantize.serving import Limits, Served, Shape, describe, pick_draft, write_serving

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
SHAPE = Shape(layers=32, heads=32, kv_heads=8, head_size=128, intermediate_size=14336, context=131072)


def artifact(format_: str, scheme: str | None = None, weights: float = 9e9, alias: str = "small") -> Served:
    return Served("my-model", alias, format_, None if scheme is None else preset(scheme), int(weights), SHAPE)


ARTIFACTS = [
    artifact("none", weights=16e9),
    artifact("compressed-tensors", "FP8_DYNAMIC"),
    artifact("compressed-tensors", "W8A8"),
    artifact("compressed-tensors", "W4A16"),
    artifact("bitsandbytes", "NF4"),
    artifact("bitsandbytes", "INT8"),
    artifact("gptq", "W4A16"),
    artifact("awq", "W4A16_ASYM"),
    artifact("gguf", "Q4_K_M"),
]
SCRIPTS = {"vllm": "vllm.sh", "sglang": "sglang.sh", "tensorrt-llm": "tensorrt-llm.sh", "llamacpp": "llama.cpp.sh"}
COMMANDS = {
    "vllm.sh": "vllm",
    "sglang.sh": "python3",
    "tensorrt-llm.sh": "trtllm-serve",
    "llama.cpp.sh": "llama-server",
}


def named(what: Served) -> str:
    return f"{what.format}-{what.scheme.name if what.scheme else ''}"


def started(folder: Path, files: dict[str, str], script: str, **settings: str) -> tuple[list[str], list[str]]:
    """The arguments that a script calls its server with, and those of `quantize pull`; both stand in as recorders."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for command in (COMMANDS[script], "quantize"):
        recorder = commands / command
        recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/{command}.args"\n', encoding="utf-8")
        recorder.chmod(0o755)
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", **settings}
    subprocess.run(["bash", folder / script], env=environment, check=True, timeout=60)
    pulled = folder / "quantize.args"
    fetched = pulled.read_text(encoding="utf-8").splitlines() if pulled.exists() else []
    return (folder / f"{COMMANDS[script]}.args").read_text(encoding="utf-8").splitlines(), fetched


def value(arguments: list[str], flag: str) -> str:
    assert arguments.count(flag) == 1, f"{flag} in {arguments}"
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize("what", ARTIFACTS, ids=named)
def test_every_script_is_bash_and_every_setting_is_yaml(what):
    files = write_serving(what, draft=replace(what, alias="draft", weights=10**9))
    assert "README.md" in files
    for name, text in files.items():
        if name.endswith(".sh"):
            checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=60)
            assert checked.returncode == 0, checked.stderr
        elif name.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
        assert text.endswith("\n") and not re.search(r"[{}]\w+[{}]|None", text.replace("${", "").replace("{kind", ""))


@pytest.mark.parametrize("what", ARTIFACTS, ids=named)
def test_scripts_are_there_for_those_engines_that_serve_the_format_and_the_page_says_why_not(what):
    files = write_serving(what)
    machines = [Device("cuda", "", None), Device("cpu", "", None)]
    for engine, script in SCRIPTS.items():
        told = [verdict(what.format, what.scheme, engine, machine) for machine in machines]
        assert (script in files) == any(found.outcome != "no" for found in told)
        if script not in files:
            assert told[0].reason in files["README.md"]


def test_each_format_has_an_engine_that_serves_it_except_what_no_server_reads():
    served = {named(what): set(write_serving(what)) & set(SCRIPTS.values()) for what in ARTIFACTS}
    assert served.pop("bitsandbytes-INT8") == set()
    assert all(served.values())
    assert served["gguf-Q4_K_M"] == {"llama.cpp.sh", "sglang.sh"}
    assert served["compressed-tensors-FP8_DYNAMIC"] == {"vllm.sh", "sglang.sh", "tensorrt-llm.sh"}


@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_fetches_what_is_absent_and_hands_its_settings_on(tmp_path, script):
    what = ARTIFACTS[-1] if script == "llama.cpp.sh" else ARTIFACTS[1]
    files = write_serving(what, limits=Limits(4096, 512), gpu=Device("cuda", "a GPU", 24 * 10**9))
    folder = tmp_path / "a folder"
    got, pulled = started(folder, files, script, MODEL=str(tmp_path / "my model"), PORT="9123", REQUESTS="3")
    assert pulled == ["pull", "my-model@small", str(tmp_path / "my model")]
    assert value(got, "--port") == "9123"
    assert any(argument.startswith(str(tmp_path / "my model")) for argument in got), "a path with a space stays whole"
    assert "4096" in got or "12288" in got, "the context, or that of three slots"
    (tmp_path / "my model").mkdir()
    (folder / "quantize.args").unlink()
    _, pulled = started(folder, files, script, MODEL=str(tmp_path / "my model"))
    assert pulled == []


def test_requests_are_bounded(tmp_path):
    files = write_serving(ARTIFACTS[1], limits=Limits(4096, 512))
    vllm, _ = started(tmp_path / "vllm", files, "vllm.sh", REQUESTS="32")
    assert value(vllm, "--max-model-len") == "4096"
    assert value(vllm, "--max-num-seqs") == "32"
    assert int(value(vllm, "--max-num-queued-reqs")) >= 32
    assert json.loads(value(vllm, "--override-generation-config")) == {"max_new_tokens": 512}
    sglang, _ = started(tmp_path / "sglang", files, "sglang.sh", REQUESTS="32", QUEUED="64")
    assert value(sglang, "--context-length") == "4096"
    assert (value(sglang, "--max-running-requests"), value(sglang, "--max-queued-requests")) == ("32", "64")
    gguf = write_serving(ARTIFACTS[-1], limits=Limits(4096, 512))
    llamacpp, _ = started(tmp_path / "llamacpp", gguf, "llama.cpp.sh", REQUESTS="4")
    assert value(llamacpp, "--ctx-size") == str(4 * 4096), "llama.cpp shares one cache among its slots"
    assert value(llamacpp, "--n-predict") == "512"
    assert "limit_conn" in gguf["README.md"], "llama.cpp has no cap of its own"


def test_the_cache_is_what_was_measured(tmp_path):
    plain = write_serving(ARTIFACTS[1])
    small = write_serving(ARTIFACTS[1], kv_cache="fp8")
    assert [
        value(started(tmp_path / n, f, "vllm.sh")[0], "--kv-cache-dtype") for n, f in (("a", plain), ("b", small))
    ] == [
        "auto",
        "fp8",
    ]
    assert value(started(tmp_path / "c", small, "sglang.sh")[0], "--kv-cache-dtype") == "fp8_e4m3"
    assert yaml.safe_load(small["tensorrt-llm.yaml"])["kv_cache_config"]["dtype"] == "fp8"
    assert "in the precision of computation" in plain["README.md"] and "`fp8`" in small["README.md"]


def test_rounded_keys_and_values_are_served_as_such_and_sized_as_such(tmp_path):
    rounded = replace(ARTIFACTS[1], scheme=replace(preset("FP8_DYNAMIC"), kv_cache="fp8"))
    card = Device("cuda", "a GPU", 24 * 10**9)
    draft = replace(ARTIFACTS[1], alias="draft", weights=10**9)
    files, plain = (write_serving(what, gpu=card, draft=draft) for what in (rounded, ARTIFACTS[1]))
    got, before = (started(tmp_path / n, f, "vllm.sh")[0] for n, f in (("a", files), ("b", plain)))
    assert (value(got, "--kv-cache-dtype"), value(before, "--kv-cache-dtype")) == ("fp8", "auto")
    assert int(value(got, "--max-num-seqs")) == pytest.approx(2 * int(value(before, "--max-num-seqs")), abs=1)
    assert value(started(tmp_path / "c", files, "sglang.sh")[0], "--kv-cache-dtype") == "fp8_e4m3"
    page = files["README.md"]
    assert "as it was when the answers were measured: `fp8`" in page
    assert "A token takes 65,536 bytes of KV cache at 8 bits." in page
    assert "A token takes 131,072 bytes of KV cache at 16 bits." in plain["README.md"]
    table = [line for line in page.splitlines() if line.startswith("| card") or (line[:2] == "| " and "GB (" in line)]
    assert table[0] == "| card | GPUs (`TENSOR_PARALLEL`) | requests at once | with the draft |"
    assert {line.count("|") for line in table} == {5}
    assert f"| 24 GB (L4, A10, RTX 4090) | 1 | {value(got, '--max-num-seqs')} |" in page
    # A precision that the recipe names is what was measured.
    assert "`bfloat16`" in write_serving(rounded, kv_cache="bfloat16")["README.md"]


def test_tensor_parallelism_follows_the_card(tmp_path):
    large = replace(artifact("none", weights=60e9), shape=SHAPE)
    for memory, gpus in ((80e9, "1"), (48e9, "2"), (24e9, "4")):
        files = write_serving(large, gpu=Device("cuda", "a GPU", int(memory)))
        got, _ = started(tmp_path / gpus, files, "vllm.sh")
        assert value(got, "--tensor-parallel-size") == gpus
        assert f"cards of {memory / 1e9:.0f} GB" in files["README.md"]


def test_a_draft_is_the_smallest_of_less_than_half_the_bytes():
    model = artifact("compressed-tensors", "FP8_DYNAMIC", 9e9)
    others = [artifact("gguf", "Q4_K_M", size * 1e9, alias) for alias, size in (("a", 4.6), ("b", 4.4), ("c", 2.5))]
    assert pick_draft(model, [model, *others]) == others[2]
    assert pick_draft(model, others[:1]) is None
    assert pick_draft(model, []) is None


def test_a_draft_is_used_where_asked_for_and_only_by_engines_that_load_it(tmp_path):
    model = artifact("compressed-tensors", "FP8_DYNAMIC", 9e9)
    draft = artifact("compressed-tensors", "W4A16", 4.4e9, "tiny")
    files = write_serving(model, draft=draft)
    assert "--speculative-config" not in started(tmp_path / "off", files, "vllm.sh")[0]
    got, pulled = started(tmp_path / "on", files, "vllm.sh", DRAFT="/draft", MODEL=str(TINY))
    assert pulled == ["pull", "my-model@tiny", "/draft"]
    asked = json.loads(value(got, "--speculative-config"))
    assert asked == {"method": "draft_model", "model": "/draft", "num_speculative_tokens": 4}
    got, _ = started(tmp_path / "sglang", files, "sglang.sh", DRAFT="/draft")
    assert value(got, "--speculative-draft-model-path") == "/draft"
    assert value(got, "--speculative-algorithm") == "STANDALONE"
    assert "DRAFT" not in files["tensorrt-llm.sh"]
    foreign = write_serving(model, draft=artifact("gguf", "Q2_K", 3e9, "tiny"))
    assert not any("DRAFT" in text for text in foreign.values()), "no engine loads both"
    gguf = write_serving(artifact("gguf", "Q8_0", 9e9), draft=artifact("gguf", "Q2_K", 3e9, "tiny"))
    got, _ = started(tmp_path / "llamacpp", gguf, "llama.cpp.sh", DRAFT="/draft")
    assert value(got, "--spec-draft-model") == "/draft/model.gguf"
    assert "## Speculative decoding" in gguf["README.md"]


def test_names_that_a_shell_would_read_stay_names(tmp_path):
    odd = replace(ARTIFACTS[-1], name="it's $HOME")
    got, pulled = started(tmp_path, write_serving(odd), "llama.cpp.sh")
    assert value(got, "--alias") == "it's $HOME"
    assert pulled[1] == "it's $HOME@small"


def test_a_model_of_unknown_shape_is_served_without_claims():
    files = write_serving(replace(ARTIFACTS[1], shape=None))
    assert "does not follow from its heads" in files["README.md"]
    assert "TENSOR_PARALLEL:-1}" in files["vllm.sh"]


def test_a_checkpoint_describes_itself():
    what = describe(TINY, "tiny", "int8", "compressed-tensors", preset("W8A8"), 1_200_000)
    assert what.shape is not None and what.shape.head_size == 32
    assert "1,024 tokens" in write_serving(what)["README.md"], "the context that the tiny Llama was trained on"
