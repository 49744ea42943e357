"""The threaded shell's pool: opened and filled at start, tracked, reclaimed and disposed at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from pooldrain.errors import StartupError
from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.ledger import CheckoutLedger
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.runtime.process import forks
from pooldrain.sqla.database import connect_options, startup_problem
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.drivers import is_busy, shut_down_socket
from pooldrain.sqla.pool import ClosableQueuePool
from pooldrain.sqla.tracker import (
    EventSink,
    PoolTracker,
    TrackedPool,
    checked_out_proxy,
    dbapi_connection,
    driver_connection,
)
from pooldrain_sync.bounded import Work


class PoolManager(TrackedPool):
    """One engine with a closable pool, and the ledger of its checkouts.

    `lock` guards the ledger and the gate alike, so that a request's end and its checkouts are seen together.
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
        self.engine = sqlalchemy.create_engine(
            url.sync_url,
            poolclass=ClosableQueuePool,
            pool_size=pool.pool_size,
            max_overflow=pool.max_overflow,
            pool_timeout=pool.pool_timeout,
            pool_recycle=pool.pool_recycle,
            pool_pre_ping=pool.pre_ping,
        )
        self.tracker = PoolTracker(
            self.ledger, events, lock=lock, clock=clock, skip=(__file__,), discard=_discard_collected
        )
        self.tracker.listen(self.engine)
        event.listen(self.engine, "do_connect", connect_options(url, pool, service))
        forks.protect(self)

    @property
    def sync_engine(self) -> sqlalchemy.Engine:
        """The engine."""
        return self.engine

    @property
    def pool(self) -> ClosableQueuePool:
        """The pool of this moment (`Engine.dispose()` replaces it)."""
        pool = self.engine.pool
        assert isinstance(pool, ClosableQueuePool)
        return pool

    def open(self) -> None:
        """Connect, ask `SELECT 1`, fill the pool to `min_idle`. Raises StartupError, with the password masked."""
        started = self._clock()
        try:
            with ExitStack() as connections:
                for number in range(max(self.policy.prewarm, 1)):
                    connection = connections.enter_context(self.engine.connect())
                    if number == 0:
                        connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError) as error:
            raise StartupError(startup_problem(self.url, error)) from error
        if self.policy.prewarm == 0 and (record := self.pool.take_idle()) is not None:
            self.pool.discard(record)  # the connection of the test
        self.opened(self.url.masked, started)

    def cancellations(self, requests: list[InFlightRequest], timeout: float) -> list[Work]:
        """What cancels, on the server, each statement that these requests are running from this pool."""
        return [partial(_cancel, driver, timeout) for driver in self.drivers(requests)]

    def reclaim(self, checkout: Checkout) -> bool:
        """Close a checked-out connection; False if its holder did so first, or if it cannot be done."""
        driver = driver_connection(checkout)
        if driver is None:
            return False
        in_use = checkout.request is not None and not checkout.request.ended
        if in_use or is_busy(driver):
            # Closing a libpq connection under another thread's feet can crash: end its socket instead.
            if not shut_down_socket(driver):
                return False
            self.tracker.closed_one(dbapi_connection(checkout))
            return True
        proxy = checked_out_proxy(checkout)
        if proxy is None:
            return False
        proxy.invalidate()
        return True

    def dispose(self, deadline: float) -> None:
        """Close every pooled connection; begin with none after `deadline` (monotonic seconds)."""
        pool = self.pool
        while self._clock() < deadline and (record := pool.take_idle()) is not None:
            pool.discard(record)


def _cancel(driver: Any, timeout: float) -> None:
    """Cancel what a connection is running: psycopg on the server, sqlite3 in the process."""
    with suppress(Exception):  # it may have finished or died meanwhile: then there is nothing to cancel
        if hasattr(driver, "cancel_safe"):
            driver.cancel_safe(timeout=timeout)
        else:
            driver.interrupt()


def _discard_collected(record: ConnectionPoolEntry, connection: Any) -> None:
    record.invalidate()
