"""Publication to a shared folder and to a real S3 server: whole or not at all, once, and nothing is overwritten."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bucket_server import SECRET, bucket_server

from quantize.artifact import FileEntry
from quantize.errors import MissingDependency, StorageError
from quantize.handed import silent
from quantize.storage import _bucket, address_problem, at, fetch, publish

pytest_plugins = ["bucket_fixtures"]

SEAL = "seal.json"
UNDER = "model/digest"
#: More than two parts of an upload in parts.
LARGE = 110 << 20


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    """An empty place of either kind."""
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/some/prefix"
    (tmp_path / "a share").mkdir()
    return (tmp_path / "a share").as_uri()


@pytest.fixture
def files(tmp_path):
    """A directory and the list of its files, one of them in a folder."""
    directory = tmp_path / "checkpoint"
    (directory / "extra").mkdir(parents=True)
    contents = {"model.safetensors": bytes(range(256)) * 400, "config.json": b"{}", "extra/ü tokens.json": b"[1]"}
    for name, data in contents.items():
        (directory / name).write_bytes(data)
    return directory, listed(directory)


def listed(directory: Path) -> list[FileEntry]:
    return [
        FileEntry(
            path=path.relative_to(directory).as_posix(),
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]


def sealed(entries: list[FileEntry]) -> tuple[str, bytes]:
    return SEAL, json.dumps([entry.sha256 for entry in entries]).encode()


def put(uri: str, files: tuple[Path, list[FileEntry]], progress=silent) -> bytes:
    return publish(at(uri), UNDER, *files, sealed(files[1]), progress)


def test_what_was_published_comes_back_byte_for_byte(uri, files, tmp_path):
    assert put(uri, files) == sealed(files[1])[1]
    assert at(uri).read(f"{UNDER}/{SEAL}") == sealed(files[1])[1]
    fetch(at(f"{uri}/{UNDER}"), files[1], tmp_path / "out", silent)
    assert listed(tmp_path / "out") == files[1]


def test_progress_ends_at_all_bytes_both_ways(uri, files, tmp_path):
    told: list[tuple[str, float, float | None]] = []
    put(uri, files, lambda *what: told.append(what))
    fetch(at(f"{uri}/{UNDER}"), files[1], tmp_path / "out", lambda *what: told.append(what))
    size = sum(entry.size for entry in files[1])
    assert [what for what in told if what[1] == size][-1] == ("fetching", size, size)
    assert ("sending", size, size) in told
    assert all(done <= size for _, done, _ in told)


def kill_in(fault: str, uri: str, files: tuple[Path, list[FileEntry]]) -> None:
    os.environ["QUANTIZE_FAULT"] = fault
    put(uri, files)


@pytest.mark.parametrize("fault", ["storage.put", "storage.put@2", "storage.put@3", "storage.files", "storage.sealed"])
def test_a_publication_that_was_killed_anywhere_is_finished_by_the_next(uri, files, fault, tmp_path):
    """Red when the seal is written before the files, or what is there counts as an error."""
    process = multiprocessing.get_context("spawn").Process(target=kill_in, args=(fault, uri, files))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (at(uri).read(f"{UNDER}/{SEAL}") is not None) == (fault == "storage.sealed")
    sent: list[float] = []
    assert put(uri, files, lambda _what, _done, total: sent.append(total)) == sealed(files[1])[1]
    if not fault.startswith("storage.put"):
        assert not sent, "all files were there"
    fetch(at(f"{uri}/{UNDER}"), files[1], tmp_path / "out", silent)
    assert listed(tmp_path / "out") == files[1]


def test_published_again_nothing_is_sent(buckets, bucket, files):
    """Red when `_is_there` is not asked before a file is put."""
    put(f"s3://{bucket}", files)
    first = buckets.requests("PUT")
    assert sum(size for _, size in first) >= sum(entry.size for entry in files[1])
    assert [path.rpartition("/")[2] for path, _ in first][-1] == SEAL
    buckets.clear()
    put(f"s3://{bucket}", files)
    assert buckets.requests("PUT") == buckets.requests("POST") == buckets.requests("DELETE") == []


def test_a_file_that_went_is_sent_again_and_the_others_are_not(buckets, bucket, files):
    put(f"s3://{bucket}", files)
    buckets.client().delete_object(Bucket=bucket, Key=f"{UNDER}/config.json")
    buckets.clear()
    put(f"s3://{bucket}", files)
    assert [path for path, _ in buckets.requests("PUT")] == [f"/{bucket}/{UNDER}/config.json"]


@pytest.mark.parametrize("other", [b"another size", bytes(range(255, -1, -1)) * 400])
def test_another_file_in_that_place_is_named_and_left_alone(uri, files, other):
    """Red when a place overwrites, or when an object without a digest is believed for its size."""
    assert at(uri).create(f"{UNDER}/model.safetensors", other)
    with pytest.raises(StorageError, match=r"another file is there already.*") as error:
        put(uri, files)
    assert error.value.where == f"{uri}/{UNDER}/model.safetensors"
    assert at(uri).read(f"{UNDER}/model.safetensors") == other
    assert at(uri).read(f"{UNDER}/{SEAL}") is None


def test_an_object_with_another_digest_of_its_own_is_another_object(buckets, bucket, files):
    wrong = {"Body": b"[2]", "Metadata": {"sha256": "0" * 64}}
    buckets.client().put_object(Bucket=bucket, Key=f"{UNDER}/extra/ü tokens.json", **wrong)
    with pytest.raises(StorageError, match="another file is there already"):
        put(f"s3://{bucket}", files)


def test_an_object_that_somebody_else_copied_there_counts_when_its_bytes_are_right(buckets, bucket, files):
    data = (files[0] / "model.safetensors").read_bytes()
    buckets.client().put_object(Bucket=bucket, Key=f"{UNDER}/model.safetensors", Body=data)
    buckets.clear()
    put(f"s3://{bucket}", files)
    assert not [path for path, _ in buckets.requests("PUT") if path.endswith("safetensors")]


def test_a_seal_that_is_there_is_handed_back_and_stays(uri, files):
    assert at(uri).create(f"{UNDER}/{SEAL}", b"somebody else's")
    assert put(uri, files) == b"somebody else's"
    assert at(uri).read(f"{UNDER}/{SEAL}") == b"somebody else's"


def test_only_one_of_many_makes_a_name(uri):
    """Red when `create` is a look and then a write."""
    barrier = threading.Barrier(6)

    def create(number: int) -> bool:
        place = at(uri)
        barrier.wait()
        return place.create("a/name", str(number).encode())

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(create, range(6)))
    assert sum(made) == 1
    assert at(uri).read("a/name") == str(made.index(True)).encode()


def test_several_may_publish_the_same_at_once(uri, files, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: put(uri, files), range(4))) == {sealed(files[1])[1]}
    fetch(at(f"{uri}/{UNDER}"), files[1], tmp_path / "out", silent)
    assert listed(tmp_path / "out") == files[1]


def test_a_large_file_goes_in_parts_and_parts_of_killed_uploads_are_removed(buckets, bucket, tmp_path):
    directory = tmp_path / "large"
    directory.mkdir()
    with (directory / "model.gguf").open("wb") as file:
        for number in range(LARGE >> 20):
            file.write(hashlib.sha256(str(number).encode()).digest() * 32768)
    entries = listed(directory)
    client = buckets.client()
    client.create_multipart_upload(Bucket=bucket, Key=f"{UNDER}/model.gguf")  # what a killed upload leaves
    put(f"s3://{bucket}", (directory, entries))
    assert len([path for path, size in buckets.requests("PUT") if path.endswith("model.gguf") and size]) == 3
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    assert client.head_object(Bucket=bucket, Key=f"{UNDER}/model.gguf")["Metadata"] == {"sha256": entries[0].sha256}
    fetch(at(f"s3://{bucket}/{UNDER}"), entries, tmp_path / "out", silent)
    assert listed(tmp_path / "out") == entries


def test_a_folder_holds_no_half_files_under_their_names_and_leftovers_go(tmp_path, files):
    share = tmp_path / "share"
    (share / UNDER).mkdir(parents=True)
    left = share / UNDER / ".model.safetensors.0123.quantize-part"
    left.write_bytes(b"half")

    def stop(_what, _done, _total):
        assert not (share / UNDER / "model.safetensors").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(share.as_uri(), files, stop)
    assert list((share / UNDER).rglob("*.*")) == [left]
    put(share.as_uri(), files)
    names = {path.name for path in (share / UNDER).rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "config.json", "ü tokens.json", SEAL}


def test_a_file_system_without_links_is_written_by_renaming(tmp_path, files, monkeypatch):
    (tmp_path / "share").mkdir()

    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    uri = (tmp_path / "share").as_uri()
    put(uri, files)
    assert not at(uri).create(f"{UNDER}/{SEAL}", b"other")
    assert at(uri).read(f"{UNDER}/{SEAL}") == sealed(files[1])[1]


def test_a_share_that_is_not_mounted_is_not_made_on_this_machine(tmp_path, files):
    with pytest.raises(StorageError, match="there is no such folder"):
        put((tmp_path / "mnt").as_uri(), files)
    assert not (tmp_path / "mnt").exists()


def test_a_storage_that_takes_no_conditions_is_asked_first(buckets, bucket, files):
    buckets.behave(unconditional=True)
    put(f"s3://{bucket}", files)
    assert not at(f"s3://{bucket}").create(f"{UNDER}/{SEAL}", b"other")
    assert at(f"s3://{bucket}").read(f"{UNDER}/{SEAL}") == sealed(files[1])[1]


def test_the_probe_leaves_nothing(uri):
    at(uri).probe("model/probe")
    assert at(uri).find("model/probe") is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (["403 no", "AccessDenied"], "access is refused.*rights to read, write and list"),
        (["400 no", "EntityTooLarge"], "the storage does not do it"),
    ],
)
def test_what_the_storage_answers_instead_is_said_with_its_mend(buckets, bucket, answer, said):
    buckets.behave(status=answer)
    with pytest.raises(StorageError, match=said) as error:
        at(f"s3://{bucket}/p").probe("model/probe")
    assert SECRET not in str(error.value)


def test_a_bucket_that_is_not_there_and_a_server_that_is_away_are_said(buckets, monkeypatch, tmp_path):
    with pytest.raises(StorageError, match=r"s3://nowhere-at-all/model/probe: there is no such bucket"):
        at("s3://nowhere-at-all").probe("model/probe")
    (tmp_path / "dead").mkdir()
    with bucket_server(tmp_path / "dead") as dead:
        monkeypatch.setenv("AWS_ENDPOINT_URL", dead.address)
    with pytest.raises(StorageError, match=r"Could not connect.*AWS_ENDPOINT_URL"):
        at("s3://bucket").probe("model/probe")


def test_without_credentials_that_is_said(buckets, bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="Unable to locate credentials"):
        at(f"s3://{bucket}").probe("model/probe")


def test_a_library_that_is_not_installed_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(_bucket._LIBRARIES, "gs", "a_library_that_nobody_has")
    with pytest.raises(MissingDependency, match=r"gs:// needs the package.*pip install 'quantize\[gs\]'"):
        at("gs://bucket/prefix")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://key:hunter2@bucket/prefix", "no credentials"),
        ("s3://hunter2@bucket", "no credentials"),
        ("s3://bucket/p?X-Amz-Signature=hunter2", "neither a query"),
        ("https://bucket.s3.amazonaws.com", "write s3://"),
        ("memory://x", "write s3://"),
        ("s3:bucket", "write s3://"),
        ("file://host/share", "three slashes"),
        ("file:relative", "write s3://"),
        ("s3://", "bucket's name"),
        ("s3://bucket/a/../b", "dotted"),
        ("s3://bucket//b", "dotted"),
        ("s3://[x", "no address"),
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(uri, said):
    assert said in (address_problem(uri) or "")
    with pytest.raises(StorageError, match=said) as error:
        at(uri)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "uri", ["s3://bucket", "s3://bucket/a/b/", "gs://bucket_1/a", "file:///share", "file:///a%20b/"]
)
def test_addresses_that_are_taken(uri):
    assert address_problem(uri) is None


def test_the_word_for_an_error_holds_no_secret():
    from quantize.storage._address import words

    text = words(OSError("cannot reach https://key:hunter2@host/b/k?X-Amz-Signature=hunter2 now\nand more hunter2"))
    assert text == "cannot reach https://host/b/k now"
