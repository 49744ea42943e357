"""When a main thread looks: never while its threads come by everything themselves, often while they are busy."""

from __future__ import annotations

import select

from pooldrain_sync.engine.lookout import LOOK, LOOKS, Lookout


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
