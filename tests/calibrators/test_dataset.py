"""Calibration from a dataset of the hub: pinned, streamed, nothing run. Against a server of the hub's protocol.

The program is asked in processes of their own, because the hub's client reads HF_ENDPOINT when it is imported; each is
asked several things, because `datasets` is imported for seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import serving
from program import TINY

COMMIT, OTHER = "1" * 40, "2" * 40
REPO = "org/said"
SMALL = {"repo": REPO, "samples": 4, "tokens": 32, "buffer": 20}
ASK = """
import json, sys
from pathlib import Path
from quantize.calibrators import Dataset
from quantize.errors import QuantizeError
for line in json.loads(sys.argv[1]):
    dataset = Dataset(**line)
    try:
        identity, pinned = dataset.identity(), dataset.pinned()
        drawn = dataset.draw(Path(sys.argv[2]), "cpu", lambda *_: None)
    except QuantizeError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
    else:
        rows = [row.tolist() for row in drawn.rows]
        print(json.dumps({"identity": identity, "pinned": pinned.revision, "rows": rows,
                          "documents": drawn.documents, "facts": drawn.facts}))
"""


def ask(url: str, home: Path, *configs: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """Draw from each dataset in one clean process; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(configs), TINY / "checkpoint"],
        env={**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two configurations: texts in three shards, and conversations."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("repository")
    (folder / "plain").mkdir()
    for shard in range(3):
        texts = [None if n % 10 == 9 else f"Row {n} of shard {shard} tells of a dog." for n in range(4000)]
        table = pa.table({"text": texts, "id": list(range(4000))})
        pq.write_table(table, folder / "plain" / f"train-{shard}.parquet", row_group_size=500, compression="none")
    chats = [
        {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Yes."}]}
        for n in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(chats), folder / "chats.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: plain\n  data_files: [{split: train, path: plain/*}]\n"
        "- config_name: chats\n  data_files: [{split: test, path: chats.parquet}]\n---\n",
        "utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def answered(repository, home):
    """What came of each case."""
    cases = {
        "plain": {**SMALL, "config": "plain"},
        "again": {**SMALL, "config": "plain", "revision": COMMIT},
        "seed": {**SMALL, "config": "plain", "seed": 1},
        "in order": {**SMALL, "config": "plain", "buffer": 0},
        "chats": {**SMALL, "config": "chats", "split": "test", "packing": "truncate"},
        "too few": {**SMALL, "config": "chats", "split": "test", "packing": "truncate", "samples": 10},
        "no config": SMALL,
        "other config": {**SMALL, "config": "none"},
        "other split": {**SMALL, "config": "plain", "split": "test"},
        "other field": {**SMALL, "config": "plain", "field": "body"},
        "other revision": {**SMALL, "config": "plain", "revision": "v9"},
        "other repo": {**SMALL, "repo": "org/none"},
    }
    with serving(REPO, repository, {"main": COMMIT}, datasets=True, token="hf_secret") as hub:
        return dict(zip(cases, ask(hub.url, home, *cases.values(), HF_TOKEN="hf_secret"), strict=True))


def test_a_revision_becomes_a_commit_that_is_in_the_key_and_in_what_the_stage_is_given(answered):
    plain = answered["plain"]
    assert plain["identity"]["commit"] == plain["pinned"] == COMMIT
    assert "revision" not in plain["identity"]
    assert answered["again"]["identity"] == plain["identity"]


def test_rows_are_the_same_again_and_others_for_another_seed(answered):
    assert answered["plain"]["rows"] == answered["again"]["rows"] != answered["seed"]["rows"]
    assert all(len(row) == 32 for row in answered["plain"]["rows"])
    assert len(answered["plain"]["rows"]) == 4


def test_no_more_is_read_than_is_needed_and_blank_rows_are_passed_over(answered, repository):
    documents = answered["in order"]["documents"]
    assert documents == [f"Row {n} of shard 0 tells of a dog." for n in range(len(documents))]
    place = {"repo": REPO, "commit": COMMIT, "split": "train"}
    assert answered["in order"]["facts"] == {**place, "packing": "pack", "documents": len(documents), "empty": 0}
    assert len(documents) < 20
    assert not any(document == "" for document in answered["plain"]["documents"])


def test_a_conversation_is_rendered_and_is_a_row_of_its_own_length(answered):
    from transformers import AutoTokenizer

    chats = answered["chats"]
    tokenizer = AutoTokenizer.from_pretrained(TINY / "checkpoint")
    first = chats["documents"][0].split("\n")[0]
    assert tokenizer.decode(chats["rows"][0]) == f"User: {first}\nAssistant: Yes.\n"
    assert max(map(len, chats["rows"])) < 32


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("too few", "9 documents of 2 tokens or more, a row each; the recipe asks for 10. Set samples to 9 or fewer"),
        ("no config", "plain', 'chats'"),
        ("other config", "Set calibration.config to one of them."),
        ("other split", "Set calibration.split to one of them."),
        ("other field", "there is no 'body' here; there is text, id."),
        ("other revision", "the repository has no such revision. Check calibration.revision."),
        ("other repo", "there is no such repository, or it is private. Check calibration.repo; if it is"),
    ],
)
def test_what_is_not_there_is_named_with_what_to_do(answered, case, said):
    assert said in answered[case]["error"]
    assert answered[case]["error"].startswith("DataError: org/")


def test_a_token_opens_the_dataset_and_stands_in_no_message(answered):
    assert answered["plain"]["rows"], "the server wants the token of every request"
    assert "hf_secret" not in json.dumps(answered)


def test_offline_the_cache_is_read_if_it_holds_the_commit_whole(answered, repository, home):
    keep = f"from huggingface_hub import snapshot_download as s; s('{REPO}', repo_type='dataset', revision='{OTHER}')"
    pinned = {**SMALL, "config": "plain", "revision": OTHER}
    with serving(REPO, repository, {"main": COMMIT, "v2": OTHER}, datasets=True) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        subprocess.run([sys.executable, "-c", keep], env=environment, check=True, capture_output=True, timeout=120)
        url = hub.url
    whole, absent, unpinned = ask(
        url, home, pinned, {**pinned, "revision": COMMIT}, {**pinned, "revision": "main"}, HF_HUB_OFFLINE="1"
    )
    assert whole["rows"] == answered["plain"]["rows"], "the same bytes give the same rows, wherever they lie"
    assert f"Run: hf download --repo-type dataset {REPO} --revision {COMMIT}" in absent["error"]
    assert "the hub cannot be reached" in unpinned["error"]
    assert "pin a 40-digit commit" in unpinned["error"]


@pytest.mark.slow
def test_a_script_of_a_dataset_is_never_run(answered, tmp_path):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "said.py").write_text("raise SystemExit('it was run')", "utf-8")
    with serving(REPO, tmp_path / "repository", {"main": COMMIT}, datasets=True) as hub:
        (answer,) = ask(hub.url, tmp_path / "home", SMALL)
    assert "code of its own is not run" in answer["error"]
    assert "it was run" not in answer["error"]
