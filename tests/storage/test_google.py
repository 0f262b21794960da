"""Publication to Google's storage, by gcsfs and an emulator of its API, which pays conditions of writes no heed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from quantize.artifact import FileEntry
from quantize.errors import StorageError
from quantize.handed import silent
from quantize.storage import at, fetch, publish

pytest.importorskip("gcsfs", reason="gcsfs is not installed")
pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed")

SEAL = ("seal.json", b"sealed")
LARGE = 60 << 20  # more than one piece


@pytest.fixture
def place(tmp_path, monkeypatch, unused_port):
    """A new bucket on an emulator of its own."""
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=localhost", f"--port={unused_port}"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--in-memory"], stdout=log, stderr=log)
    try:
        _wait(f"http://localhost:{unused_port}/storage/v1/b")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{unused_port}")
        bucket = at("gs://bucket/some/prefix")
        bucket.fs.mkdir("bucket")
        yield bucket
    finally:
        server.kill()
        server.wait(timeout=30)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def files(tmp_path):
    directory = tmp_path / "checkpoint"
    (directory / "extra").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * (LARGE // 256))
    (directory / "extra" / "tokens.json").write_bytes(b"[1]")
    return directory, listed(directory)


def _wait(address: str) -> None:
    for _ in range(100):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the emulator does not answer")


def listed(directory: Path) -> list[FileEntry]:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    named = [(path.relative_to(directory).as_posix(), path.read_bytes()) for path in paths]
    return [FileEntry(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in named]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs hands aiohttp its pieces so
def test_what_was_published_comes_back_and_is_not_sent_again(place, files, tmp_path):
    sent: list[float] = []
    place.probe("m/probe")
    assert place.find("m/probe") is None
    assert publish(place, "m/d", *files, SEAL, lambda _what, done, _total: sent.append(done)) == b"sealed"
    assert sent[-1] == sum(entry.size for entry in files[1])
    assert place.find("m/d/model.safetensors").sha256 == files[1][1].sha256
    again: list[float] = []
    assert publish(place, "m/d", *files, (SEAL[0], b"other"), lambda *what: again.append(what[1])) == b"sealed"
    assert not again
    assert not place.create(f"m/d/{SEAL[0]}", b"other")
    fetch(at("gs://bucket/some/prefix/m/d"), files[1], tmp_path / "out", silent)
    assert listed(tmp_path / "out") == files[1]


def test_another_file_and_another_bucket_are_said(place, files):
    assert place.create("m/d/extra/tokens.json", b"[2]")
    with pytest.raises(StorageError, match=r"gs://bucket/some/prefix/m/d/extra/tokens\.json: another file is there"):
        publish(place, "m/d", *files, SEAL, silent)
    assert place.read("m/d/extra/tokens.json") == b"[2]"
    with pytest.raises(StorageError, match="there is no such bucket"):
        at("gs://nowhere/prefix").probe("m/probe")
