"""The model card of a variant: read back as the hub reads it, equal for equal inputs, and part of what is judged."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from program import TINY

from quantize.card import Made, Origin, write_card
from quantize.scheme import PRESETS, preset

sys.path.insert(0, str(Path(__file__).parent / "sources"))
from small_gguf import write_small_gguf

#: Heads of pages that are no front matter, or none that can be read.
UNREADABLE = ["---\n: : [\n---\n", "---\n- a list\n---\n", "no front matter at all", "---\nlicense: "]
HUB = Origin("hub", "d" * 64, "meta-llama/Llama-Tiny", "c" * 40)
LOCAL = Origin("directory", "d" * 64)
W4A16 = Made(preset("W4A16"), "gptq", "compressed-tensors", {"block_size": 128}, ["lm_head"], 0, {"llmcompressor": "1"})
THEIRS = """---
language: [en, de]
license: other
license_name: llama-tiny
license_link: LICENSE
pipeline_tag: text-generation
tags: [facebook, llama]
extra_gated_prompt: |
  ### TERMS
  Tell us who you are: all of it.
model-index: [{name: theirs, results: []}]
base_model: meta-llama/Something-Before
---
# A model of few words
"""


@pytest.fixture
def baseline(tmp_path):
    """A checkpoint with a card, a licence, and what the licence refers to."""
    folder = tmp_path / "baseline"
    folder.mkdir()
    shutil.copyfile(TINY / "checkpoint" / "config.json", folder / "config.json")
    for name in ("LICENSE", "NOTICE", "USE_POLICY.md"):
        (folder / name).write_text(f"the text of {name}", encoding="utf-8")
    (folder / "README.md").write_text(THEIRS, encoding="utf-8")
    return folder


def read(page: Path) -> Any:
    """The card as the hub's own library reads it."""
    from huggingface_hub import ModelCard

    return ModelCard.load(page)


def written(baseline: Path, origin: Origin = HUB, made: Made = W4A16, name: str = "out") -> Path:
    out = baseline.parent / name
    out.mkdir(exist_ok=True)
    write_card(out, baseline, origin, made)
    return out


def test_licence_language_tags_and_terms_are_carried_and_measurements_are_not(baseline):
    out = written(baseline)
    card = read(out / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "other" and data["license_name"] == "llama-tiny" and data["license_link"] == "LICENSE"
    assert data["language"] == ["en", "de"] and data["pipeline_tag"] == "text-generation"
    assert data["base_model"] == "meta-llama/Llama-Tiny" and data["base_model_relation"] == "quantized"
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["facebook", "llama", "compressed-tensors", "w4a16", "gptq", "quantize"]
    assert data["extra_gated_prompt"] == "### TERMS\nTell us who you are: all of it.\n"
    assert card.data.eval_results is None and "model-index" not in data
    for name in ("LICENSE", "NOTICE", "USE_POLICY.md"):
        assert (out / name).read_text(encoding="utf-8") == f"the text of {name}"
        assert f"`{name}`" in card.text
    assert f"at commit `{'c' * 40}`" in card.text and "4-bit int weights, groups of 128" in card.text
    assert "vllm serve ." in card.text


def test_a_local_model_without_a_card_gets_no_guessed_base_and_no_licence(baseline):
    (baseline / "README.md").unlink()
    card = read(written(baseline, LOCAL) / "README.md")
    data = card.data.to_dict()
    assert "base_model" not in data and "license" not in data
    assert data["base_model_relation"] == "quantized"
    assert "card names none: ask its author" in card.text


def test_the_parent_of_a_local_model_is_not_called_its_base(baseline):
    """The card of a local fine-tune names what *it* was made of: that is not what was quantized."""
    assert read(written(baseline, LOCAL) / "README.md").data.base_model is None


@pytest.mark.parametrize(
    "head", ["---\n: : [\n---\n", "---\n- a list\n---\n", "no front matter at all", "---\nlicense: "]
)
def test_a_card_that_cannot_be_read_is_passed_over(baseline, head):
    (baseline / "README.md").write_text(head, encoding="utf-8")
    data = read(written(baseline) / "README.md").data.to_dict()
    assert data["base_model"] == "meta-llama/Llama-Tiny" and "license" not in data


def test_a_checkpoint_that_has_a_card_and_a_licence_keeps_its_own(baseline):
    out = baseline.parent / "out"
    out.mkdir()
    (out / "README.md").write_text("somebody else's", encoding="utf-8")
    (out / "LICENSE").write_text("another", encoding="utf-8")
    written(baseline)
    assert (out / "README.md").read_text(encoding="utf-8") == "somebody else's"
    assert (out / "LICENSE").read_text(encoding="utf-8") == "another"
    assert (out / "NOTICE").is_file()


def test_equal_inputs_make_equal_cards_wherever_they_lie(baseline, tmp_path):
    moved = shutil.copytree(baseline, tmp_path / "elsewhere" / "model")
    first, second = written(baseline), written(moved, name="other")
    assert (first / "README.md").read_bytes() == (second / "README.md").read_bytes()
    assert str(tmp_path) not in (first / "README.md").read_text(encoding="utf-8")


def test_a_gguf_source_says_its_licence_and_base_itself_and_the_card_serves_by_llama_cpp(baseline, tmp_path):
    (baseline / "README.md").unlink()
    source = tmp_path / "source.gguf"
    base = "https://huggingface.co/org/Small-1B"
    extra = {"general.license": "apache-2.0", "general.base_model.0.repo_url": base, "general.base_model.count": 1}
    write_small_gguf(source, [], extra=extra)
    made = Made(preset("Q4_K_M"), "gguf", "gguf", {}, [], 0)
    origin = Origin("gguf", "d" * 64, gguf=source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.gguf").write_bytes(b"GGUF")
    card = read(written(baseline, origin, made) / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["base_model"] == "org/Small-1B" and data["library_name"] == "gguf"
    assert "llama-server --model model.gguf --alias small-Q4_K_M" in card.text


@pytest.mark.parametrize("scheme", PRESETS)
def test_every_scheme_is_told_in_words(baseline, scheme):
    made = Made(preset(scheme), "rtn", "compressed-tensors", {}, ["re:.*(gate|router)"], 0)
    text = (written(baseline, made=made) / "README.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in table)
    assert f"| scheme | {scheme}: " in text and "None" not in text
