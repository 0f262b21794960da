"""Leases in a folder that several nodes share: one owner, heartbeats by the file system's clock, a token that fences.

A node is a name here (`QUANTIZE_NODE`): nodes share no flock, as on a network file system that has them for one kernel
alone.
"""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from quantize import leases
from quantize.errors import LeaseLost, StoreError, UsageError
from quantize.leases import NODE, SECONDS, Lease, beating, holding, is_held


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv(SECONDS, "1")
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.02)


@pytest.fixture
def on(monkeypatch):
    """The node that what follows happens on."""
    return lambda name: monkeypatch.setenv(NODE, name)


def nobody(says: str) -> None:
    pytest.fail(f"somebody was waited for: {says}")


def abandoned(folder, node: str, beaten: float | None = None, seconds: float = 1.0) -> Lease:
    """The lease of a node that died with it, `beaten` seconds ago or just now."""
    generation = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
    ticket = folder / str(generation)
    owner = {"pid": 1, "host": node, "node": node, "seconds": seconds}
    ticket.write_text(json.dumps(owner), encoding="utf-8")
    if beaten is not None:
        os.utime(ticket, (time.time() - beaten,) * 2)
    return Lease(folder, generation, seconds)


def test_a_lease_that_was_given_back_is_had_at_once_by_any_node_and_numbers_only_rise(tmp_path, on):
    numbers = []
    for name in ("a", "b", "b", "a"):
        on(name)
        with holding(tmp_path, nobody) as lease:
            numbers.append(lease.generation)
            assert is_held(tmp_path)
        assert not is_held(tmp_path)
    assert numbers == [1, 2, 3, 4]


def test_another_node_waits_as_long_as_the_owner_beats(tmp_path, on):
    on("a")
    told: list[str] = []
    had = threading.Event()

    def wait() -> None:
        with holding(tmp_path, told.append):
            had.set()

    with holding(tmp_path, nobody):
        on("b")
        assert is_held(tmp_path)
        other = threading.Thread(target=wait)
        other.start()
        assert not had.wait(2.5), "more than twice the time that it may be silent"
    other.join(10)
    assert had.is_set()
    assert [json.loads(says)["node"] for says in told] == ["a"]


def test_a_node_that_died_is_waited_for_as_long_as_it_asked_and_then_taken_over(tmp_path, on):
    lost = abandoned(tmp_path, "dead", seconds=1.5)
    on("b")
    began = time.monotonic()
    told: list[str] = []
    with holding(tmp_path, told.append) as lease:
        assert 1.0 < time.monotonic() - began < 10
        assert lease.generation == 2
        with pytest.raises(LeaseLost, match=r"another node has taken this work over \(pid \d+ on .*1\.5 seconds"):
            lost.check()
        lease.check()
    assert len(told) == 1


def test_what_died_on_this_node_is_taken_over_at_once(tmp_path, on):
    abandoned(tmp_path, "a", seconds=3600)
    on("a")
    with holding(tmp_path, nobody) as lease:
        assert lease.generation == 2


@pytest.mark.parametrize("minutes", [-15, 15])
def test_the_clocks_of_the_nodes_are_not_asked(tmp_path, on, monkeypatch, minutes):
    """Red where an age is told by `time.time()`."""
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 60 * minutes)
    fresh = abandoned(tmp_path, "dead", seconds=1.0)
    on("b")
    began = time.monotonic()
    with holding(tmp_path, lambda _says: None):
        assert 0.5 < time.monotonic() - began < 10
        with pytest.raises(LeaseLost):
            fresh.check()


def test_a_file_system_that_takes_the_owners_own_time_robs_nobody_who_beats(tmp_path, on):
    """Lustre takes the time of whoever touches. Red where an age alone decides."""
    behind = abandoned(tmp_path, "a", beaten=600)
    on("b")
    had, ended = threading.Event(), threading.Event()

    def beat() -> None:
        for number in range(1000):
            if ended.wait(0.05):
                return
            os.utime(behind.ticket, (time.time() - 600 + number,) * 2)

    def wait() -> None:
        with holding(tmp_path, lambda _says: None):
            had.set()

    threads = [threading.Thread(target=work) for work in (beat, wait)]
    for thread in threads:
        thread.start()
    assert not had.wait(2), "twice the time that it may be silent"
    assert is_held(tmp_path)
    ended.set()
    for thread in threads:
        thread.join(10)
    assert had.is_set()


def test_a_clock_that_went_back_keeps_no_lease_for_ever(tmp_path, on):
    abandoned(tmp_path, "dead", beaten=-600)
    on("b")
    began = time.monotonic()
    with holding(tmp_path, lambda _says: None):
        assert time.monotonic() - began > 0.9


def test_a_lease_is_given_back_where_its_work_failed(tmp_path, on):
    on("a")
    with pytest.raises(ValueError, match="bad"), holding(tmp_path, nobody):
        raise ValueError("bad")
    on("b")
    with holding(tmp_path, nobody) as lease:
        assert lease.generation == 2


def test_an_owner_that_is_overtaken_is_told_by_its_heartbeat(tmp_path, on):
    on("a")
    told: list[LeaseLost] = []
    heard = threading.Event()
    with holding(tmp_path, nobody) as lease, beating(lease, lambda error: (told.append(error), heard.set())):
        abandoned(tmp_path, "b")
        lease.ticket.unlink()
        assert heard.wait(5)
    assert told


def test_one_who_slept_between_reading_and_linking_gives_way(tmp_path, on, monkeypatch):
    """While it sleeps, others take number 2 and 3 and remove what came before; number 2 is free again."""
    abandoned(tmp_path, "dead", beaten=100)
    link, slept = leases._link, []

    def late(folder, generation, text, mine):
        if not slept:
            slept.append(generation)
            (folder / "1").unlink()
            abandoned(folder, "c").ticket.rename(folder / "3")
        return link(folder, generation, text, mine)

    monkeypatch.setattr(leases, "_link", late)
    on("b")
    with holding(tmp_path, lambda _says: None) as lease:
        assert slept == [2]
        assert lease.generation == 4
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdecimal()) == ["4"]


def test_of_many_nodes_that_take_over_at_once_one_at_a_time_has_it(tmp_path, monkeypatch):
    """Each reads, waits and writes a number: one that was not alone would lose a count."""
    abandoned(tmp_path, "dead", beaten=100)
    counter = tmp_path / "counter.txt"
    counter.write_text("0", encoding="utf-8")
    names = iter([f"n{number}" for number in range(8)])
    mine = threading.local()
    monkeypatch.setattr(leases, "node", lambda: mine.name)
    starting = threading.Barrier(8)

    def count(name: str) -> None:
        mine.name = name
        starting.wait()
        for _ in range(5):
            with holding(tmp_path, lambda _says: None) as lease:
                number = int(counter.read_text(encoding="utf-8"))
                time.sleep(0.002)
                counter.write_text(str(number + 1), encoding="utf-8")
                lease.check()

    threads = [threading.Thread(target=count, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter.read_text(encoding="utf-8") == "40"


def test_settings_that_are_wrong_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(SECONDS, "soon")
    with (
        pytest.raises(UsageError, match="'soon' is no number of seconds"),
        holding(tmp_path, nobody),
    ):
        pass
    monkeypatch.setenv(SECONDS, "1")
    monkeypatch.setenv(NODE, "../up")
    with pytest.raises(UsageError, match="no name of a node"), holding(tmp_path, nobody):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_arguments, **_more):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(leases, "wait_for_lock", refuse)
    with pytest.raises(StoreError, match="no file locks"), holding(tmp_path, nobody):
        pass
