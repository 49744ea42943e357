"""The closable pool for asyncio, under SQLAlchemy's greenlet (see `pool`; patches SQLAlchemy 2.1)."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

from greenlet import getcurrent
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from pooldrain.sqla.pool import Closable, ClosablePool
from pooldrain.sqla.queues import ClosableAsyncQueue


class OnLoop(Closable):
    """The layer's half that belongs to asyncio."""

    @staticmethod
    def _caller_frame() -> FrameType | None:
        """SQLAlchemy runs the checkout in a greenlet, whose frames end at its root: the caller is in its parent."""
        parent = getcurrent().parent
        return None if parent is None else parent.gr_frame

    @staticmethod
    def _worker() -> asyncio.Task[Any] | None:
        """The running task; None outside a loop (a garbage collection in another thread)."""
        try:
            return asyncio.current_task()
        except RuntimeError:
            return None

    @staticmethod
    def discard_collected(record: ConnectionPoolEntry, connection: Any) -> bool:
        """Nothing may be awaited inside a garbage collection: end the driver's connection as it stands."""
        driver = getattr(connection, "driver_connection", None)
        if (pgconn := getattr(driver, "pgconn", None)) is not None:
            pgconn.finish()
            return True
        stop = getattr(driver, "stop", None)  # aiosqlite's, whose adapter cannot end it in older versions
        if stop is None or hasattr(connection, "terminate"):
            return False
        stop()
        return True


class ClosableAsyncQueuePool(OnLoop, ClosablePool, AsyncAdaptedQueuePool):
    """For asyncio."""

    _queue_class = ClosableAsyncQueue
