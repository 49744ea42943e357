"""One engine with its closable pool and its ledger; and what is done from outside to those of a service that stops."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from pooldrain.budget import shortage
from pooldrain.errors import StartupError
from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.ledger import PINNED_LOOK, CheckoutLedger, Holding
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.snapshot import LISTED, EngineCounters, EngineStatus, checkout_status
from pooldrain.sqla import forks
from pooldrain.sqla.connect_options import connect_options, fill_in_options
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
from pooldrain.sqla.pool import Closable, let_go
from pooldrain.sqla.pooler import PREPARING, Pooler
from pooldrain.sqla.room import room_from
from pooldrain.sqla.waits import tell_of_database
from pooldrain.status import PoolStatus
from pooldrain.transcript import NotReturned, Outstanding, PoolClosing, PoolOpened

logger = logging.getLogger("pooldrain")


class TrackedPool:
    """One engine with a closable pool, and the ledger of its checkouts: the half that has no colour.

    `name` tells it from the others of its service, `skip` has files that are no caller's. `lock` guards the ledger and
    the gate alike, so that a request's end and its checkouts are seen together; on asyncio, too, for a garbage
    collection, and with it the return of a leaked connection, may happen in any thread. `clock`: monotonic seconds.
    `adopted`: the engine is the application's own, keeps its settings, and may go before its service does.
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
        adopted: bool = False,
    ) -> None:
        assert isinstance(engine.pool, Closable), "made with a closable pool, or adopted"
        self._engine: Callable[[], sqlalchemy.Engine | None] = weakref.ref(engine) if adopted else lambda: engine
        self.lifetime = engine.pool.lifetime
        self.lifetime.untested, self.lifetime.clock = policy.pre_ping_idle, clock
        self.on_loop = engine.dialect.is_async  # whether its connections belong to an event loop
        self.adopted = adopted
        self.processes = 1  # that have such a pool
        self.name = name
        self.url = url
        self.policy = policy
        self.events = events
        self.service = service
        self.lock = lock
        self._clock = clock
        self._look_again_at = 0.0  # monotonic seconds
        self.ledger = CheckoutLedger(leaks)
        self.tracker = PoolTracker(self.ledger, events, lock=lock, clock=clock, skip=skip, pool=name)
        self.tracker.listen(engine)
        tell_of_database(engine)
        self.pooler = Pooler(policy.pooler, name, policy.connect_timeout)
        if adopted:
            event.listen(engine, "do_connect", fill_in_options(engine, policy, service))
            if engine.dialect.name == "postgresql" and engine.dialect.driver in PREPARING:
                event.listen(engine, "connect", self.pooler.look_at)
        else:
            event.listen(engine, "do_connect", connect_options(url, policy, service, self.pooler))
        forks.protect(self)

    @property
    def sync_engine(self) -> sqlalchemy.Engine:
        """The engine. Raises LookupError if it was the application's, and is gone."""
        engine = self._engine()
        if engine is None:
            raise LookupError(f"the engine {self.name} is gone")
        return engine

    @property
    def pool(self) -> Closable:
        """The pool of this moment (`Engine.dispose()` replaces it). Raises LookupError if it is gone."""
        engine = self._engine()
        pool = next(iter(self.lifetime.generations), None) if engine is None else engine.pool
        if not isinstance(pool, Closable):
            raise LookupError(f"the pool of {self.name} is gone")
        return pool

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it but its counts."""
        if self._engine() is not None or self.lifetime.generations:
            return False
        return self.tracker.opened == self.tracker.closed and not self.ledger.outstanding

    @property
    def status(self) -> PoolStatus:
        """The pool's numbers."""
        try:
            return self.pool.numbers()
        except LookupError:
            return PoolStatus(pool_size=0, checkedout=0, overflow=0, idle=0)

    def close(self) -> None:
        """Refuse checkouts from now on, and wake who waits for one. Closes no connection."""
        self.lifetime.close()

    def take_idle(self) -> tuple[ConnectionPoolEntry, Callable[[], None]] | None:
        """One idle record of any generation, and what closes it; None when there is none."""
        for pool in list(self.lifetime.generations):
            if (record := pool.take_idle()) is not None:
                return record, partial(pool.discard, record)
        return None

    def end_from_outside(self, record: ConnectionPoolEntry) -> None:
        """End a connection whose loop is gone, on which alone it could be closed."""
        connection, driver = record.dbapi_connection, record.driver_connection
        if connection is not None and shut_down_socket(driver):
            let_go(record)
            self.tracker.closed_one(connection)

    def forget(self) -> list[Any]:
        """In a forked child: start anew. Returns what must never be collected there."""
        engine = self._engine()
        pools = list(self.lifetime.generations)
        for pool in pools:
            pool.disown()
        if engine is not None:
            engine.dispose(close=False)
        return [*pools, *self.tracker.forget()]

    def outstanding(self) -> list[Checkout]:
        """Every connection that is checked out, oldest first."""
        with self.lock:
            return list(self.ledger.outstanding.values())

    def holdings(self) -> tuple[Holding, ...]:
        """The same in words."""
        now = self._clock()
        return tuple(self.tracker.describe(checkout, now) for checkout in self.outstanding())

    def seen(self) -> EngineStatus:
        """The pool's numbers of this moment and who has its connections, the oldest checkouts first."""
        numbers, most, waiting = self.status, None, 0
        with suppress(LookupError):
            most, waiting = self.pool.most, self.pool.waiting
        now = self._clock()
        checkouts = [self.tracker.describe(checkout, now) for checkout in self.outstanding()[:LISTED]]
        return {
            "name": self.name,
            "size": numbers.pool_size,
            "max": most,
            "used": numbers.checkedout,
            "idle": numbers.idle,
            "waiting": waiting,
            "checkouts": [checkout_status(holding) for holding in checkouts],
        }

    def counters(self) -> EngineCounters:
        """What happened in it so far."""
        with self.lock:
            meter = self.tracker.meter
            return {
                "name": self.name,
                "opened": self.tracker.opened,
                "closed": self.tracker.closed,
                "timeouts": meter.timeouts,
                "leaks": {rule.value: number for rule, number in self.ledger.counts.items()},
                "wait": meter.wait.data(),
                "use": meter.use.data(),
                "connect": meter.connect.data(),
            }

    def drivers(self, requests: Iterable[InFlightRequest], work: Iterable[Checkout] = ()) -> list[Any]:
        """The drivers' connections that these requests, and this work outside requests, hold from this pool."""
        with self.lock:
            mine = self.ledger.outstanding
            every = [*(c for request in requests for c in request.checkouts), *work]
            held = [c for c in every if mine.get(c.key) is c]
        return [driver for checkout in held if (driver := driver_connection(checkout)) is not None]

    def working(self) -> list[Checkout]:
        """The connections that are at work outside requests: named by their holders, or in a transaction.

        One whose driver cannot tell counts as in a transaction once it has run something, as SQLAlchemy begins one.
        """
        with self.lock:
            background = self.ledger.background()
        return [checkout for checkout in background if checkout.named or _works(checkout)]

    def still_out(self, checkouts: Iterable[Checkout]) -> bool:
        """Whether any of these has not been returned yet."""
        with self.lock:
            return any(self.ledger.outstanding.get(checkout.key) is checkout for checkout in checkouts)

    def in_transit(self) -> list[ConnectionPoolEntry]:
        """Open connections that are neither idle nor checked out: being tested, reset or closed by somebody."""
        idle = [record for pool in list(self.lifetime.generations) for record in pool.idle_records()]
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

    def cut_off(self, requests: Iterable[InFlightRequest], work: Iterable[Checkout] = ()) -> int:
        """End, from outside, the connections on which these wait for the database; how many there were.

        For a database that does not answer: no cancellation reaches it, and what waits for it has to unwind.
        """
        drivers = self.drivers(requests, work)
        return sum(shut_down_socket(driver) for driver in drivers if is_busy(driver) is not False)

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
        self.events.emit(
            PoolOpened(self.url.masked, status.pool_size, self.policy.max_overflow, status.idle, seconds, self.name)
        )

    def tell_shortage(self, limits: Sequence[Any] = (), others: Sequence[Sequence[Any]] = ()) -> None:
        """Warn if the database has no room for all that this service may open; see `room` for what was asked."""
        if not limits:
            return
        most = self.processes * (self.policy.pool_size + self.policy.max_overflow)
        if (short := shortage(most, room_from(limits[0], others))) is not None:
            logger.warning("%s %s", self.service, short)

    def tell_outstanding(self) -> tuple[list[Checkout], tuple[Holding, ...]]:
        """Name every connection that is still out."""
        self.events.emit(PoolClosing(self.status, self.name))
        now = self._clock()
        checkouts = self.outstanding()
        holdings = tuple(self.tracker.describe(checkout, now) for checkout in checkouts)
        if holdings:
            self.events.emit(NotReturned(len(holdings), self.name))
        for number, holding in enumerate(holdings, 1):
            self.events.emit(Outstanding(number, holding))
        return checkouts, holdings


class Adopted(TrackedPool):
    """The half without a colour of the pool of an engine, of either colour, that an application has made.

    To be mixed in front of a shell's pool. `own_files` are no caller's.
    """

    own_files: tuple[str, ...] = ()

    def __init__(
        self,
        engine: sqlalchemy.Engine,
        name: str,
        policy: PoolPolicy,
        leaks: LeakPolicy,
        events: EventSink,
        *,
        service: str,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
    ) -> None:
        TrackedPool.__init__(
            self,
            engine,
            name,
            url=DatabaseUrl.of_engine(engine.url),
            policy=policy,
            leaks=leaks,
            events=events,
            service=service,
            lock=lock,
            clock=clock,
            skip=self.own_files,
            adopted=True,
        )


def _works(checkout: Checkout) -> bool:
    open_transaction = in_transaction(driver_connection(checkout))
    return checkout.runs > 0 if open_transaction is None else open_transaction


def _idles_in_transaction(driver: Any) -> bool:
    return in_transaction(driver) is True and not is_executing(driver)
