"""Waiting for what may hang, until a deadline and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

Work = Callable[[], Coroutine[Any, Any, None]]


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
