"""When a main thread looks: never while its threads come by everything themselves, often while they are busy."""

from __future__ import annotations

import select
import threading

from pooldrain_sync.engine.lookout import LOOK, LOOKS, Lookout
from tests.harness.waiting import BOUND, eventually


def woken(lookout: Lookout) -> bool:
    return bool(select.select([lookout.woken], [], [], 0)[0])


def test_it_sleeps_while_a_thread_waits_for_clients_and_looks_while_none_does() -> None:
    lookout = Lookout(4, 1)
    lookout.slots.poll()
    assert lookout.patience() > LOOK
    lookout.slots.run(from_poll=True)
    assert lookout.patience() == LOOK


def test_it_is_woken_if_it_sleeps_when_the_last_thread_gets_busy() -> None:
    lookout = Lookout(4, 1)
    lookout.slots.poll()
    lookout.patience()
    lookout.slots.run(from_poll=True)
    assert woken(lookout)
    assert lookout.look(), "nothing has begun that would come by what is to be done"
    assert not woken(lookout)


def test_it_goes_on_to_look_for_a_while_after_the_threads_were_busy() -> None:
    lookout = Lookout(4, 1)
    lookout.slots.poll()
    lookout.slots.run(from_poll=True)
    lookout.patience()
    lookout.slots.poll(from_run=True)
    assert [lookout.patience() for _ in range(LOOKS)].count(LOOK) == LOOKS - 1


def test_who_waits_for_a_slot_is_looked_after_though_somebody_polls() -> None:
    """What runs may wait, unseen, for a lock of somebody who waits for a slot: nothing else would ever end that."""
    lookout = Lookout(4, 1)
    slots = lookout.slots
    slots.run()
    slots.poll()
    assert lookout.patience() == 1.0
    waiting = threading.Thread(target=slots.run, daemon=True)
    waiting.start()
    eventually(lambda: slots.waiting == 1, "it waits for a slot")
    assert lookout.patience() == LOOK

    def lent() -> bool:
        threading.Event().wait(lookout.patience())
        lookout.look()
        return not slots.waiting

    eventually(lent, "another slot was lent")
    waiting.join(BOUND)
    assert slots.running == 2
