"""The closable pool for asyncio, under SQLAlchemy's greenlet (see `pool`; patches SQLAlchemy 2.1)."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import greenlet
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from pooldrain.sqla.pool import ClosablePool
from pooldrain.sqla.queues import ClosableAsyncQueue


class ClosableAsyncQueuePool(ClosablePool, AsyncAdaptedQueuePool):
    """For asyncio."""

    _queue_class = ClosableAsyncQueue

    @staticmethod
    def _caller_frame() -> FrameType | None:
        """SQLAlchemy runs the checkout in a greenlet, whose frames end at its root: the caller is in its parent."""
        parent = greenlet.getcurrent().parent
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
        if (pgconn := getattr(driver, "pgconn", None)) is None:
            return False
        pgconn.finish()
        return True
