"""Who is told what a release decided: real commands, a real HTTP server, and what goes wrong with both."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from program import problems_of, tiny_recipe, write_recipe
from pydantic import ValidationError

from quantize.announcing import Notice, Told, announce
from quantize.errors import RecipeError
from quantize.notices import Command, Webhook
from quantize.recipe import Recipe, load
from quantize.turn import _started

SECRET = "T000/B000/s3cr3t"
HANGS = 30.0


def told(what: str, variant: str = "fp8") -> Told:
    return Told(
        what=what,
        variant=variant,
        version="2",
        outcome="pass",
        sentence="It is what it is.",
        previous_version="1",
        aliases={variant: "2"},
        verdict="d" * 64,
        mlflow_run="r",
    )


def notice(*whats: str) -> Notice:
    return Notice(
        model="tiny", recipe="nightly", run="nightly-1", actor="eva", when="now", decisions=[told(w) for w in whats]
    )


class Hook(BaseHTTPRequestHandler):
    """Answers by its path (status/500, redirect, hang, drip), else with 204; and keeps what it was sent."""

    def do_POST(self) -> None:
        self.server.seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        _, first, *rest = self.path.split("/")
        if first == "hang":
            self.server.over.wait(HANGS)
        elif first == "drip":
            for letter in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 100:
                if self.server.over.wait(0.2):
                    return
                self.wfile.write(bytes([letter]))
                self.wfile.flush()
        self.send_response(int(rest[0]) if first == "status" else 302 if first == "redirect" else 204)
        if first == "redirect":
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/stolen")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.seen.append((self.path, None))  # a redirect that was followed

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # who asked has gone


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        server.seen, server.over = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def address(hook: socketserver.BaseServer, path: str) -> str:
    return f"http://127.0.0.1:{hook.server_port}/{path}"


@contextmanager
def at_most(seconds: float):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def said(notifier: Command | Webhook, document: Notice | None = None) -> tuple[list[str], list[str]]:
    """What failed, and everything that was said on the way."""
    notes: list[str] = []
    return announce([notifier], document or notice("promoted"), notes.append), notes


def test_a_webhook_gets_the_decisions_that_it_asked_for(hook):
    webhook = Webhook(url=address(hook, SECRET), on=["rejected", "waiting"])
    failed, notes = said(webhook, notice("promoted", "rejected"))
    assert failed == []
    assert notes == [f"the webhook at 127.0.0.1:{hook.server_port} was told"]
    ((path, document),) = hook.seen
    assert path == f"/{SECRET}"
    assert [d["what"] for d in document["decisions"]] == ["rejected"]
    assert document["model"] == "tiny"
    said(webhook, notice("promoted", "stale"))
    assert len(hook.seen) == 1, "nothing that it asked for"


def test_a_stale_decision_is_told_to_nobody_who_does_not_ask(hook):
    said(Webhook(url=address(hook, "x")), notice("stale"))
    assert hook.seen == []


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (f"status/500/{SECRET}", "HTTP status 500"),
        (f"status/404/{SECRET}", "HTTP status 404"),
        (f"redirect/{SECRET}", "HTTP status 302. It redirects"),
    ],
)
def test_an_answer_that_is_no_yes_is_a_failure_and_nothing_is_followed(hook, path, says):
    failed, notes = said(Webhook(url=address(hook, path)))
    assert says in failed[0]
    assert notes == failed
    assert "s3cr3t" not in "".join(notes)
    assert [seen for seen, _ in hook.seen] == [f"/{path}"]


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_never_comes_to_an_end_is_left_in_time(hook, how):
    """Red for `drip` without the thread: a socket's timeout begins anew with every piece."""
    with at_most(5):
        failed, notes = said(Webhook(url=address(hook, f"{how}/{SECRET}"), seconds=1))
    assert "no answer" in failed[0]
    assert "s3cr3t" not in "".join(notes)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/s3cr3t", "http://no-such-host.invalid/s3cr3t", "http://127.0.0.1:1/s3cr3t\x7f"]
)
def test_a_host_that_is_not_there_is_named_and_its_secret_is_not(monkeypatch, url):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HOOK", url)
    failed, notes = said(Webhook(url_env="HOOK"))
    assert "cannot be reached" in failed[0]
    assert url.split("/")[2] in failed[0]
    assert "s3cr3t" not in "".join(notes)


