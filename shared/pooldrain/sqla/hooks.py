"""The hooks into SQLAlchemy: what keeps the ledger, by the pool's checkouts and checkins and by SQLAlchemy's events."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
import weakref
from bisect import bisect_left
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import sqlalchemy
import sqlalchemy.exc
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.pool import (
    ConnectionPoolEntry,
    PoolProxiedConnection,
)
from sqlalchemy.pool.base import _ConnectionRecord

from pooldrain.in_flight import Checkout
from pooldrain.ledger import MAIN_POOL, CheckoutLedger, Holding, Leak, describe, who_holds
from pooldrain.meter import BOUNDS, PoolMeter
from pooldrain.printable import printable
from pooldrain.sqla.drivers import in_transaction
from pooldrain.sqla.errors import note_failure
from pooldrain.sqla.loops import note_loop
from pooldrain.sqla.pool import Closable, ClosablePool
from pooldrain.stacks import RawStack, StackWalker, call_sites
from pooldrain.status import PoolStatus
from pooldrain.transcript import (
    CheckedIn,
    CheckedOut,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionsRefused,
    Event,
    LeakFound,
    LeakReturned,
    PoolExhausted,
    ThresholdReached,
)

# Characters kept of the last statement: it is shown to people, not replayed.
STATEMENT_KEPT = 400


# Seconds for which the pool's exhaustion is not told again.
EXHAUSTED_TOLD = 1.0


class EventSink(Protocol):
    """Where events go. `detailed`: whether events of single checkouts are wanted at all."""

    detailed: bool

    def emit(self, event: Event) -> None:
        """Take one event."""


# Not the user's lines; contextlib is what `engine.begin()` is made with.
_OWN = (
    *(f"{Path(module.__file__ or '').parent}{os.sep}" for module in (sqlalchemy, sys.modules["pooldrain"])),
    # The decorators of its ORM sessions; before 2.1 their code says only that it was a string.
    "<sqlalchemy generated" if sqlalchemy.__version__ >= "2.1" else "<string>",
    contextlib.__file__,
)


_COLLECTED_WARNING = "The garbage collector is trying to clean up non-checked-in connection"


def _is_no_collected_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_COLLECTED_WARNING)


def silence_collected_warning(logger: str = ClosablePool._sqla_logger_namespace) -> None:
    """Keep SQLAlchemy from warning, twice, of what the `collected` rule reports by name. `logger`: the pool's."""
    warnings.filterwarnings("ignore", _COLLECTED_WARNING, sqlalchemy.exc.SAWarning)
    logging.getLogger(logger).addFilter(_is_no_collected_warning)  # the same each time: it is added once


