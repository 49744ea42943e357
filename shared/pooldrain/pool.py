"""The closable pools, and the SQLAlchemy event hooks that feed the ledger.

What SQLAlchemy's pools do at a shutdown, and these do not: `dispose()` closes only what is checked in and
at once opens a fresh pool, so late checkouts succeed and blocked waiters sleep out their timeout, then open
a *new* connection; and the counts go negative. Here, once closed:
1. a checkout raises PoolClosed at once, and waiters are woken with it;
2. a connection that comes back is closed, not pooled;
3. `recreate()` (what `Engine.dispose()` calls) gives a pool that is closed as well;
4. the counts stay true.

This module patches internals of SQLAlchemy 2.1's QueuePool (`_do_get`, `_return_conn`, `_do_return_conn`,
`_close_connection`, `_queue_class`) and reads those of its records (`fairy_ref`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import sqlalchemy
import sqlalchemy.exc
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.pool import (
    AsyncAdaptedQueuePool,
    ConnectionPoolEntry,
    PoolProxiedConnection,
    QueuePool,
)
from sqlalchemy.pool.base import _ConnectionFairy
from sqlalchemy.util import await_only
from sqlalchemy.util import queue as sqla_queue

from pooldrain.errors import PoolClosed
from pooldrain.gate import InFlightRequest
from pooldrain.ledger import Checkout, CheckoutLedger, Holding, Leak, describe
from pooldrain.policy import PoolPolicy
from pooldrain.stacks import StackWalker, call_sites
from pooldrain.status import PoolStatus
from pooldrain.transcript import (
    CheckedIn,
    CheckedOut,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    LeakFound,
    LeakReturned,
    NotReturned,
    Outstanding,
    PoolClosing,
    PoolOpened,
)

# Characters kept of the last statement: it is shown to people, not replayed.
STATEMENT_KEPT = 400


class QueueClosed(Exception):
    """The queue is closed; a getter may have `waited` for it. Never leaves this module."""

    def __init__(self, *, waited: bool) -> None:
        super().__init__()
        self.waited = waited


class ClosableQueue(sqla_queue.Queue[ConnectionPoolEntry]):
    """SQLAlchemy's thread queue, with a `close` that wakes every getter.

    A pool never waits to put, so nobody is told of free room; that pays for what the ledger costs.
    """

    closed = False
    _waiting = 0

    def put(self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None) -> None:
        """Put without waiting; raises Full."""
        with self.mutex:  # re-entrant: a garbage collection may return a leaked connection at any point
            if 0 < self.maxsize <= len(self.queue):
                raise sqla_queue.Full
            self.queue.append(item)
            if self._waiting:
                self.not_empty.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        """As in SQLAlchemy; raises QueueClosed once closed."""
        with self.mutex:
            if self.closed:
                raise QueueClosed(waited=False)
            if not self.queue:
                if not block:
                    raise sqla_queue.Empty
                self._wait(timeout)
            return self.queue.pop() if self.use_lifo else self.queue.popleft()

    def _wait(self, timeout: float | None) -> None:
        """Wait, with the mutex held, for an item; raises Empty or QueueClosed."""
        self._waiting += 1
        try:
            arrived = self.not_empty.wait_for(lambda: self.closed or self.queue, timeout)
        finally:
            self._waiting -= 1
        if self.closed:
            raise QueueClosed(waited=True)
        if not arrived:
            raise sqla_queue.Empty

    def take(self) -> ConnectionPoolEntry | None:
        """An item, from a closed queue too; None when there is none."""
        with self.mutex:
            return self.queue.popleft() if self.queue else None

    def close(self) -> None:
        """Wake every getter; from now on none gets anything."""
        with self.mutex:
            self.closed = True
            self.not_empty.notify_all()

    def items(self) -> list[ConnectionPoolEntry]:
        """What is in the queue."""
        with self.mutex:
            return list(self.queue)


class ClosableAsyncQueue(sqla_queue.QueueCommon[ConnectionPoolEntry]):
    """The same for asyncio, on one event loop.

    Getters wait on futures, so that `close` can wake them on every Python we support (`asyncio.Queue.shutdown`
    is new in 3.13).
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self.closed = False
        self._items: deque[ConnectionPoolEntry] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()

    def empty(self) -> bool:
        """Whether there is nothing to get."""
        return not self._items

    def full(self) -> bool:
        """Whether there is no room."""
        return 0 < self.maxsize <= len(self._items)

    def qsize(self) -> int:
        """How many items there are."""
        return len(self._items)

    def put_nowait(self, item: ConnectionPoolEntry) -> None:
        """Put without waiting; raises Full."""
        if self.full():
            raise sqla_queue.Full
        self._items.append(item)
        if self._getters:
            self._wake_one_from_anywhere()

    def put(self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None) -> None:
        """The pool never waits to put."""
        self.put_nowait(item)

    def get_nowait(self) -> ConnectionPoolEntry:
        """Get without waiting; raises Empty."""
        if not self._items:
            raise sqla_queue.Empty
        return self._items.pop() if self.use_lifo else self._items.popleft()

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        """As in SQLAlchemy (inside its greenlet); raises QueueClosed once closed."""
        if self.closed:
            raise QueueClosed(waited=False)
        if self._items or not block:
            return self.get_nowait()
        return await_only(self._wait(timeout))

    async def _wait(self, timeout: float | None) -> ConnectionPoolEntry:
        try:
            async with asyncio.timeout(timeout):
                while not self._items:
                    getter = asyncio.get_running_loop().create_future()
                    self._getters.append(getter)
                    try:
                        await getter
                    except asyncio.CancelledError:
                        if getter.cancelled():
                            with contextlib.suppress(ValueError):  # it was woken in the same turn
                                self._getters.remove(getter)
                        elif self._items:
                            self._wake_one()  # the wake-up was ours, the item is not: pass it on
                        raise
                    if self.closed:
                        raise QueueClosed(waited=True)
        except TimeoutError:
            raise sqla_queue.Empty from None
        return self.get_nowait()

    def take(self) -> ConnectionPoolEntry | None:
        """An item, from a closed queue too; None when there is none."""
        return self._items.popleft() if self._items else None

    def _wake_one_from_anywhere(self) -> None:
        loop = self._getters[0].get_loop()
        if asyncio._get_running_loop() is loop:
            self._wake_one()
        else:  # a garbage collection in another thread returns a leaked connection
            loop.call_soon_threadsafe(self._wake_one)

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                break

    def close(self) -> None:
        """Wake every getter; from now on none gets anything."""
        self.closed = True
        while self._getters:
            self._wake_one()

    def items(self) -> list[ConnectionPoolEntry]:
        """What is in the queue."""
        return list(self._items)


