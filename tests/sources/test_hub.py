"""A model by hub id: a revision becomes a commit, and what comes down is checked. Against a server of the hub's
protocol.

The program is asked in processes of their own, because the hub's client reads HF_ENDPOINT when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serving

TINY = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
COMMIT, OTHER = "a" * 40, "b" * 40
ASK = """
import json, sys
from pathlib import Path
from quantize.errors import QuantizeError
from quantize.sources import Hub
hub = Hub(repo=sys.argv[1], revision=sys.argv[2])
try:
    out = Path(sys.argv[3])
    out.mkdir()
    facts = hub.facts()
    hub.fetch(out, lambda what, done, total: None)
    print(json.dumps({"identity": hub.identity(), "files": sorted(p.name for p in out.iterdir()),
                      "hidden": facts.hidden_size, "torch": "torch" in sys.modules}))
except QuantizeError as error:
    print(json.dumps({"error": str(error)}))
"""


def ask(hub_url: str, cache: Path, repo: str, revision: str, **environment: str) -> dict[str, object]:
    """Fetch in a clean process; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", ASK, repo, revision, cache / f"out-{len(list(cache.iterdir()))}"],
        env={
            **os.environ,
            "HF_ENDPOINT": hub_url,
            "HF_HOME": str(cache / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_a_revision_is_resolved_to_a_commit_and_its_files_are_fetched(tmp_path):
    with serving("org/tiny", TINY, {"main": COMMIT}) as hub:
        answer = ask(hub.url, tmp_path, "org/tiny", "main")
        assert answer["identity"] == {"repo": "org/tiny", "commit": COMMIT}
        assert "model.safetensors" in answer["files"]
        assert answer["hidden"] == json.loads((TINY / "config.json").read_text(encoding="utf-8"))["hidden_size"]


def test_another_commit_is_another_identity(tmp_path):
    with serving("org/tiny", TINY, {"main": COMMIT, "v2": OTHER}) as hub:
        assert ask(hub.url, tmp_path, "org/tiny", "v2")["identity"] == {"repo": "org/tiny", "commit": OTHER}


def test_a_pinned_commit_in_the_cache_needs_no_hub(tmp_path):
    with serving("org/tiny", TINY, {"main": COMMIT}) as hub:
        ask(hub.url, tmp_path, "org/tiny", "main")
        url = hub.url
    answer = ask(url, tmp_path, "org/tiny", COMMIT, HF_HUB_OFFLINE="1")
    assert answer["identity"] == {"repo": "org/tiny", "commit": COMMIT}


def test_pickle_weights_are_refused_and_never_downloaded(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "cache").mkdir()
    with serving("org/pickle", folder, {"main": COMMIT}) as hub:
        answer = ask(hub.url, tmp_path / "cache", "org/pickle", "main")
        assert "pickle" in str(answer["error"])
        assert not [path for path in hub.requests if path.endswith(".bin")]


@pytest.mark.parametrize(
    ("repo", "revision", "gated", "says"),
    [
        ("org/tiny", "nope", False, "no such revision"),
        ("org/none", "main", False, "no such repository"),
        ("org/tiny", "main", True, "gated"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_mend(tmp_path, repo, revision, gated, says):
    with serving("org/tiny", TINY, {"main": COMMIT}, gated=gated) as hub:
        assert says in str(ask(hub.url, tmp_path, repo, revision)["error"])


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "gated. Accept its licence on its page on the hub, then set HF_TOKEN"),
        ("hf_of_somebody_else", "gated. Accept its licence"),
        ("hf_mistyped", "does not accept the token. Set HF_TOKEN to one that is valid"),
        ("hf_let_in", None),
    ],
)
def test_a_gated_repository_opens_to_a_token_that_was_let_in_and_to_no_other(tmp_path, token, says):
    tokens = {"hf_let_in": True, "hf_of_somebody_else": False}
    with serving("org/tiny", TINY, {"main": COMMIT}, tokens=tokens) as hub:
        answer = ask(hub.url, tmp_path, "org/tiny", "main", HF_TOKEN=token)
    if says is None:
        assert "model.safetensors" in answer["files"]
    else:
        assert says in str(answer["error"])
        assert not token or token not in json.dumps(answer)


@pytest.mark.parametrize(("status", "says"), [(429, "too many requests"), (503, "answers with status 503")])
def test_a_hub_that_has_too_much_to_do_is_not_called_unreachable(tmp_path, status, says):
    with serving("org/tiny", TINY, {"main": COMMIT}, status=status) as hub:
        assert says in str(ask(hub.url, tmp_path, "org/tiny", "main", HF_HUB_DISABLE_PROGRESS_BARS="1")["error"])


def test_offline_a_branch_is_what_the_cache_knows_it_as(tmp_path):
    """`hf download` writes down what a branch stood for; a fetch by commit does not, and its commit is named."""
    with serving("org/tiny", TINY, {"main": COMMIT}) as hub:
        ask(hub.url, tmp_path, "org/tiny", "main")
    dead = {"HF_HUB_OFFLINE": "1"}
    unknown = str(ask("http://127.0.0.1:9", tmp_path, "org/tiny", "main", **dead)["error"])
    assert f"The cache holds {COMMIT}: pin one as revision" in unknown
    refs = tmp_path / "home" / "hub" / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT, encoding="utf-8")
    found = ask("http://127.0.0.1:9", tmp_path, "org/tiny", "main", **dead)
    assert found["identity"] == {"repo": "org/tiny", "commit": COMMIT}
    assert "model.safetensors" in found["files"]


def test_a_hub_that_is_not_there_is_said_so(tmp_path):
    with serving("org/tiny", TINY, {"main": COMMIT}) as hub:
        url = hub.url
    assert "cannot be reached" in str(ask(url, tmp_path, "org/tiny", "main")["error"])
