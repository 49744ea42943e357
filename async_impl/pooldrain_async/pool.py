"""The asyncio shell's pool: opened and filled at start, tracked, reclaimed and disposed at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import FrameType
from typing import Any

import greenlet
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from pooldrain.errors import StartupError
from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.ledger import CheckoutLedger
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.runtime.process import forks
from pooldrain.sqla.database import connect_options, startup_problem
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.drivers import is_busy, shut_down_socket
from pooldrain.sqla.pool import ClosableAsyncQueuePool
from pooldrain.sqla.tracker import (
    EventSink,
    PoolTracker,
    TrackedPool,
    checked_out_proxy,
    dbapi_connection,
    driver_connection,
    silence_collected_warning,
)
from pooldrain_async.bounded import Work


class PoolManager(TrackedPool):
    """One engine with a closable pool, and the ledger of its checkouts.

    `lock` guards the ledger and the gate alike; the loop needs none, but a garbage collection, and with it
    the return of a leaked connection, may happen in any thread.
    """

    def __init__(
        self,
        url: DatabaseUrl,
        pool: PoolPolicy,
        leaks: LeakPolicy,
        events: EventSink,
        *,
        service: str,
        lock: threading.RLock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(lock, clock)
        self.url = url
        self.service = service
        self.policy = pool
        self.ledger = CheckoutLedger(leaks)
        self.events = events
        self.engine = create_async_engine(
            url.async_url,
            poolclass=ClosableAsyncQueuePool,
            pool_size=pool.pool_size,
            max_overflow=pool.max_overflow,
            pool_timeout=pool.pool_timeout,
            pool_recycle=pool.pool_recycle,
            pool_pre_ping=pool.pre_ping,
        )
        silence_collected_warning()
        self.tracker = PoolTracker(
            self.ledger,
            events,
            lock=lock,
            clock=clock,
            skip=(__file__,),
            frame=_frame_outside_greenlet,
            worker=current_task,
            discard=self._discard_collected,
        )
        self.tracker.listen(self.engine.sync_engine)
        event.listen(self.engine.sync_engine, "do_connect", connect_options(url, pool, service))
        forks.protect(self)

    @property
    def sync_engine(self) -> sqlalchemy.Engine:
        """What SQLAlchemy's asyncio engine is made of."""
        return self.engine.sync_engine

    @property
    def pool(self) -> ClosableAsyncQueuePool:
        """The pool of this moment (`AsyncEngine.dispose()` replaces it)."""
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, ClosableAsyncQueuePool)
        return pool

    async def open(self) -> None:
        """Connect, ask `SELECT 1`, fill the pool to `min_idle`. Raises StartupError, with the password masked."""
        started = self._clock()
        try:
            async with AsyncExitStack() as connections:
                for number in range(max(self.policy.prewarm, 1)):
                    connection = await connections.enter_async_context(self.engine.connect())
                    if number == 0:
                        await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError) as error:
            raise StartupError(startup_problem(self.url, error)) from error
        if self.policy.prewarm == 0 and (record := self.pool.take_idle()) is not None:
            await greenlet_spawn(self.pool.discard, record)  # the connection of the test
        self.opened(self.url.masked, started)

    def cancellations(self, requests: list[InFlightRequest], timeout: float) -> list[Work]:
        """What cancels, on the server, each statement that these requests are running from this pool."""
        return [partial(_cancel, driver, timeout) for driver in self.drivers(requests)]

    async def reclaim(self, checkout: Checkout) -> bool:
        """Close a checked-out connection; False if its holder did so first, or if it cannot be done."""
        driver = driver_connection(checkout)
        if driver is None:
            return False
        in_use = checkout.request is not None and not checkout.request.ended
        if in_use or is_busy(driver):
            # Closing a libpq connection under another task's feet can crash: end its socket instead.
            if not shut_down_socket(driver):
                return False
            self.tracker.closed_one(dbapi_connection(checkout))
            return True
        proxy = checked_out_proxy(checkout)
        if proxy is None:
            return False
        await greenlet_spawn(proxy.invalidate)
        return True

    async def dispose(self, deadline: float) -> None:
        """Close every pooled connection; begin with none after `deadline` (monotonic seconds)."""
        pool = self.pool
        while self._clock() < deadline and (record := pool.take_idle()) is not None:
            await greenlet_spawn(pool.discard, record)

    def _discard_collected(self, record: ConnectionPoolEntry, connection: Any) -> None:
        """Nothing may be awaited inside a garbage collection: end the driver's connection as it stands."""
        driver = getattr(connection, "driver_connection", None)
        if (pgconn := getattr(driver, "pgconn", None)) is not None:
            pgconn.finish()
            self.tracker.closed_one(connection)


def current_task() -> asyncio.Task[Any] | None:
    """The running task; None outside a loop (a garbage collection in another thread)."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _frame_outside_greenlet() -> FrameType | None:
    """SQLAlchemy runs the checkout in a greenlet, whose frames end at its root: the caller is in its parent."""
    parent = greenlet.getcurrent().parent
    return None if parent is None else parent.gr_frame


async def _cancel(driver: Any, timeout: float) -> None:
    """Cancel what a connection is running: psycopg on the server, sqlite3 in the process."""
    with suppress(Exception):  # it may have finished or died meanwhile: then there is nothing to cancel
        if hasattr(driver, "cancel_safe"):
            await driver.cancel_safe(timeout=timeout)
        else:
            await driver.interrupt()
