"""A server that goes away at any call of a rollback, or loses its answer: nothing is half done, or done twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cut_proxy import places, proxied
from release_processes import FIRST, SECOND
from release_world import World
from turn_checks import NEVER, moves, refusal, serial, whole

from quantize import operate
from quantize.history import history

pytest_plugins = ["release_fixtures"]


@pytest.fixture
def world(server, tmp_path):
    """A model of its own on the shared server, with two versions of one variant."""
    world = World(tmp_path, server.address, model=f"a-{tmp_path.name}"[:60])
    world.release(FIRST)
    world.release(SECOND)
    return world


@pytest.fixture
def beside(world, server):
    """The same, asked for in the server's own database: quicker, for what a test looks at."""
    return replace(world, uri=server.database)


def back(world: World) -> None:
    """Promote again what was rolled back."""
    operate.promote(world.registry, "fp8", "3", "again", "eva", force=True)


def of(world: World, reason: str) -> int:
    """How often a move with this reason is in the history."""
    return [event.reason for event in history(world.registry)].count(reason)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after"])
def test_a_server_that_goes_away_at_any_call_of_a_rollback_is_named_and_the_next_command_finishes(
    world, beside, server, monkeypatch, how
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with proxied(server.port) as (port, proxy):
        away = world.registry.model_copy(update={"uri": f"http://127.0.0.1:{port}"})

        def there(registry, reason):
            operate.rollback(registry, "fp8", "2", reason, "eva")

        calls = places(proxy, lambda: there(away, "counted"), changing=how == "after")
        assert len(calls) > (40 if how == "before" else 10)
        # The last calls give the lock back; that they fail is no reason to fail.
        never = 0
        for at in calls:
            back(world)
            proxy.fail(at, how)
            said = refusal(lambda at=at: there(away, f"at {at}"))
            assert "does not answer" in said or beside.registry.aliases()["fp8"] == "2", at
            never += not proxy.down
            proxy.back()
            operate.reconcile(world.registry)
            if beside.registry.aliases()["fp8"] != "2":
                there(world.registry, f"at {at}")
            whole(beside)
            assert of(beside, f"at {at}") == 1, at
    assert never <= NEVER
    serial(moves(whole(world)))


@pytest.mark.slow
def test_an_answer_that_is_lost_at_any_call_is_asked_for_again_and_nothing_is_done_twice(world, beside, server):
    with proxied(server.port) as (port, proxy):
        away = world.registry.model_copy(update={"uri": f"http://127.0.0.1:{port}"})
        for at in places(proxy, lambda: operate.rollback(away, "fp8", "2", "counted", "eva"), changing=True):
            back(world)
            proxy.fail(at, "once")
            operate.rollback(away, "fp8", "2", f"at {at}", "eva")
            proxy.back()
            whole(beside)
            assert of(beside, f"at {at}") == 1, at
    serial(moves(whole(world)))