@pytest.mark.parametrize("value", [None, "", "s3cr3t", "file:///etc/s3cr3t", "https://[s3cr3t"])
def test_a_variable_that_holds_no_address_is_a_failure_by_its_name(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("HOOK", raising=False)
    else:
        monkeypatch.setenv("HOOK", value)
    failed, notes = said(Webhook(url_env="HOOK"))
    assert failed == ["The webhook of $HOOK was not told: the variable HOOK is not set, or holds no https://host/path."]
    assert "s3cr3t" not in "".join(notes)


def test_a_command_reads_the_document_and_finds_the_facts_around_it(tmp_path):
    script = "import json, os, sys; d = json.load(sys.stdin); e = os.environ"
    script += f"; open({str(tmp_path / 'out')!r}, 'w').write(json.dumps([d, e['QUANTIZE_NOTICE_MODEL'], "
    script += "e['QUANTIZE_NOTICE_WHAT'], e['PATH'], sys.argv[1:]]))"
    failed, notes = said(Command(run=[sys.executable, "-c", script, "two words", "$HOME"]), notice("promoted", "held"))
    assert failed == []
    document, model, what, path, arguments = json.loads((tmp_path / "out").read_text())
    assert Notice.model_validate(document) == notice("promoted", "held")
    assert (model, what, arguments) == ("tiny", "held,promoted", ["two words", "$HOME"])
    assert path
    assert notes == [f"the command {Path(sys.executable).name} was told"]


def test_a_command_that_fails_or_is_not_there_is_told_with_what_it_said():
    failed, _ = said(Command(run=["sh", "-c", "echo the pager is off >&2; exit 7"]))
    assert failed == ["The command sh was not told: it ended with status 7: the pager is off"]
    failed, _ = said(Command(run=["no-such-command"]))
    assert "status 127" in failed[0]


def test_a_command_that_never_ends_is_ended_with_all_that_it_started(tmp_path):
    script = f"trap '' TERM; sleep 300 & echo $! > {tmp_path}/pid; wait; wait"
    with at_most(20):
        failed, _ = said(Command(run=["sh", "-c", script], seconds=1))
    assert failed == ["The command sh was not told: it did not end within 1 seconds and was stopped."]
    assert _started(int((tmp_path / "pid").read_text())) is None, "it is gone, or dead and not yet buried"


def test_one_that_fails_keeps_no_other_from_being_told(hook):
    notifiers = [Command(run=["false"]), Webhook(url=address(hook, "x"))]
    assert len(announce(notifiers, notice("promoted"), lambda _sentence: None)) == 1
    assert len(hook.seen) == 1


def recipe_with(tmp_path: Path, *notify: dict) -> Path:
    return write_recipe(tmp_path, tiny_recipe(release={"notify": list(notify)}))


def test_no_copy_of_a_recipe_holds_the_address_of_a_webhook(tmp_path):
    url = f"https://hooks.example.com/{SECRET}"
    loaded = load(recipe_with(tmp_path, {"kind": "webhook", "url": url}))
    assert loaded.recipe.release.notify[0].secrets == (url,)
    kept = loaded.recipe.model_dump_json(by_alias=True)
    for copy in (loaded.text, kept, repr(loaded.recipe), str(loaded.recipe.model_dump())):
        assert "s3cr3t" not in copy
    assert "https://hooks.example.com/..." in kept
    assert Recipe.model_validate_json(kept).release.notify[0].shown == "webhook at hooks.example.com"


def test_an_address_that_is_written_so_that_it_cannot_be_hidden_is_refused(tmp_path):
    path = recipe_with(tmp_path, {"kind": "webhook", "url": f"https://hooks.example.com/{SECRET}"})
    text = path.read_text(encoding="utf-8").replace(
        f"https://hooks.example.com/{SECRET}", '"https://h.example/s3\\x63r3t"'
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="write the url plainly") as error:
        load(path)
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ({"kind": "webhook"}, "give the address in one way"),
        ({"kind": "webhook", "url": "https://h/x", "url_env": "X"}, "give the address in one way"),
        ({"kind": "webhook", "url": "ftp://s3cr3t/x"}, "this is not an address"),
        ({"kind": "webhook", "url": "https://h/s3cr3t x"}, "this is not an address"),
        ({"kind": "webhook", "url_env": "${HOOK}"}, "url_env"),
        ({"kind": "command", "run": []}, "run"),
        ({"kind": "command", "run": ["x"], "on": ["promote"]}, "'promote' is not known here"),
        ({"kind": "pager"}, "'pager' is not a kind"),
    ],
)
def test_a_notice_that_cannot_work_is_refused_at_its_line_without_its_secret(tmp_path, notify, says):
    (problem,) = problems_of(recipe_with(tmp_path, notify))
    assert problem.startswith("recipe.yaml:")
    assert says in problem
    assert "s3cr3t" not in problem


def test_a_relative_command_is_one_beside_the_recipe(tmp_path):
    loaded = load(
        recipe_with(tmp_path, {"kind": "command", "run": ["./tell.sh", "./x"]}, {"kind": "command", "run": ["mail"]})
    )
    one, two = loaded.recipe.release.notify
    assert isinstance(one, Command)
    assert isinstance(two, Command)
    assert one.run == (str(tmp_path / "tell.sh"), "./x")
    assert two.run == ("mail",)


def test_an_error_of_a_webhooks_own_settings_does_not_tell_its_address():
    with pytest.raises(ValidationError) as error:
        Webhook(url="https://h/s3cr3t x")
    assert [problem["msg"] for problem in error.value.errors()] == [
        "Value error, this is not an address: write https://host/path"
    ]