class PoolTracker:
    """Listens to a pool's events and keeps the ledger.

    `lock` guards the ledger, `clock` gives monotonic seconds, `skip` has files and folders that are no caller's.
    `pool` is the pool's name.

    Checkouts and checkins come straight from the pool, the rest by SQLAlchemy's events, which cost more.
    """

    def __init__(
        self,
        ledger: CheckoutLedger,
        events: EventSink,
        *,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
        skip: tuple[str, ...] = (),
        pool: str = MAIN_POOL,
    ) -> None:
        self.ledger = ledger
        self.pool = pool
        self.returned_locked: Callable[[], None] | None = None  # called when a connection that no request owns is back
        self.opened = 0
        self.closed = 0
        self.meter = PoolMeter()
        self._tell_exhausted_at = self._tell_refused_at = 0.0  # monotonic seconds
        # By the connection's identity, so that each closing counts once. Not kept alive: an engine may be collected.
        self._open: dict[int, weakref.ref[ConnectionPoolEntry]] = {}
        self._events = events
        self._lock = lock
        self._clock = clock
        self._pool_class: type[Closable] = ClosablePool
        self._on_loop = False  # whether its connections belong to an event loop
        self._shares = False  # whether a connection can be checked out while it is
        self.walker = StackWalker((*_OWN, *skip))

    def listen(self, engine: sqlalchemy.Engine) -> None:
        """Attach to the engine and its pool (and to the pools that `dispose` puts in its place)."""
        assert isinstance(engine.pool, Closable), "an engine made with poolclass=Closable…QueuePool, or adopted"
        self._pool_class = type(engine.pool)
        self._shares = not isinstance(engine.pool, ClosablePool)
        self._on_loop = engine.dialect.is_async
        engine.pool.track(self)
        event.listen(engine.pool, "connect", self._connected)
        event.listen(engine.pool, "detach", self._detached)
        self.listen_to_statements(engine)

    def listen_to_statements(self, engine: sqlalchemy.Engine) -> None:
        """Attach to the engine alone: another one on the same pool."""
        # Not before_cursor_execute: one listener to an engine's own events slows down every step of a connection.
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.listen(engine, name, self._executing, insert=True)
        event.listen(engine, "handle_error", note_failure)

    def describe(self, checkout: Checkout, now: float) -> Holding:
        """`checkout` in words, asking the driver whether it is in a transaction."""
        return describe(checkout, now, in_transaction(driver_connection(checkout)), self.pool)

    def open_records(self) -> list[ConnectionPoolEntry]:
        """The record of every open connection."""
        with self._lock:
            return [record for reference in self._open.values() if (record := reference()) is not None]

    def idle_records(self) -> list[ConnectionPoolEntry]:
        """The records of the connections that are open and not checked out."""
        with self._lock:
            return [record for record in self.open_records() if record not in self.ledger.outstanding]

    def books(self) -> tuple[int, int]:
        """How many connections are open, and how many of them checked out."""
        return len(self._open), len(self.ledger.outstanding)

    def timed_out(self, numbers: PoolStatus, waiting: int) -> tuple[str, ...]:
        """Somebody has waited for a connection in vain: tell, once in EXHAUSTED_TOLD seconds; who has them all."""
        with self._lock:
            self.meter.timeouts += 1
            now = self._clock()
            holders = who_holds(self.ledger.outstanding.values(), now)
            if now >= self._tell_exhausted_at:
                self._tell_exhausted_at = now + EXHAUSTED_TOLD
                event = PoolExhausted(
                    numbers.pool_size, numbers.overflow, numbers.checkedout, waiting, holders, self.pool
                )
                self._events.emit(event)
        return holders

    def refused(self, numbers: PoolStatus, error: Exception) -> None:
        """The server has no room for another connection: tell, once in EXHAUSTED_TOLD seconds."""
        with self._lock:
            now = self._clock()
            if now >= self._tell_refused_at:
                self._tell_refused_at = now + EXHAUSTED_TOLD
                reason = printable(" ".join(str(error).split()))
                event = ConnectionsRefused(numbers.pool_size, numbers.overflow, numbers.checkedout, reason, self.pool)
                self._events.emit(event)

    def forget(self) -> list[Any]:
        """In a forked child: empty the books, and let go of the parent's connections; returns all there is of them."""
        parents: list[Any] = []
        for record in self.open_records():
            assert isinstance(record, _ConnectionRecord), "the only records that there are"
            proxy = None if record.fairy_ref is None else record.fairy_ref()
            parents += [record, record.dbapi_connection, proxy]
            if proxy is not None:
                proxy.dbapi_connection = None  # type: ignore[assignment]  # no longer valid: closing it does nothing
                vars(proxy)["cursor"] = _belongs_to_parent
            record.dbapi_connection = record.fairy_ref = None
        self._open.clear()
        self.opened = self.closed = 0
        self.meter = PoolMeter()
        self.ledger.forget()
        return parents

    def report(self, leaks: list[Leak]) -> None:
        """Log each leak by name; and, with the last, that so many are out that the coarse rule applies."""
        if not leaks:
            return
        now = self._clock()
        described = [
            (leak.rule.value, self.describe(leak.checkout, now)) for leak in leaks if leak.checkout is not None
        ]
        with self._lock:
            for rule, holding in described:
                self._events.emit(LeakFound(rule, holding))
            if self.ledger.threshold_crossed() is not None:
                threshold = self.ledger.policy.leak_threshold
                self._events.emit(ThresholdReached(len(self.ledger.outstanding), threshold, self.pool))

    def _connected(self, connection: Any, record: ConnectionPoolEntry) -> None:
        with self._lock:
            self.opened += 1
            self._open[id(connection)] = weakref.ref(record, partial(self._vanished, id(connection)))
            if self._events.detailed:
                self._events.emit(ConnectionOpened(self.pool))
        if self._on_loop:
            note_loop(record)

    def _vanished(self, identity: int, reference: object) -> None:
        """A record was collected with its engine, and its connection with it."""
        with self._lock:
            if self._open.get(identity) is reference:
                self._closed(identity)

    def closed_one(self, connection: Any) -> None:
        """A connection is closed, or was ended from outside (its socket shut down); counts once."""
        with self._lock:
            self._closed(id(connection))

    def _closed(self, identity: int) -> None:
        if self._open.pop(identity, None) is not None:
            self.closed += 1
            if self._events.detailed:
                self._events.emit(ConnectionClosed(self.pool))

    def connected(self, seconds: float) -> None:
        """A connection was opened, which took so long."""
        with self._lock:
            self.meter.connect.observe(seconds)

    def checked_out(self, proxy: PoolProxiedConnection, caller: RawStack, worker: object, asked: float) -> None:
        """A connection has left the pool."""
        record: Any = proxy._connection_record
        with self._lock:
            if self._shares and record in self.ledger.outstanding:
                return  # SQLAlchemy tells of the first return only
            now = self._clock()
            wait, seconds = self.meter.wait, now - asked
            wait.counts[bisect_left(BOUNDS, seconds)] += 1  # as `observe` does, whose call would cost as much again
            wait.sum += seconds
            checkout = self.ledger.check_out(record, now, caller, worker, record.fairy_ref)
            if self._events.detailed:
                sites = call_sites(caller)
                site = str(sites[0]) if sites else ""
                self._events.emit(CheckedOut(checkout.holder, checkout.request_id, site, self.pool))

    def checked_in(self, record: ConnectionPoolEntry) -> None:
        """A connection is coming back."""
        with self._lock:
            checkout = self.ledger.check_in(record)
            if checkout is None:  # a checkout that failed half-way
                return
            use, seconds = self.meter.use, self._clock() - checkout.since
            use.counts[bisect_left(BOUNDS, seconds)] += 1
            use.sum += seconds
            if checkout.request is None and self.returned_locked is not None:
                self.returned_locked()
            connection = record.dbapi_connection
            if checkout.proxy() is not None:
                if checkout.rule is not None or self._events.detailed:
                    self._tell_returned(checkout, connection)
                return
            self._collected(checkout)
        if connection is not None:
            self._discard(record, connection)

    def _tell_returned(self, checkout: Checkout, connection: Any) -> None:
        now = self._clock()
        if checkout.rule is not None and connection is not None:  # not if it is we who closed it
            self._events.emit(LeakReturned(checkout.rule.value, self.describe(checkout, now)))
        if self._events.detailed:
            seconds = round(now - checkout.since, 6)
            self._events.emit(CheckedIn(checkout.holder, checkout.request_id, seconds, self.pool))

    def _detached(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """A connection left the pool for good: by the user's `detach()`, or (asyncio) by garbage collection."""
        with self._lock:
            holder = self.ledger.outstanding.get(record)
            proxy = None if holder is None else checked_out_proxy(holder)
            if proxy is not None and proxy.dbapi_connection is not connection:
                return  # the record has been checked out again meanwhile
            checkout = self.ledger.check_in(record)
            if checkout is not None:
                self.meter.use.observe(self._clock() - checkout.since)
            if checkout is None or proxy is not None:
                return
            self._collected(checkout)
        self._discard(record, connection)

    def _discard(self, record: ConnectionPoolEntry, connection: Any) -> None:
        if self._pool_class.discard_collected(record, connection):
            self.closed_one(connection)

    def _collected(self, checkout: Checkout) -> None:
        # SQLAlchemy would silently pool it again (threads) or drop it half-open (asyncio); both colours discard it.
        now = self._clock()
        leak = self.ledger.collected(checkout, now)
        # Its transaction cannot be told any more: the threads' pool has rolled back, asyncio's has let go of it.
        self._events.emit(LeakFound(leak.rule.value, describe(checkout, now, pool=self.pool)))

    def _executing(self, _cursor: Any, statement: str, *parameters_and_context: Any) -> None:
        connection: Connection = parameters_and_context[-1].root_connection
        record = getattr(connection.connection, "_connection_record", None)
        checkout = self.ledger.outstanding.get(record)
        if checkout is not None:
            checkout.statement = statement[:STATEMENT_KEPT]
            checkout.runs += 1
            checkout.streams = bool(parameters_and_context[-1].execution_options.get("stream_results"))


def _belongs_to_parent(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("a connection that was checked out before a fork belongs to the parent process")


def driver_connection(checkout: Checkout) -> Any:
    """The driver's connection of a checkout; None once it is closed."""
    record = checkout.key
    return record.driver_connection if isinstance(record, ConnectionPoolEntry) else None


def dbapi_connection(checkout: Checkout) -> Any:
    """SQLAlchemy's connection of a checkout; None once it is closed."""
    record = checkout.key
    return record.dbapi_connection if isinstance(record, ConnectionPoolEntry) else None


def checked_out_proxy(checkout: Checkout) -> PoolProxiedConnection | None:
    """What the holder holds; None once it was garbage collected."""
    proxy = checkout.proxy()
    return proxy if isinstance(proxy, PoolProxiedConnection) else None
