"""Which event loop a connection of an asyncio engine belongs to: only there can it be closed in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

# Seconds for another thread's loop to close a connection that nobody returns.
PATIENCE = 2.0

_LOOP = "pooldrain.loop"  # in a record's `info`, which is emptied when the record gets another connection


def note_loop(record: ConnectionPoolEntry) -> None:
    """A connection of an asyncio engine was opened: on the loop that runs."""
    with suppress(RuntimeError):  # opened by something that has no loop, a test with a driver of its own say
        record.info[_LOOP] = asyncio.get_running_loop()


def loop_of(record: ConnectionPoolEntry) -> asyncio.AbstractEventLoop | None:
    """The loop that a record's connection was opened on; None if that is not known."""
    loop: asyncio.AbstractEventLoop | None = record.info.get(_LOOP)
    return loop


def run_on_loop(work: Callable[[], object], loop: asyncio.AbstractEventLoop | None, timeout: float) -> bool:
    """Run what closes a connection on its loop, from another thread, and wait; False if that loop does not run.

    Raises what the work raises, and TimeoutError after so many seconds.
    """
    if loop is None or not loop.is_running():
        return False
    asyncio.run_coroutine_threadsafe(greenlet_spawn(work), loop).result(max(0.0, timeout))
    return True
