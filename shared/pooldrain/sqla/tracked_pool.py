"""One engine with its closable pool and its ledger; and what is done from outside to those of a service that stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from pooldrain.errors import StartupError
from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.ledger import PINNED_LOOK, CheckoutLedger, Holding
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.sqla import forks
from pooldrain.sqla.connect_options import connect_options
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.drivers import in_transaction, is_busy, is_executing, shut_down_socket
from pooldrain.sqla.errors import is_temporary, startup_problem
from pooldrain.sqla.hooks import (
    EventSink,
    PoolTracker,
    checked_out_proxy,
    dbapi_connection,
    driver_connection,
)
from pooldrain.sqla.pool import ClosablePool
from pooldrain.status import PoolStatus
from pooldrain.transcript import NotReturned, Outstanding, PoolClosing, PoolOpened


class TrackedPool:
    """One engine with a closable pool, and the ledger of its checkouts: the half that has no colour.

    `name` tells it from the others of its service, `skip` has files that are no caller's. `lock` guards the ledger and
    the gate alike, so that a request's end and its checkouts are seen together; on asyncio, too, for a garbage
    collection, and with it the return of a leaked connection, may happen in any thread. `clock`: monotonic seconds.
    """

    def __init__(
        self,
        engine: sqlalchemy.Engine,
        name: str,
        *,
        url: DatabaseUrl,
        policy: PoolPolicy,
        leaks: LeakPolicy,
        events: EventSink,
        service: str,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
        skip: tuple[str, ...] = (),
    ) -> None:
        self.sync_engine = engine
        self.name = name
        self.url = url
        self.policy = policy
        self.events = events
        self.service = service
        self.lock = lock
        self._clock = clock
        self._look_again_at = 0.0  # monotonic seconds
        self.ledger = CheckoutLedger(leaks)
        self.tracker = PoolTracker(self.ledger, events, lock=lock, clock=clock, skip=skip)
        self.tracker.listen(engine)
        event.listen(engine, "do_connect", connect_options(url, policy, service))
        forks.protect(self)

    @property
    def pool(self) -> ClosablePool:
        """The pool of this moment (`Engine.dispose()` replaces it)."""
        pool = self.sync_engine.pool
        assert isinstance(pool, ClosablePool)
        return pool

    @property
    def status(self) -> PoolStatus:
        """The pool's numbers."""
        return self.pool.numbers()

    def close(self) -> None:
        """Refuse checkouts from now on, and wake who waits for one. Closes no connection."""
        self.pool.close()

    def forget(self) -> list[Any]:
        """In a forked child: start anew. Returns what must never be collected there."""
        pool = self.pool
        pool.disown()
        self.sync_engine.dispose(close=False)
        return [pool, *self.tracker.forget()]

    def outstanding(self) -> list[Checkout]:
        """Every connection that is checked out, oldest first."""
        with self.lock:
            return list(self.ledger.outstanding.values())

    def holdings(self) -> tuple[Holding, ...]:
        """The same in words."""
        now = self._clock()
        return tuple(self.tracker.describe(checkout, now) for checkout in self.outstanding())

    def drivers(self, requests: Iterable[InFlightRequest]) -> list[Any]:
        """The drivers' connections that these requests hold from this pool."""
        with self.lock:
            mine = self.ledger.outstanding
            held = [c for request in requests for c in request.checkouts if mine.get(c.key) is c]
        return [driver for checkout in held if (driver := driver_connection(checkout)) is not None]

    def in_transit(self) -> list[ConnectionPoolEntry]:
        """Open connections that are neither idle nor checked out: being tested, reset or closed by somebody."""
        idle = self.pool.idle_records()
        with self.lock:
            return [r for r in self.tracker.open_records() if r not in idle and r not in self.ledger.outstanding]

    def take_from_holder(self, checkout: Checkout) -> PoolProxiedConnection | bool:
        """What to invalidate, so that a checked-out connection is closed; or whether it has been closed already.

        False: its holder did so first, or it cannot be done.
        """
        driver = driver_connection(checkout)
        if driver is None:
            return False
        in_use = checkout.request is not None and not checkout.request.ended
        if in_use or is_busy(driver):
            # Closing a libpq connection under another thread's or task's feet can crash: end its socket instead.
            if not shut_down_socket(driver):
                return False
            self.tracker.closed_one(dbapi_connection(checkout))
            return True
        return checked_out_proxy(checkout) or False

    def cut_off(self, requests: Iterable[InFlightRequest]) -> int:
        """End, from outside, the connections on which these requests wait for the database; how many there were.

        For a database that does not answer: no cancellation reaches it, and what waits for it has to unwind.
        """
        return sum(shut_down_socket(driver) for driver in self.drivers(requests) if is_busy(driver))

    def end_in_transit(self) -> int:
        """End, from outside, the connections that somebody is still testing, resetting or closing; how many."""
        ended = 0
        for record in self.in_transit():
            connection = record.dbapi_connection
            if is_busy(record.driver_connection) and shut_down_socket(record.driver_connection):
                self.tracker.closed_one(connection)
                ended += 1
        return ended

    def report_overdue(self) -> float:
        """Report what has become overdue; the seconds until something else can, infinite if the rule is off."""
        age = self.ledger.policy.leak_age
        if age is None:
            return math.inf
        with self.lock:
            now = self._clock()
            leaks = self.ledger.overdue(now)
            due = self.ledger.next_overdue()
        self.tracker.report(leaks)
        return max(0.001, age if due is None else due - now)

    def report_pinned(self) -> float:
        """Look for what idles in a transaction while its request's answer is sent; the seconds until the next look."""
        now = self._clock()
        if now < self._look_again_at:
            return self._look_again_at - now
        self._look_again_at = now + PINNED_LOOK
        with self.lock:
            answering = self.ledger.answering()
        if answering:
            idle = {c for c in answering if _idles_in_transaction(driver_connection(c))}
            with self.lock:
                leaks = self.ledger.pinned(idle, now)
            self.tracker.report(leaks)
        return PINNED_LOOK

    def look(self) -> float:
        """Report what time alone makes a leak; the seconds until the next look."""
        return min(self.report_overdue(), self.report_pinned())

    def cannot_open(self, error: Exception) -> StartupError:
        """Why not, in one line, with the password masked."""
        return StartupError(startup_problem(self.url, error))

    def cannot_prepare(self, error: DBAPIError) -> StartupError | None:
        """Why the application could not be prepared, if it is the database's fault, and not the application's."""
        if not is_temporary(error):
            return None
        return StartupError(startup_problem(self.url, error, "cannot prepare"))

    def opened(self, started: float) -> None:
        """Tell that the pool is open."""
        status = self.status
        seconds = round(self._clock() - started, 6)
        self.events.emit(PoolOpened(self.url.masked, status.pool_size, self.policy.max_overflow, status.idle, seconds))

    def tell_outstanding(self) -> tuple[list[Checkout], tuple[Holding, ...]]:
        """Name every connection that is still out."""
        self.events.emit(PoolClosing(self.status))
        now = self._clock()
        checkouts = self.outstanding()
        holdings = tuple(self.tracker.describe(checkout, now) for checkout in checkouts)
        if holdings:
            self.events.emit(NotReturned(len(holdings)))
        for number, holding in enumerate(holdings, 1):
            self.events.emit(Outstanding(number, holding))
        return checkouts, holdings


def _idles_in_transaction(driver: Any) -> bool:
    return in_transaction(driver) is True and not is_executing(driver)
