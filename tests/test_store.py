"""The store: committed whole or not at all, found by key, believed only when its bytes agree."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import command

import quantize
from quantize.artifact import Provenance
from quantize.errors import StoreError
from quantize.leases import Lease
from quantize.run_record import read_record
from quantize.store import LAYOUT, MANIFEST, Store, read_manifest, verify_directory, writing

KEY = "a" * 64
PROVENANCE = Provenance(
    created="2026-01-01T00:00:00+00:00", host="h", seconds=1.0, peak_memory_bytes=1, python="3", libraries={}
)
COMMITTER = """
import sys
from pathlib import Path
from quantize.store import Store
from tests_provenance import PROVENANCE
store = Store(Path(sys.argv[1]))
with store.lease("quantize", "a" * 64, lambda owner: None):
    draft = store.draft("quantize", "a" * 64)
    (draft / "checkpoint").mkdir()
    (draft / "checkpoint" / "w.bin").write_bytes(b"weights" * 1000)
    store.commit(draft, kind="quantize", name="v", key="a" * 64, inputs={}, summary={}, provenance=PROVENANCE)
"""
PROVENANCE_MODULE = (
    f"from quantize.artifact import Provenance\nPROVENANCE = Provenance(**{PROVENANCE.model_dump()!r})\n"
)


def points_of(module: str) -> list[str]:
    """The fault points of a module, read from its source."""
    source = (Path(quantize.__file__).parent / module).read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        str(call.args[0].value)
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "point" and isinstance(call.args[0], ast.Constant)
    ]


def committed(root: Path) -> Path:
    store = Store(root)
    with store.lease("quantize", KEY, lambda owner: None):
        draft = store.draft("quantize", KEY)
        (draft / "checkpoint").mkdir()
        (draft / "checkpoint" / "w.bin").write_bytes(b"weights" * 1000)
        store.commit(draft, kind="quantize", name="v", key=KEY, inputs={}, summary={}, provenance=PROVENANCE)
    return store.path("quantize", KEY)


@pytest.fixture
def committer(tmp_path):
    """A script that commits one artifact in a process of its own."""
    (tmp_path / "tests_provenance.py").write_text(PROVENANCE_MODULE, encoding="utf-8")
    script = tmp_path / "commit.py"
    script.write_text(COMMITTER, encoding="utf-8")

    def run(root: Path, fault: str | None = None) -> int:
        environment = {**os.environ, **({"QUANTIZE_FAULT": fault} if fault else {})}
        return subprocess.run([sys.executable, script, root], env=environment).returncode

    return run


def test_a_committed_artifact_is_found_by_its_key_and_its_bytes_agree(tmp_path):
    directory = committed(tmp_path)
    manifest = Store(tmp_path).find("quantize", KEY)
    assert manifest is not None
    assert [file.path for file in manifest.files] == ["checkpoint/w.bin"]
    assert verify_directory(directory, manifest) == []


def test_what_was_never_committed_is_not_found(tmp_path):
    assert Store(tmp_path).find("quantize", KEY) is None


@pytest.mark.parametrize("point", points_of("store.py"))
def test_a_kill_at_any_point_of_a_commit_leaves_all_or_nothing(tmp_path, committer, point):
    root = tmp_path / "store"
    assert committer(root, point) == -9, f"the point {point} was never reached"
    manifest = Store(root).find("quantize", KEY)
    directory = Store(root).path("quantize", KEY)
    if manifest is not None:
        assert verify_directory(directory, manifest) == []
    assert committer(root) == 0
    manifest = Store(root).find("quantize", KEY)
    assert manifest is not None
    assert verify_directory(directory, manifest) == []
    assert list((root / "drafts").iterdir()) == []


def test_a_draft_of_a_later_owner_stays_when_an_earlier_one_wakes_up(tmp_path):
    store = Store(tmp_path)
    earlier, later = (Lease(tmp_path, number, 60.0) for number in (3, 4))
    draft = store.draft("quantize", KEY, later)
    assert store.draft("quantize", KEY, earlier) != draft
    assert draft.is_dir()
    again = store.draft("quantize", KEY, later)
    assert list((tmp_path / "drafts").iterdir()) == [again]


def test_a_directory_without_manifest_is_garbage_and_not_an_artifact(tmp_path):
    directory = committed(tmp_path)
    (directory / MANIFEST).unlink()
    store = Store(tmp_path)
    assert store.find("quantize", KEY) is None
    assert committed(tmp_path) == directory
    assert read_manifest(directory) is not None


def test_a_commit_never_goes_over_what_is_committed(tmp_path):
    store, directory = Store(tmp_path), committed(tmp_path)
    draft = store.draft("quantize", KEY)
    (draft / "other.bin").write_bytes(b"other")
    manifest = store.commit(draft, kind="quantize", name="", key=KEY, inputs={}, summary={}, provenance=PROVENANCE)
    assert [file.path for file in manifest.files] == ["checkpoint/w.bin"], "the manifest of what is there"
    assert verify_directory(directory, manifest) == []
    assert not draft.exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "added"])
def test_damage_is_found(tmp_path, damage):
    directory = committed(tmp_path)
    file = directory / "checkpoint" / "w.bin"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "flipped":
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(bytes(data))
    else:
        (directory / "more.bin").write_bytes(b"x")
    manifest = read_manifest(directory)
    assert manifest is not None
    assert len(verify_directory(directory, manifest)) == 1
    if damage in ("truncated", "missing"):
        with pytest.raises(StoreError, match=r"w\.bin"):
            Store(tmp_path).find("quantize", KEY)


def test_a_referenced_file_that_changes_after_the_commit_is_noticed(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"0" * 100)
    store = Store(tmp_path / "store")
    draft = store.draft("fetch", KEY)
    (draft / "model.safetensors").symlink_to(weights)
    manifest = store.commit(draft, kind="fetch", name="", key=KEY, inputs={}, summary={}, provenance=PROVENANCE)
    assert manifest.files[0].target == str(weights)
    time.sleep(0.01)
    weights.write_bytes(b"1" * 100)
    with pytest.raises(StoreError, match="changed after it was committed"):
        store.find("fetch", KEY)


def test_a_manifest_that_leads_out_of_the_artifact_is_refused(tmp_path):
    directory = committed(tmp_path)
    data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    data["files"][0]["path"] = "../../secret"
    (directory / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(StoreError, match="out of the artifact"):
        Store(tmp_path).find("quantize", KEY)


def test_a_second_process_waits_for_the_lease_and_is_told_who_has_it(tmp_path):
    owners: list[str] = []
    script = (
        "import sys, time; from pathlib import Path; from quantize.store import Store\n"
        "with Store(Path(sys.argv[1])).lease('quantize', 'a' * 64, lambda owner: None):\n"
        "    print('held', flush=True); time.sleep(1.5)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with Store(tmp_path).lease("quantize", KEY, owners.append):
            assert holder.poll() is not None or holder.wait(5) == 0
    assert json.loads(owners[0])["pid"] == holder.pid


def test_garbage_is_what_nobody_keeps_and_nobody_writes(tmp_path):
    directory = committed(tmp_path)
    store = Store(tmp_path)
    half = store.path("judge", "b" * 64)
    shutil.copytree(directory, store.path("judge", "c" * 64))
    half.mkdir(parents=True)
    draft = store.draft("quantize", "d" * 64)
    assert store.garbage({KEY}) == sorted([half, draft])
    assert directory in store.garbage(set())
    with store.lease("quantize", "d" * 64, lambda owner: None):
        assert draft not in store.garbage({KEY})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_so_and_loses_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine may not mount a file system")
    try:
        before = committed(small)
        store = Store(small)
        draft = store.draft("quantize", "b" * 64)
        with pytest.raises(StoreError, match="full"), writing(draft):
            (draft / "big.bin").write_bytes(b"0" * 200_000)
        manifest = store.find("quantize", KEY)
        assert manifest is not None
        assert verify_directory(before, manifest) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_store_says_how_it_is_laid_out_and_a_later_layout_is_refused_untouched(tmp_path):
    directory = committed(tmp_path)
    said = json.loads((tmp_path / LAYOUT).read_text(encoding="utf-8"))
    assert said["version"] == 2 and said["program"].startswith("quantize ")
    (tmp_path / LAYOUT).write_text('{"version": 3, "program": "quantize 9.0"}', encoding="utf-8")
    with pytest.raises(StoreError, match=r"a newer quantize made this store \(version 3; .* Upgrade quantize"):
        Store(tmp_path)
    for arguments in (["gc", "--delete", "--keep-runs", "0"], ["doctor"]):
        result = command(*arguments, "--store", tmp_path)
        assert result.returncode == 1 and "a newer quantize" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    assert read_manifest(directory) is not None


def test_a_store_of_before_layouts_were_written_down_is_read_and_then_says_so(tmp_path):
    committed(tmp_path)
    (tmp_path / LAYOUT).unlink()
    assert Store(tmp_path).find("quantize", KEY) is not None
    assert not (tmp_path / LAYOUT).exists()
    Store(tmp_path).draft("quantize", "b" * 64)
    assert (tmp_path / LAYOUT).is_file()
    (tmp_path / LAYOUT).write_text('{"version": 1, "program": "quantize 0.1"}', encoding="utf-8")
    Store(tmp_path).draft("quantize", "b" * 64)
    assert json.loads((tmp_path / LAYOUT).read_text(encoding="utf-8"))["version"] == 2


def test_what_a_newer_program_made_is_not_called_damaged(tmp_path):
    directory = committed(tmp_path)
    data = json.loads((directory / MANIFEST).read_text(encoding="utf-8")) | {"version": 2, "more": []}
    (directory / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(StoreError, match="a newer quantize made this artifact") as caught:
        Store(tmp_path).find("quantize", KEY)
    assert "Remove" not in str(caught.value)
    run = tmp_path / "runs" / "tiny-1"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"version": 2, "run": "tiny-1"}', encoding="utf-8")
    with pytest.raises(StoreError, match="a newer quantize made this run"):
        read_record(run)