class _Lifetime:
    """What the generations of a pool share: `Engine.dispose()` replaces the pool object, not the pool."""

    def __init__(self) -> None:
        self.closed = False
        self.tracker: PoolTracker | None = None
        self.generations: weakref.WeakSet[ClosablePool] = weakref.WeakSet()


class ClosablePool(QueuePool):
    """QueuePool with the four properties at the head of this module. Use one of the two classes below."""

    _sqla_logger_namespace = "sqlalchemy.pool.pooldrain"  # SQLAlchemy's records stay with SQLAlchemy's loggers
    _pool: ClosableQueue | ClosableAsyncQueue

    def __init__(self, *args: Any, lifetime: _Lifetime | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lifetime = lifetime or _Lifetime()
        self._pools_returned = True  # whether what comes back is kept
        self._lifetime.generations.add(self)
        if self._lifetime.closed:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether checkouts are refused."""
        return self._lifetime.closed

    def track(self, tracker: PoolTracker) -> None:
        """Tell `tracker` of every checkout and checkin, in this generation and those to come."""
        self._lifetime.tracker = tracker

    def close(self) -> None:
        """Refuse checkouts from now on and wake who waits for one. Closes no connection."""
        self._lifetime.closed = True
        for pool in list(self._lifetime.generations):
            pool._pools_returned = False
            pool._pool.close()

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out. Raises PoolClosed once closed."""
        proxy = _ConnectionFairy._checkout(self)
        if (tracker := self._lifetime.tracker) is not None:
            tracker.checked_out(proxy)
        if self._lifetime.closed:  # while the connection was being opened or tested; asked last, so that none slips by
            proxy.close()
            raise self._pool_closed(waiting=True)
        return proxy

    def take_idle(self) -> ConnectionPoolEntry | None:
        """One idle record, taken out of the pool to be discarded; None when there is none."""
        return self._pool.take()

    def discard(self, record: ConnectionPoolEntry) -> None:
        """Close a record's connection and forget it. Raises what the driver raises."""
        try:
            record.close()
        finally:
            self._dec_overflow()

    def numbers(self) -> PoolStatus:
        """The pool's numbers, true at every time."""
        return PoolStatus(
            pool_size=self.size(),
            checkedout=self.checkedout(),
            overflow=max(0, self.overflow()),
            idle=sum(record.dbapi_connection is not None for record in self._pool.items()),
        )

    def dispose(self) -> None:
        """Close every idle connection; as SQLAlchemy's, but with counts that stay true."""
        self._pools_returned = False
        while (record := self.take_idle()) is not None:
            self.discard(record)

    def recreate(self) -> ClosablePool:
        """A fresh pool of the same lifetime: closed if this one is."""
        return type(self)(
            self._creator,
            pool_size=self._pool.maxsize,
            max_overflow=self._max_overflow,
            pre_ping=self._pre_ping,
            use_lifo=self._pool.use_lifo,
            timeout=self._timeout,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
            lifetime=self._lifetime,
        )

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return QueuePool._do_get(self)
        except QueueClosed as closed:
            raise self._pool_closed(waiting=closed.waited) from None

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        QueuePool._close_connection(self, connection, terminate=terminate)
        if (tracker := self._lifetime.tracker) is not None:
            tracker.closed_one(connection)  # not by the event, which comes before a close that may hang

    def _return_conn(self, record: ConnectionPoolEntry) -> None:
        if (tracker := self._lifetime.tracker) is not None:
            tracker.checked_in(record)
        self._do_return_conn(record)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._pools_returned:
            QueuePool._do_return_conn(self, record)
        else:
            self.discard(record)

    def _pool_closed(self, *, waiting: bool) -> PoolClosed:
        return PoolClosed(pool_size=self.size(), checkedout=self.checkedout(), waiting=waiting)


class ClosableQueuePool(ClosablePool):
    """For threads."""

    _queue_class = ClosableQueue


class ClosableAsyncQueuePool(ClosablePool, AsyncAdaptedQueuePool):
    """For asyncio, under SQLAlchemy's greenlet."""

    _queue_class = ClosableAsyncQueue


class EventSink(Protocol):
    """Where events go. `detailed`: whether events of single checkouts are wanted at all."""

    detailed: bool

    def emit(self, event: Event) -> None:
        """Take one event."""


# Not the user's lines; contextlib is what `engine.begin()` is made with.
_OWN = (
    *(f"{Path(module.__file__ or '').parent}{os.sep}" for module in (sqlalchemy, sys.modules["pooldrain"])),
    "<sqlalchemy generated",  # the decorators of its ORM sessions
    contextlib.__file__,
)


def silence_collected_warning() -> None:
    """Keep SQLAlchemy from warning, twice, of what the `collected` rule reports by name."""
    message = "The garbage collector is trying to clean up non-checked-in connection"
    warnings.filterwarnings("ignore", message, sqlalchemy.exc.SAWarning)
    logger = logging.getLogger(ClosablePool._sqla_logger_namespace)
    logger.addFilter(lambda record: not str(record.msg).startswith(message))


class PoolTracker:
    """Listens to a pool's events and keeps the ledger.

    The shells pass what differs between their colours: `lock` (what guards the ledger), `clock` (monotonic
    seconds), `frame` (the innermost frame to look for the caller in; None: where the checkout is called),
    `worker` (what runs the caller) and `discard` (closes a connection that the garbage collector found).

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
        frame: Callable[[], FrameType | None] | None = None,
        worker: Callable[[], object] | None = None,
        discard: Callable[[ConnectionPoolEntry, Any], None],
    ) -> None:
        self.ledger = ledger
        self.opened = 0
        self.closed = 0
        self._open: set[int] = set()  # identities of the open connections: each closing counts once
        self._events = events
        self._lock = lock
        self._clock = clock
        self._frame = frame
        self._worker = worker
        self._discard = discard
        self._walker = StackWalker((*_OWN, *skip))

    def listen(self, engine: sqlalchemy.Engine) -> None:
        """Attach to the engine and its pool (and to the pools that `dispose` puts in its place)."""
        assert isinstance(engine.pool, ClosablePool), "an engine made with poolclass=Closable…QueuePool"
        engine.pool.track(self)
        event.listen(engine.pool, "connect", self._connected)
        event.listen(engine.pool, "detach", self._detached)
        event.listen(engine, "before_cursor_execute", self._executing)

    def describe(self, checkout: Checkout, now: float) -> Holding:
        """`checkout` in words, asking the driver whether it is in a transaction."""
        return describe(checkout, now, in_transaction(driver_connection(checkout)))

    def report(self, leaks: list[Leak]) -> None:
        """Log each leak by name."""
        now = self._clock()
        for leak in leaks:
            if leak.checkout is not None:
                self._events.emit(LeakFound(leak.rule.value, self.describe(leak.checkout, now)))

    def _connected(self, connection: Any, record: ConnectionPoolEntry) -> None:
        with self._lock:
            self.opened += 1
            self._open.add(id(connection))
            if self._events.detailed:
                self._events.emit(ConnectionOpened())

    def closed_one(self, connection: Any) -> None:
        """A connection is closed, or was ended from outside (its socket shut down); counts once."""
        with self._lock:
            if id(connection) in self._open:
                self._open.remove(id(connection))
                self.closed += 1
                if self._events.detailed:
                    self._events.emit(ConnectionClosed())

    def checked_out(self, proxy: _ConnectionFairy) -> None:
        """A connection has left the pool."""
        record = proxy._connection_record
        assert record is not None
        stack = self._walker.capture(sys._getframe(1) if self._frame is None else self._frame())
        worker = None if self._worker is None else self._worker()
        with self._lock:
            checkout = self.ledger.check_out(record, self._clock(), stack, worker, record.fairy_ref)
            if self._events.detailed:
                sites = call_sites(stack)
                self._events.emit(CheckedOut(checkout.holder, checkout.request_id, str(sites[0]) if sites else ""))

    def checked_in(self, record: ConnectionPoolEntry) -> None:
        """A connection is coming back."""
        with self._lock:
            checkout = self.ledger.check_in(record)
            if checkout is None:  # a checkout that failed half-way
                return
            connection = record.dbapi_connection
            if checked_out_proxy(checkout) is not None:
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
            self._events.emit(CheckedIn(checkout.holder, checkout.request_id, round(now - checkout.since, 6)))

    def _detached(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """A connection left the pool for good: by the user's `detach()`, or (asyncio) by garbage collection."""
        with self._lock:
            holder = self.ledger.outstanding.get(record)
            proxy = None if holder is None else checked_out_proxy(holder)
            if proxy is not None and proxy.dbapi_connection is not connection:
                return  # the record has been checked out again meanwhile
            checkout = self.ledger.check_in(record)
            if checkout is None or proxy is not None:
                return
            self._collected(checkout)
        self._discard(record, connection)

    def _collected(self, checkout: Checkout) -> None:
        # SQLAlchemy would silently pool it again (threads) or drop it half-open (asyncio); both colours discard it.
        now = self._clock()
        leak = self.ledger.collected(checkout, now)
        # Its transaction cannot be told any more: the threads' pool has rolled back, asyncio's has let go of it.
        self._events.emit(LeakFound(leak.rule.value, describe(checkout, now)))

    def _executing(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        proxy = connection.connection
        record = getattr(proxy, "_connection_record", None)
        checkout = self.ledger.outstanding.get(record)
        if checkout is not None:
            checkout.statement = statement[:STATEMENT_KEPT]


class TrackedPool:
    """What both shells' pool managers are made of: the ledger's books in words, without a colour."""

    ledger: CheckoutLedger
    tracker: PoolTracker
    events: EventSink
    policy: PoolPolicy

    def __init__(self, lock: AbstractContextManager[Any], clock: Callable[[], float]) -> None:
        self._lock = lock
        self._clock = clock

    @property
    def pool(self) -> ClosablePool:
        """The pool of this moment (`Engine.dispose()` replaces it)."""
        raise NotImplementedError

    @property
    def status(self) -> PoolStatus:
        """The pool's numbers."""
        return self.pool.numbers()

    def close(self) -> None:
        """Refuse checkouts from now on, and wake who waits for one. Closes no connection."""
        self.pool.close()

    def outstanding(self) -> list[Checkout]:
        """Every connection that is checked out, oldest first."""
        with self._lock:
            return list(self.ledger.outstanding.values())

    def holdings(self) -> tuple[Holding, ...]:
        """The same in words."""
        now = self._clock()
        return tuple(self.tracker.describe(checkout, now) for checkout in self.outstanding())

    def drivers(self, requests: Iterable[InFlightRequest]) -> list[Any]:
        """The drivers' connections that these requests hold from this pool."""
        with self._lock:
            mine = self.ledger.outstanding
            held = [c for request in requests for c in request.checkouts if mine.get(c.key) is c]
        return [driver for checkout in held if (driver := driver_connection(checkout)) is not None]

    def report_overdue(self) -> float:
        """Report what has become overdue; the seconds until something else can."""
        age = self.ledger.policy.leak_age
        assert age is not None, "the overdue rule is off"
        with self._lock:
            now = self._clock()
            leaks = self.ledger.overdue(now)
            due = self.ledger.next_overdue()
        self.tracker.report(leaks)
        return max(0.001, age if due is None else due - now)

    def opened(self, url: str, started: float) -> None:
        """Tell that the pool is open."""
        status = self.status
        seconds = round(self._clock() - started, 6)
        self.events.emit(PoolOpened(url, status.pool_size, self.policy.max_overflow, status.idle, seconds))

    def tell_outstanding(self) -> tuple[list[Checkout], tuple[Holding, ...]]:
        """Refuse checkouts from now on, and name every connection that is still out."""
        self.pool.close()
        self.events.emit(PoolClosing(self.status))
        now = self._clock()
        checkouts = self.outstanding()
        holdings = tuple(self.tracker.describe(checkout, now) for checkout in checkouts)
        if holdings:
            self.events.emit(NotReturned(len(holdings)))
        for number, holding in enumerate(holdings, 1):
            self.events.emit(Outstanding(number, holding))
        return checkouts, holdings


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
    reference = checkout.proxy
    proxy = reference() if isinstance(reference, weakref.ref) else None
    return proxy if isinstance(proxy, PoolProxiedConnection) else None


def in_transaction(driver_connection: Any) -> bool | None:
    """Whether a driver's connection is in a transaction: psycopg (both colours), sqlite3; None if it cannot tell."""
    if driver_connection is None:
        return None
    info = getattr(driver_connection, "info", None)
    if info is not None:
        return bool(info.transaction_status.value != 0)  # libpq: PQTRANS_IDLE is 0
    open_transaction = getattr(driver_connection, "in_transaction", None)
    return None if open_transaction is None else bool(open_transaction)
