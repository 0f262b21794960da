"""Fixtures of the tests that need a bucket; a test module names this one in `pytest_plugins`."""

from __future__ import annotations

import hashlib

import pytest
from bucket_server import KEY, SECRET, bucket_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A server that tests share: each uses a bucket of its own."""
    with bucket_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def buckets(s3, monkeypatch):
    """The server, well behaved, and what a user sets to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3.behave()
    return s3


@pytest.fixture
def bucket(buckets, tmp_path):
    """A new bucket's name."""
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    buckets.client().create_bucket(Bucket=name)
    buckets.clear()
    return name
