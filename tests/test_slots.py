"""Who runs when: never over capacity, alone is alone, nobody waits for ever, priorities are kept."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import pytest

from quantize.desk import Desk
from quantize.errors import Interrupted, QuantizeError
from quantize.slots import Capacity, Request, Slots

GB = 1e9


def capacity(draw):
    """A machine of 1 to 64 devices."""
    devices = draw.choice([1, 2, 3, 8, 64])
    memory = draw.choice([None, 80 * GB])
    limit = draw.choice([None, None, 1, 2, 5])
    return Capacity({f"cuda:{n}": memory for n in range(devices)}, draw.choice([None, 100 * GB]), limit)


def request(draw, number, room):
    """What one stage may ask of it."""
    devices = draw.choice([0, 1, 1, 1, min(2, len(room.devices))])
    return Request(
        who=f"stage {number}",
        priority=(float(draw.randrange(5)),),
        devices=devices,
        memory=draw.choice([None, 10 * GB, 90 * GB]),
        device_memory=draw.choice([None, 40 * GB]) if devices else None,
        alone=draw.random() < 0.1,
    )


def check(room, running):
    """No promise is broken by what runs."""
    requests = [wanted for wanted, _ in running.values()]
    names = [name for _, devices in running.values() for name in devices]
    assert len(names) == len(set(names)) and set(names) <= set(room.devices)
    assert room.stages is None or len(running) <= room.stages
    assert room.memory is None or sum(wanted.memory or 0 for wanted in requests) <= room.memory
    for wanted, devices in running.values():
        assert len(devices) == (len(room.devices) if wanted.alone else wanted.devices)
        assert all(room.devices[name] is None or room.devices[name] >= wanted.each for name in devices)
    assert len(running) == 1 or not any(wanted.alone for wanted in requests)


def simulated(seed, stages=60):
    """Stages that come and end at random; returns the order of the grants."""
    draw = random.Random(seed)
    room = capacity(draw)
    slots, asked, running, order = Slots(room), {}, {}, []
    left = stages
    while left or running or len(order) < stages:
        if left and draw.random() < 0.5:
            wanted = request(draw, left, room)
            asked[slots.submit(wanted)] = wanted
            left -= 1
        elif running:
            ticket = draw.choice(sorted(running))
            del running[ticket]
            slots.release(ticket)
        for ticket, devices in slots.granted():
            running[ticket] = (asked[ticket], devices)
            order.append((ticket, devices))
            check(room, running)
    assert sorted(ticket for ticket, _ in order) == sorted(asked)
    return order


@pytest.mark.parametrize("seed", range(200))
def test_no_grant_breaks_a_promise_and_everybody_gets_one(seed):
    assert simulated(seed) == simulated(seed), "the same requests are granted in the same order"


@pytest.mark.parametrize("seed", range(50))
def test_of_those_that_want_the_same_the_lowest_priority_is_served_first(seed):
    draw = random.Random(seed)
    slots = Slots(Capacity({"cpu": None}))
    wanted = {slots.submit(Request(f"{n}", (draw.random(),), devices=1)): n for n in range(10)}
    served = []
    while len(served) < len(wanted):
        ((ticket, devices),) = slots.granted()
        assert devices == ("cpu",)
        served.append(ticket)
        slots.release(ticket)
    draw = random.Random(seed)
    priorities = {ticket: draw.random() for ticket in wanted}
    assert served == sorted(wanted, key=priorities.__getitem__)


def test_of_equal_priority_the_first_to_come_is_served_first():
    slots = Slots(Capacity({"cpu": None}))
    first, second = (slots.submit(Request(name, (1.0,), devices=1)) for name in "ab")
    assert [ticket for ticket, _ in slots.granted()] == [first]
    slots.release(first)
    assert [ticket for ticket, _ in slots.granted()] == [second]


def test_a_stage_without_device_runs_beside_one_that_waits_for_one():
    slots = Slots(Capacity({"cuda:0": None}))
    slots.submit(Request("evaluate a", (0.0,), devices=1))
    waiting = slots.submit(Request("evaluate b", (1.0,), devices=1))
    judge = slots.submit(Request("judge c", (2.0,)))
    granted = slots.granted()
    assert (judge, ()) in granted and waiting not in [ticket for ticket, _ in granted]


def test_nothing_overtakes_one_that_is_next_and_wants_to_be_alone():
    slots = Slots(Capacity({"cuda:0": None, "cuda:1": None}))
    first = slots.submit(Request("evaluate a", (0.0,), devices=1))
    assert slots.granted() == [(first, ("cuda:0",))]
    alone = slots.submit(Request("benchmark b", (1.0,), devices=1, alone=True))
    later = slots.submit(Request("evaluate c", (2.0,), devices=1))
    assert slots.granted() == []
    slots.release(first)
    assert slots.granted() == [(alone, ("cuda:0", "cuda:1"))]
    slots.release(alone)
    assert slots.granted() == [(later, ("cuda:0",))]


@pytest.mark.parametrize(
    "patient",
    [
        Request("alone", (9.0,), devices=1, alone=True),
        Request("large", (9.0,), devices=1, memory=9 * GB),
        Request("wide", (9.0,), devices=2),
        Request("plain", (9.0,), devices=1),
    ],
    ids=lambda wanted: wanted.who,
)
def test_an_endless_stream_of_more_urgent_ones_starves_nobody(patient):
    slots = Slots(Capacity({"cuda:0": None, "cuda:1": None}, memory=10 * GB))
    urgent = Request("urgent", (0.0,), devices=1, memory=5 * GB)
    running = [slots.submit(urgent), slots.submit(urgent)]
    slots.granted()
    ticket = slots.submit(patient)
    for _ in range(200):
        running.append(slots.submit(urgent))
        slots.release(running.pop(0))
        if ticket in [granted for granted, _ in slots.granted()]:
            return
    pytest.fail("it was never granted")


def test_who_gives_up_waiting_frees_its_place():
    slots = Slots(Capacity({"cuda:0": None}))
    running = slots.submit(Request("a", (0.0,), devices=1))
    slots.granted()
    alone = slots.submit(Request("b", (0.0,), alone=True))
    judge = slots.submit(Request("c", (1.0,)))
    assert slots.granted() == []
    slots.release(alone)
    assert slots.granted() == [(judge, ())]
    slots.release(running)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            Request("quantize x", memory=40 * GB),
            "quantize x: it needs about 40.0 GB of memory and stages",
        ),
        (Request("prove x", devices=3), "prove x: it needs 3 devices and there are 2."),
        (
            Request("prove x", devices=1, device_memory=90 * GB),
            "prove x: it needs a device with 90.0 GB of memory",
        ),
    ],
)
def test_what_could_never_be_granted_is_refused_at_once_and_says_how_to_mend_it(wanted, told):
    slots = Slots(Capacity({"cuda:0": 80 * GB, "cuda:1": 80 * GB}, memory=32 * GB))
    with pytest.raises(QuantizeError) as caught:
        slots.submit(wanted)
    assert told in str(caught.value) and caught.value.fix
    assert slots.granted() == []


def test_threads_wait_for_their_turn_and_never_hold_one_device_together():
    desk, held, most = Desk(Capacity({"cuda:0": None, "cuda:1": None})), [], []
    lock = threading.Lock()

    def work(number):
        with desk.holding(Request(f"stage {number}", (float(number),), devices=1)) as (device,):
            with lock:
                held.append(device)
                most.append(len(held))
                assert len(set(held)) == len(held)
            time.sleep(0.002)
            with lock:
                held.remove(device)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 20 and max(most) == 2


def test_who_ends_a_stage_is_in_the_queue_for_the_next_before_the_device_is_given_away():
    desk, order = Desk(Capacity({"cpu": None})), []

    def work(name, priority, stages):
        for number in range(stages):
            with desk.holding(Request(name, (priority,), devices=1)):
                order.append(f"{name} {number}")
                time.sleep(0.05)

    near, far = (threading.Thread(target=work, args=it) for it in (("near", 0.0, 3), ("far", 1.0, 1)))
    near.start()
    far.start()
    near.join(10)
    far.join(10)
    assert order == ["near 0", "near 1", "near 2", "far 0"]


def test_of_two_that_come_together_the_more_urgent_is_served_first():
    desk, order = Desk(Capacity({"cpu": None})), []
    with desk.holding(Request("before", devices=1)):
        pass
    time.sleep(0.2)

    def work(name, priority):
        with desk.holding(Request(name, (priority,), devices=1)):
            order.append(name)

    far, near = (threading.Thread(target=work, args=it) for it in (("far", 1.0), ("near", 0.0)))
    far.start()
    time.sleep(0.01)
    near.start()
    far.join(10)
    near.join(10)
    assert order == ["near", "far"]


def test_who_waits_at_a_closed_desk_is_told_that_it_was_interrupted():
    desk, told = Desk(Capacity({"cpu": None})), []

    def wait(name):
        try:
            with desk.holding(Request(name, devices=1)):
                pass
        except Interrupted as error:
            told.append(error.what)

    with desk.holding(Request("first", devices=1)):
        thread = threading.Thread(target=wait, args=("second",))
        thread.start()
        time.sleep(0.05)
        desk.close()
        thread.join(5)
    wait("third")
    assert told == ["second was not started.", "third was not started."]


def test_a_failing_holder_gives_its_device_back():
    desk = Desk(Capacity({"cpu": None}))
    wanted = Request("it", devices=1)
    with pytest.raises(ValueError, match="broken"), desk.holding(wanted):
        raise ValueError("broken")
    with desk.holding(replace(wanted, alone=True)) as devices:
        assert devices == ("cpu",)
