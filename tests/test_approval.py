"""A release that waits for a person: what moves, what is said, what approving moves, and what a second run costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from program import TINY, command, tiny_recipe, write_recipe
from release_world import Result, World

from quantize import operate
from quantize.announcing import tell_release
from quantize.cli import cli
from quantize.errors import RegistryError
from quantize.history import check_journal, history
from quantize.planner import make_plan
from quantize.recipe import load
from quantize.registry import VersionState
from quantize.release import release_run
from quantize.ruling import Standing, rule
from quantize.run import exit_code
from quantize.verdict import Decision

pytest_plugins = ["release_fixtures"]

FIRST = Result("fp8", b"first" * 100)
SECOND = Result("fp8", b"second" * 90)
SMALL = Result("int4", b"small" * 10)


@pytest.fixture
def asking(world):
    """A world whose recipe wants approval."""
    world.releasing = {"require_approval": True}
    return world


def served(world: World) -> dict[str, str]:
    """Where consumers are sent."""
    return {alias: to for alias, to in world.registry.aliases().items() if not alias.endswith(("-previous",))}


def decided(world: World, *results: Result) -> list[Decision]:
    found = [variant.decision for variant in world.release(*results).variants]
    assert None not in found
    return [decision for decision in found if decision is not None]


def approve(world: World, variant: str, version: str | None = None, **how: Any) -> operate.Move:
    return operate.promote(world.registry, variant, version, "looks good", "eva", force=False, **how)


def test_what_passes_waits_as_candidate_and_nothing_that_serves_moves(asking):
    asking.releasing = {}
    asking.release(FIRST)
    asking.releasing = {"require_approval": True}
    (decision,) = decided(asking, SECOND)
    assert (decision.action, decision.outcome) == ("hold", "pass")
    assert decision.approve == 'quantize promote tiny fp8 --version 3 --reason "..."'
    assert f"To approve it: {decision.approve}. It moves production too." in decision.sentence
    assert served(asking) == {"fp8": "2", "fp8-candidate": "3", "production": "2"}
    assert [v.state for v in asking.registry.versions()] == ["baseline", "promoted", "passed"]
    assert exit_code([decision.outcome]) == 0
    last = history(asking.registry)[-1]
    assert (last.what, last.version, last.aliases) == ("held", "3", {"fp8-candidate": "3"})


def test_approving_moves_champion_and_targets_and_can_be_rolled_back(asking):
    decided(asking, FIRST)
    assert served(asking) == {"fp8-candidate": "2", "production": "1"}
    shown: list[Any] = []
    dry = approve(asking, "fp8", dry_run=True, show=shown.append)
    assert (dry.dry_run, dry.after, dry.also) == (True, "2", {"production": "1"})
    assert served(asking) == {"fp8-candidate": "2", "production": "1"}, "a dry run moves nothing"
    move = approve(asking, "fp8", show=shown.append)
    assert (move.before, move.after, move.also) == (None, "2", {"production": "1"})
    assert served(asking) == {"fp8": "2", "fp8-candidate": "2", "production": "2"}
    assert [checklist.model_version for checklist in shown] == ["2", "2"]
    last = history(asking.registry)[-1]
    assert (last.what, last.actor, last.reason) == ("promoted", "eva", "looks good")
    assert (last.aliases["fp8"], last.aliases["production"]) == ("2", "2")
    assert operate.rollback(asking.registry, "production", None, "no", "eva").after == "1"


def test_of_two_that_wait_the_target_goes_to_the_one_it_prefers_in_either_order(asking):
    """Red when only the version that the target serves now is asked for: the second approval would leave it."""
    decided(asking, FIRST, SMALL)
    tags = {v.version: json.loads(v.tags["follows"]) for v in asking.registry.versions() if "follows" in v.tags}
    assert tags == {"2": {"production": ["1"]}, "3": {"production": ["1", "2"]}}, "it prefers fewer bytes"
    notes: list[str] = []
    assert approve(asking, "fp8").also == {"production": "1"}
    assert approve(asking, "int4", note=notes.append).also == {"production": "2"}
    assert served(asking)["production"] == "3"
    assert notes == []


def test_a_target_that_moved_elsewhere_meanwhile_stays_and_the_second_step_is_said(asking):
    decided(asking, FIRST, SMALL)
    approve(asking, "int4")
    notes: list[str] = []
    move = approve(asking, "fp8", note=notes.append)
    assert move.also == {}
    assert served(asking)["production"] == "3"
    (note,) = notes
    assert note.startswith("production stays at version 3: ")
    assert "`quantize promote tiny production --version 2" in note


def test_a_later_candidate_takes_the_place_of_one_that_waits(asking):
    decided(asking, FIRST)
    decided(asking, SECOND)
    assert served(asking)["fp8-candidate"] == "3"
    record = asking.release(SECOND)
    assert [remark for remark in record.remarks if "waits" in remark] == record.remarks[1:]
    assert "version 3 (fp8) waits for approval since 20" in record.remarks[1]


def test_one_that_is_judged_anew_and_no_longer_passes_does_not_wait(asking):
    decided(asking, FIRST)
    decided(asking, Result("fp8", FIRST.weights, "inconclusive"))
    assert [r for r in asking.release(Result("fp8", FIRST.weights, "inconclusive")).remarks if "waits" in r] == []
    with pytest.raises(RegistryError, match="version 2 is inconclusive"):
        approve(asking, "fp8", "2")


def test_a_champion_that_passes_anew_needs_no_approval(asking):
    decided(asking, FIRST)
    approve(asking, "fp8")
    (decision,) = decided(asking, Result("fp8", FIRST.weights, note=" still"))
    assert (decision.action, decision.approve) == ("promote", "")
    assert [v.state for v in asking.registry.versions()] == ["baseline", "promoted"]


def test_no_target_moves_by_a_champion_that_passes_anew_where_a_person_approves(asking):
    """Red when targets are pointed as in a release without approval: `production` would go to version 2."""
    decided(asking, FIRST, Result("int4", SMALL.weights, lower=-0.04))
    approve(asking, "fp8")
    approve(asking, "int4")
    assert served(asking)["production"] == "3"
    asking.targets = {"production": {"from": ["fp8", "int4"], "prefer": "quality"}}
    decided(asking, Result("fp8", FIRST.weights, note=" still"))
    assert served(asking)["production"] == "3"


def test_who_approves_is_told_that_the_champion_is_another_one_by_now(asking):
    decided(asking, FIRST)
    operate.promote(asking.registry, "fp8", "2", "looks good", "eva", force=False)
    decided(asking, SECOND)
    operate.rollback(asking.registry, "fp8", "1", "customers complain", "eva")
    notes: list[str] = []
    approve(asking, "fp8", "3", note=notes.append)
    assert notes[0] == "it was judged against version 2, and fp8 is version 1 now"


def test_a_run_that_was_killed_before_it_had_decided_is_finished_by_the_next(asking):
    """The candidate's alias had moved; then everything ended."""
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from release_world import Result, World
os.environ["QUANTIZE_FAULT"] = "transaction.moved"
world = World(Path({str(asking.folder)!r}), {asking.uri!r}, releasing={{"require_approval": True}})
world.release(Result("fp8", {FIRST.weights!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120).returncode == -9
    (decision,) = decided(asking, FIRST)
    assert "It moves production too" in decision.sentence
    assert [event.what for event in history(asking.registry)].count("held") == 1
    assert approve(asking, "fp8").also == {"production": "1"}
    assert check_journal(asking.registry).problems == ()


def test_an_approval_that_was_killed_between_two_aliases_is_finished_by_the_same_command(asking):
    decided(asking, FIRST)
    verb = ["promote", "tiny", "fp8", "--reason", "looks good", "--registry", asking.uri]
    result = command(*verb, seconds=120, QUANTIZE_FAULT="transaction.moved@2")
    assert result.returncode == -9
    assert "production" in asking.registry.aliases()
    assert asking.registry.aliases()["production"] == "1"
    again = command(*verb, seconds=120)
    assert again.returncode == 0, again.stderr
    assert served(asking) == {"fp8": "2", "fp8-candidate": "2", "production": "2"}
    assert [event.what for event in history(asking.registry)].count("promoted") == 1


def test_the_command_line_shows_the_review_says_what_would_move_and_speaks_json(asking):
    decided(asking, FIRST)

    def said(*arguments: str, code: int = 0) -> str:
        place = ("--store", str(asking.folder / "store"), "--registry", asking.uri)
        result = CliRunner().invoke(cli, [*arguments, *place])
        assert result.exit_code == code, result.output
        return result.stdout

    shown = said("review", "tiny")
    assert "review: 7 of 10 met" in shown
    assert "waits for approval since" in shown
    dry = said("promote", "tiny", "fp8", "--reason", "so", "--dry-run")
    assert dry.splitlines() == ["would move fp8: version (none) → 2", "would move production: version 1 → 2"]
    document = json.loads(said("promote", "tiny", "fp8", "--reason", "so", "--json"))
    assert (document["alias"], document["before"], document["after"]) == ("fp8", None, "2")
    assert document["also"] == {"production": "1"}
    assert document["checklist"]["model_version"] == "2"
    back = json.loads(said("rollback", "tiny", "--reason", "so", "--json", "--dry-run", "--unproven"))
    assert (back["alias"], back["after"], back["dry_run"], back["still"]) == ("production", "1", True, ["fp8"])
    assert served(asking)["production"] == "2"


def test_a_recipes_release_is_in_no_stages_key(tmp_path):
    plain = make_plan(load(write_recipe(tmp_path, tiny_recipe())), _cpu(), ())
    notify = [{"kind": "command", "run": ["true"]}]
    asks = write_recipe(tmp_path, tiny_recipe(release={"require_approval": True, "notify": notify}))
    assert [s.key for s in plain.stages()] == [s.key for s in make_plan(load(asks), _cpu(), ()).stages()]


def _cpu() -> Any:
    from quantize.device import choose

    return choose("cpu")


def test_a_failing_notice_undoes_nothing_and_is_in_the_record(asking):
    asking.releasing = {"notify": [{"kind": "command", "run": ["false"]}]}
    runner, record = asking.run(FIRST)
    record = tell_release(runner, release_run(asking.registry, runner, record), "tiny")
    assert record.variants[0].decision is not None
    assert record.variants[0].decision.action == "promote"
    assert record.remarks == ["The command false was not told: it ended with status 1: it said nothing"]
    assert json.loads((runner.directory / "run.json").read_text())["remarks"] == record.remarks
    assert (runner.directory / "seal.json").exists()


def test_an_unchanged_recipe_decides_nothing_takes_no_lock_and_asks_little(server, tmp_path, monkeypatch):
    """On a real server: what an hourly run costs when nothing has changed."""
    from requests import Session

    world = World(tmp_path, server.address, model="hourly", releasing={"require_approval": True})
    world.release(FIRST)
    journal = len(world.registry.entries(0))
    runner, record = world.run(FIRST)
    asked: list[str] = []
    send = Session.request

    def counting(self, method, url, *arguments, **options):
        asked.append(f"{method} {url}")
        return send(self, method, url, *arguments, **options)

    monkeypatch.setattr(Session, "request", counting)
    notes: list[str] = []
    monkeypatch.setattr(runner.watcher, "note", notes.append)
    again = release_run(world.registry, runner, record)
    assert [variant.decision for variant in again.variants] == [None]
    assert len(asked) <= 6, asked
    assert all(a.startswith("GET") for a in asked), asked
    assert len(world.registry.entries(0)) == journal, "no lock was taken"
    assert notes == again.remarks
    assert notes[0] == "Nothing new to decide for hourly."
    assert notes[1].startswith("version 2 (fp8) waits for approval since 20")
    assert notes[1].endswith('quantize promote hourly fp8 --version 2 --reason "..."')


@pytest.mark.slow
def test_the_whole_way_on_a_real_model(tmp_path):
    """Run twice, look, approve; with a command that is told of it."""
    told = tmp_path / "told.jsonl"
    notify = [{"kind": "command", "run": ["sh", "-c", f"cat >> {told}; echo >> {told}"]}]
    release = {"require_approval": True, "notify": notify}
    shutil.copytree(TINY / "checkpoint", tmp_path / "model")
    path = write_recipe(tmp_path, tiny_recipe(release=release, noise_floor=True))
    place = ("--store", tmp_path / "store")
    first = command("run", path, *place, "--json")
    assert first.returncode == 0, first.stderr
    variant = json.loads(first.stdout)["variants"][0]
    assert variant["decision"]["action"] == "hold"
    assert {line["state"] for line in variant["checklist"]["lines"]} == {"met", "not asked"}
    (document,) = (json.loads(line) for line in told.read_text().splitlines())
    assert [(d["what"], d["approve"]) for d in document["decisions"]] == [("waiting", variant["decision"]["approve"])]
    second = command("run", path, *place)
    assert second.returncode == 0
    assert "int8) waits for approval since" in second.stdout
    assert "waits for approval" in second.stderr
    assert len(told.read_text().splitlines()) == 1, "nothing was decided, so nobody is told"
    approved = command("promote", "tiny", "int8", "--version", "2", "--reason", "fine", *place)
    assert approved.returncode == 0, approved.stderr
    assert approved.stdout.splitlines() == ["int8: version (none) → 2", "production: version 1 → 2"]
    assert "✓ loads in transformers:" in approved.stderr
    first, _ = sorted((tmp_path / "store" / "runs").glob("*/report.md"))
    assert "### Review" in first.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "action", "state", "waits"),
    [
        ({}, "hold", "passed", True),
        ({"serves": True}, "promote", "promoted", False),
        ({"beaten": "It is worse than version 2."}, "hold", "passed", False),
        ({"outdated": "Run again."}, "hold", "inconclusive", False),
        ({"asks": ""}, "promote", "passed", False),
    ],
)
def test_only_what_would_be_promoted_now_waits(world, how, action, state, waits):
    """`serves`: somebody approved it while the run that decided it was dead. Red where it is made to wait again."""
    _, record = world.run(FIRST)
    version = VersionState("2", "fp8", "passed", "d" * 64, None, "now", {}, ())
    standing = Standing(version, **{"champion": None, "serves": False, "asks": "x", **how})
    ruling = rule(record.variants[0].verdict, standing)
    assert (ruling.action, ruling.state, bool(ruling.approve)) == (action, state, waits)


def test_what_was_rolled_back_does_not_wait_for_approval(world):
    _, record = world.run(FIRST)
    version = VersionState("2", "fp8", "rolled_back", "d" * 64, None, "now", {}, ())
    ruling = rule(record.variants[0].verdict, Standing(version, None, serves=False, asks="x"))
    assert (ruling.action, ruling.state, ruling.approve) == ("hold", "", "")
    assert "--force" in ruling.sentence
