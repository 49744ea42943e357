"""Waiting for what may hang, until a deadline and no longer."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

Work = Callable[[], Coroutine[Any, Any, None]]


Result = TypeVar("Result")

_late: set[asyncio.Task[None]] = set()  # what is left to itself: a loop alone would let it be collected


async def run_all(works: Iterable[Work], deadline: float, clock: Callable[[], float], *, name: str) -> bool:
    """Run every work, each as a task of its own; False if one is not done at the deadline (seconds of `clock`).

    One that hangs costs the others nothing; it is left to itself, as a thread is: cancelled, it would say of its
    connection what is not so. Raises what the first that raised did, once all have been waited for. What cannot
    be waited for is not begun.
    """
    if deadline <= clock():
        return False
    tasks = [asyncio.create_task(work(), name=name) for work in works]
    if not tasks:
        return True
    done, late = await asyncio.wait(tasks, timeout=max(0.0, deadline - clock()))
    for task in late:
        _late.add(task)
        task.add_done_callback(_late.discard)
    for task in tasks:
        if task in done:
            task.result()
    return not late


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run what may block in a thread of its own, and wait for it; raises what it raises.

    Not in the loop's pool of threads, which may be full of what hangs.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Result] = loop.create_future()

    def tell(result: Callable[[], None]) -> None:
        def unless_left() -> None:
            if not ended.done():
                result()

        if not loop.is_closed():
            loop.call_soon_threadsafe(unless_left)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            tell(partial(ended.set_exception, error if isinstance(error, Exception) else RuntimeError(repr(error))))
        else:
            tell(partial(ended.set_result, result))

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="pooldrain-thread", daemon=True).start()
    return await ended
