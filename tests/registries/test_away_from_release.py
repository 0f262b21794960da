"""A server that goes away at any call of a release, or loses its answer: the evidence stays, nothing is made twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cut_proxy import places, proxied
from release_processes import FIRST
from release_world import World
from turn_checks import NEVER, refusal, told, whole

from quantize.release import release_run

pytest_plugins = ["release_fixtures"]


def ended(world: World) -> list[object]:
    """Where all is, and what happened."""
    rows = [(v.state, v.aliases, v.tags.get("decided")) for v in world.registry.versions()]
    return [*rows, [what for what in told(world) if what != "lock taken"]]


def release(world: World, run) -> None:
    release_run(world.registry, *run, lambda _record: {"report.md": "report\n"})


@pytest.fixture
def away(server):
    """A proxy before the shared server, and its address."""
    with proxied(server.port) as (port, proxy):
        yield proxy, f"http://127.0.0.1:{port}"


@pytest.fixture
def world_of(away, tmp_path):
    """A world with a model of its own, by name, that asks through the proxy."""

    def make(name: str) -> World:
        folder = tmp_path / name
        folder.mkdir()
        return World(folder, away[1], model=f"r-{tmp_path.name}-{name}"[-60:])

    return make


@pytest.fixture
def calls(world_of, away):
    """The numbers of a release's calls, or of those alone that may change something; and what it comes to."""

    def count(*, changing: bool) -> tuple[list[int], list[object]]:
        world = world_of("plain")
        run = world.run(FIRST)
        found = places(away[0], lambda: release(world, run), changing=changing)
        return found, ended(world)

    return count


@pytest.mark.slow
def test_a_server_that_goes_away_at_any_call_of_a_release_leaves_the_evidence_and_a_later_run_finishes(
    calls, world_of, away, server, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    proxy, _ = away
    cuts, wanted = calls(changing=False)
    assert len(cuts) > 100
    never = 0
    for at in cuts:
        world = world_of(str(at))
        run = world.run(FIRST)
        proxy.fail(at, "before")
        said = refusal(lambda world=world, run=run: release(world, run))
        never += not proxy.down
        proxy.back()
        beside = replace(world, uri=server.database)
        assert "does not answer" in said or ended(beside) == wanted, at
        assert (run[0].directory / "run.json").is_file()
        replace(world, uri=server.address).release(FIRST)
        assert ended(beside) == wanted, at
        whole(beside)
    assert never <= NEVER


@pytest.mark.slow
def test_an_answer_that_is_lost_at_any_call_of_a_release_makes_no_second_version(calls, world_of, away, server):
    """Red when `publish` takes the version whose answer came for the only one (`_first`)."""
    proxy, _ = away
    cuts, wanted = calls(changing=True)
    made = 0
    for at in cuts:
        world = world_of(f"lost-{at}")
        run = world.run(FIRST)
        proxy.fail(at, "once")
        release(world, run)
        made += b"model-versions/create" in b"".join(proxy.requests[at - 1 : at])
        proxy.back()
        beside = replace(world, uri=server.database)
        assert ended(beside) == wanted, at
        assert [version.variant for version in beside.registry.versions()] == ["baseline", "fp8"]
        whole(beside)
    assert made > 2, "versions, and the entries of a journal"
