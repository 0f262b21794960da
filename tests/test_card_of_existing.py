"""Somebody else's checkpoint is judged as it is: a lone GGUF file gets a card beside it, a folder gets nothing."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from quantize.artifact import FileEntry, Provenance
from quantize.handed import Host, silent
from quantize.methods import Existing
from quantize.parts import StoreParts
from quantize.record import canonical_json, digest, file_sha256
from quantize.registry import MANIFEST_FILE
from quantize.scheme import preset
from quantize.stages import STAGES, Work
from quantize.store import Store

sys.path.insert(0, str(Path(__file__).parent / "sources"))
from small_gguf import write_small_gguf

PROVENANCE = Provenance(
    created="2026-01-01T00:00:00+00:00", host="h", seconds=1.0, peak_memory_bytes=1, python="3", libraries={}
)


@contextmanager
def no_parts(_base, _name):
    raise AssertionError("no parts are kept here")
    yield StoreParts


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A small GGUF file, and the committed checkpoint that it becomes."""
    folder = tmp_path_factory.mktemp("fetched")
    source = folder / "small.gguf"
    write_small_gguf(source, [], extra={"general.license": "mit", "general.file_type": 0})
    store, key = Store(folder / "store"), "a" * 64
    draft = store.draft("fetch", key)
    work = Work({}, draft, "cpu", silent, no_parts, Host({}, folder))
    summary = STAGES["fetch"].run({"source": {"kind": "gguf", "path": str(source)}}, work)
    store.commit(draft, kind="fetch", name="", key=key, inputs={}, summary=summary, provenance=PROVENANCE)
    return source, store.path("fetch", key)


def made(path: Path, model: Path, out: Path) -> Path:
    """The checkpoint of a `quantize` stage that takes what lies at `path`."""
    out.mkdir()
    method = Existing(path=str(path))
    config = {
        "method": method.model_dump(mode="json"),
        "scheme": asdict(preset("F32")),
        "ignore": [],
        "seed": 0,
        "identity": digest(method.identity()),
    }
    STAGES["quantize"].run(config, Work({"model": model}, out, "cpu", silent, no_parts, Host({}, out.parent)))
    return out / "checkpoint"


def test_a_lone_gguf_file_gets_a_card_and_a_pulled_folder_stays_what_it_was(fetched, tmp_path):
    source, model = fetched
    checkpoint = made(source, model, tmp_path / "first")
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and "as somebody else quantized it" in card
    assert str(source) not in card

    pulled = tmp_path / "pulled"
    shutil.copytree(checkpoint, pulled, ignore=shutil.ignore_patterns("README.md"))
    files = sorted(path for path in pulled.iterdir())
    entries = [FileEntry(path=p.name, size=p.stat().st_size, sha256=file_sha256(p)) for p in files]
    listing = canonical_json({"files": [entry.model_dump(mode="json", exclude_none=True) for entry in entries]})
    (pulled / MANIFEST_FILE).write_bytes(listing)
    again = made(pulled, model, tmp_path / "second")
    assert {path.name for path in again.iterdir()} == {path.name for path in files}
