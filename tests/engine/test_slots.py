"""Run slots: who runs, who polls, who waits, and how many slots there are. Threads here are real, clients are not."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pooldrain_sync.engine.slots import Governor, RunSlots
from tests.harness.waiting import eventually


def in_thread(*functions: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=lambda: [function() for function in functions], daemon=True)
    thread.start()
    return thread


def test_as_many_poll_as_there_are_slots_and_the_others_are_spare() -> None:
    slots = RunSlots(2)
    for _ in range(5):
        in_thread(slots.poll)
    eventually(lambda: slots.spare == 3, "three threads sleep")
    assert slots.polling == 2


def test_who_has_something_to_do_runs_and_nobody_is_woken_while_somebody_polls() -> None:
    slots = RunSlots(2)
    slots.poll()
    slots.poll()
    in_thread(slots.poll)
    eventually(lambda: slots.spare == 1, "the third sleeps")
    slots.run(from_poll=True)
    assert (slots.running, slots.polling, slots.spare) == (1, 1, 1)


def test_a_slot_that_is_given_back_wakes_who_waits_for_one_before_who_is_spare() -> None:
    slots = RunSlots(1)
    slots.run()
    spare = in_thread(slots.poll, slots.polled)
    eventually(lambda: not spare.is_alive(), "it polls at once")
    ran = threading.Event()
    in_thread(slots.run, ran.set)
    eventually(lambda: slots.waiting == 1, "it waits for the slot")
    assert not ran.is_set()
    slots.rest()
    assert ran.wait(5)
    assert slots.running == 1


def test_while_who_runs_waits_for_its_database_another_polls() -> None:
    slots = RunSlots(1)
    slots.poll()
    in_thread(slots.poll)
    eventually(lambda: slots.spare == 1, "the second sleeps")
    slots.run(from_poll=True)
    slots.held = True
    assert (slots.running, slots.polling, slots.spare) == (1, 0, 1)
    assert slots.begin_wait()
    assert (slots.running, slots.polling, slots.spare) == (0, 1, 0)
    slots.end_wait()
    assert slots.running == 1
    assert slots.held


def test_a_thread_without_a_slot_has_none_to_give_back() -> None:
    slots = RunSlots(1)
    assert not slots.begin_wait()
    assert slots.running == 0


def test_it_is_told_when_nobody_polls_any_more() -> None:
    told: list[str] = []
    slots = RunSlots(1, lambda: told.append("short"))
    slots.poll()
    slots.run(from_poll=True)
    assert told == ["short"]


@pytest.mark.parametrize("threads", [4, 40])
def test_slots_are_lent_while_the_interpreter_idles_and_taken_back_when_it_does_not(threads: int) -> None:
    slots = RunSlots(1)
    governor = Governor(slots, threads, 0.0, 0.0)
    slots.run()
    for _ in range(threads):
        in_thread(slots.run)
    eventually(lambda: slots.waiting == threads, "all of them wait")
    looks = 0
    while slots.limit < threads:
        looks += 1
        governor.look(looks * 0.005, 0.0)
        assert looks <= 4, "within 20 ms"
    assert slots.running == threads
    for _ in range(threads - 1):
        slots.rest()
    now = looks * 0.005
    for look in range(1, 10):
        slots.begun += 1
        governor.look(now + look * 0.005, look * 0.005)
    assert slots.limit == slots.base


def test_no_slot_is_lent_while_a_busy_interpreter_makes_progress() -> None:
    slots = RunSlots(1)
    governor = Governor(slots, 40, 0.0, 0.0)
    slots.run()
    in_thread(slots.run)
    eventually(lambda: slots.waiting == 1, "it waits")
    for look in range(1, 10):
        slots.begun += 5
        assert governor.look(look * 0.005, look * 0.005) >= 5
    assert slots.limit == 1


def test_what_never_ends_keeps_nobody_from_running() -> None:
    slots = RunSlots(1)
    governor = Governor(slots, 40, 0.0, 0.0)
    slots.run()
    ran = threading.Event()
    in_thread(slots.run, ran.set)
    eventually(lambda: slots.waiting == 1, "it waits")
    for look in range(Governor.PATIENCE + 2):
        governor.look(look * 0.005, look * 0.005)
    assert ran.wait(5)
    assert slots.limit == 2, "one more, and not as many as there are threads: they would fight for the interpreter"


def test_a_look_after_a_long_time_decides_nothing() -> None:
    slots = RunSlots(1)
    governor = Governor(slots, 40, 0.0, 0.0)
    slots.run()
    in_thread(slots.run)
    eventually(lambda: slots.waiting == 1, "it waits")
    governor.look(60.0, 0.01)
    assert slots.limit == 1
