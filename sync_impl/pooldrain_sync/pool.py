"""The threaded shell's pool: opened and filled at start, tracked, reclaimed and disposed at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from pooldrain.errors import StartupError
from pooldrain.gate import InFlightRequest
from pooldrain.ledger import Checkout, CheckoutLedger
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.pool import (
    ClosableQueuePool,
    EventSink,
    PoolTracker,
    TrackedPool,
    checked_out_proxy,
    dbapi_connection,
    driver_connection,
)
from pooldrain.runtime.database import connect_options, is_busy, shut_down_socket, startup_problem
from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain.shutdown import Done, Reclaimed
from pooldrain.transcript import ConnectionReclaimed


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

    @property
    def pool(self) -> ClosableQueuePool:
        """The pool of this moment (`Engine.dispose()` replaces it)."""
        pool = self.engine.pool
        assert isinstance(pool, ClosableQueuePool)
        return pool

    def open(self) -> None:
        """Connect, ask `SELECT 1`, fill the pool to `min_idle`. Raises StartupError, with the password masked."""
        started = self._clock()
        connections = []
        try:
            connections.append(self.engine.connect())
            connections[0].execute(text("SELECT 1"))
            while len(connections) < self.policy.prewarm:
                connections.append(self.engine.connect())
        except (SQLAlchemyError, OSError) as error:
            raise StartupError(startup_problem(self.url, error)) from error
        finally:
            for connection in connections:
                connection.close()
        if self.policy.prewarm == 0 and (record := self.pool.take_idle()) is not None:
            self.pool.discard(record)  # the connection of the test
        self.opened(self.url.masked, started)

    def cancel(self, requests: list[InFlightRequest], timeout: float) -> None:
        """Cancel on the server what these requests are running from this pool."""
        threads = [
            threading.Thread(target=_cancel, args=(driver, timeout), name="pooldrain-cancel", daemon=True)
            for driver in self.drivers(requests)
        ]
        for thread in threads:
            thread.start()
        deadline = self._clock() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - self._clock()))

    def reclaim(self, deadline: float) -> Reclaimed:
        """Refuse checkouts; name every outstanding connection, then close it. All before `deadline`."""
        checkouts, holdings = self.tell_outstanding()
        reclaimed = []

        def work() -> None:
            for checkout in checkouts:
                if self._reclaim(checkout):
                    reclaimed.append(checkout)
                    self.events.emit(ConnectionReclaimed(checkout.holder, checkout.request_id))

        finished = self._bounded(work, deadline)
        return Reclaimed(self._clock(), timed_out=not finished, holdings=holdings, reclaimed=len(reclaimed))

    def _reclaim(self, checkout: Checkout) -> bool:
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

    def dispose(self, deadline: float) -> Done:
        """Close every pooled connection, all of them before `deadline` (monotonic seconds)."""
        pool = self.pool
        pool.close()

        def work() -> None:
            while (record := pool.take_idle()) is not None:
                pool.discard(record)

        finished = self._bounded(work, deadline)
        return Done(self._clock(), timed_out=not finished)

    def _bounded(self, work: Callable[[], None], deadline: float) -> bool:
        """Run `work` in a thread; False if it is not done at the deadline. Raises what it raises."""
        if deadline <= self._clock():
            return False  # what cannot be waited for is not begun
        errors = []

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=guarded, name="pooldrain-close", daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - self._clock()))
        if errors:
            raise errors[0]
        return not thread.is_alive()


def _cancel(driver: Any, timeout: float) -> None:
    """Cancel what a connection is running: psycopg on the server, sqlite3 in the process."""
    with suppress(Exception):  # it may have finished or died meanwhile: then there is nothing to cancel
        if hasattr(driver, "cancel_safe"):
            driver.cancel_safe(timeout=timeout)
        else:
            driver.interrupt()


def _discard_collected(record: ConnectionPoolEntry, connection: Any) -> None:
    record.invalidate()
