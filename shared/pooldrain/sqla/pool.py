"""The closable pools: a layer over any pool of SQLAlchemy's, and the queue pools, whose waiters it can wake.

What SQLAlchemy's pools do at a shutdown, and these do not: `dispose()` closes only what is checked in and
at once opens a fresh pool, so late checkouts succeed and blocked waiters sleep out their timeout, then open
a *new* connection; and the counts go negative. Here, once closed:
1. a checkout raises PoolClosed at once, and waiters are woken with it;
2. a connection that comes back is closed, not pooled;
3. `recreate()` (what `Engine.dispose()` calls) gives a pool that is closed as well;
4. the counts stay true;
5. a request that was cancelled gets no connection any more, while the pool is still open to others.
And, open: where the server has no room for another connection, who wants one waits for one of those that there are.

This module patches internals of SQLAlchemy 2.1's QueuePool (`_do_get`, `_return_conn`, `_do_return_conn`,
`_close_connection`, `_should_wrap_creator`, `_queue_class`) and reads those of its records (`fairy_ref`).
"""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import queue as sqla_queue

from pooldrain.errors import PoolClosed
from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.ledger import CURRENT_HOLDER
from pooldrain.problems import DATABASE_UNAVAILABLE, POOL_CLOSED, POOL_EXHAUSTED, Failure
from pooldrain.sqla.drivers import has_news, is_busy, is_usable_here
from pooldrain.sqla.queues import ClosableAsyncQueue, ClosableQueue, QueueClosed
from pooldrain.sqla.refusals import PAUSE, refuses_more
from pooldrain.stacks import RawStack, StackWalker
from pooldrain.status import PoolStatus


class Tracker(Protocol):
    """Whom a pool tells of what leaves it and comes back."""

    @property
    def walker(self) -> StackWalker:
        """Finds who is checking out."""
        ...

    def checked_out(self, proxy: PoolProxiedConnection, caller: RawStack, worker: object, asked: float) -> None:
        """A connection has left the pool; `worker`: what runs its caller; `asked`: when it was asked for."""

    def connected(self, seconds: float) -> None:
        """A connection was opened, which took so long."""

    def checked_in(self, record: ConnectionPoolEntry) -> None:
        """A connection is coming back."""

    def closed_one(self, connection: Any) -> None:
        """A connection is closed."""

    def listen_to_statements(self, engine: Engine) -> None:
        """Another engine works on the same pool."""

    def books(self) -> tuple[int, int]:
        """How many connections are open, and how many of them checked out."""
        ...

    def idle_records(self) -> list[ConnectionPoolEntry]:
        """The records of the connections that are open and not checked out."""
        ...

    def timed_out(self, numbers: PoolStatus, waiting: int) -> tuple[str, ...]:
        """Somebody has waited in vain, `waiting` others still wait; who has the connections, in words."""
        ...

    def refused(self, numbers: PoolStatus, error: Exception) -> None:
        """The server has no room for another connection: somebody waits for one of ours."""


class PoolExhausted(PoolTimeout):
    """No connection became free in time. SQLAlchemy's error, with the pool's numbers and its holders."""

    def __init__(self, text: str, numbers: PoolStatus, waiting: int, holders: tuple[str, ...]) -> None:
        held = "; ".join(holders) or "nobody"
        super().__init__(f"{text} (checked out {numbers.checkedout}, {waiting} more wait; held: {held})")
        self.numbers = numbers
        self.waiting = waiting
        self.holders = holders


_RETURNED_AT = "pooldrain_returned_at"  # where a record says when its connection was used last

FAILURE = "pooldrain_failure"  # where an exception says which failure it tells of


def mark(error: BaseException, failure: Failure) -> None:
    """Have an exception that is about to be raised say what it tells of, to the gate that may see it escape."""
    setattr(error, FAILURE, failure)
    _note(failure)


def _note(failure: Failure) -> None:
    """Remember on the request what it is about to hear: its framework may make a page of its own of it."""
    request = CURRENT_REQUEST.get()
    if request is not None:
        request.failure = failure


def let_go(record: ConnectionPoolEntry) -> None:
    """Have a record forget its connection, which is closed, or ended, by other means than its own."""
    assert isinstance(record, _ConnectionRecord), "the only records that there are"
    record.dbapi_connection = None


def was_cancelled(request: InFlightRequest) -> bool:
    """Whether the shutdown has cancelled it. What works under a name works for that, and not for the request."""
    return request.cancelled and CURRENT_HOLDER.get() is None


class Lifetime:
    """What the generations of a pool share: `Engine.dispose()` replaces the pool object, not the pool."""

    def __init__(self) -> None:
        self.closed = False
        self.filling = False  # whether it is being filled: none of its connections comes back before
        self.tracker: Tracker | None = None
        self.untested = 0.0  # seconds since its last use within which a connection is not tested again
        self.clock: Callable[[], float] = time.monotonic
        self.generations: weakref.WeakSet[Closable] = weakref.WeakSet()

    def close(self) -> None:
        """Refuse checkouts from now on and wake who waits for one. Closes no connection."""
        self.closed = True
        for pool in list(self.generations):
            pool.shut()

    def turn_away(self) -> None:
        """Wake who waits for a connection, with PoolClosed; who comes later may get one."""
        for pool in list(self.generations):
            pool.turn_away()


class Closable(Pool):
    """The layer: any pool with the properties at the head of this module. To be mixed in front of one."""

    _lifetime: Lifetime

    # What differs between the colours.

    @staticmethod
    def _caller_frame() -> FrameType | None:
        """Where to begin to look for the caller."""
        raise NotImplementedError

    @staticmethod
    def _worker() -> object:
        """What runs the caller, if it is not the thread."""
        raise NotImplementedError

    @staticmethod
    def discard_collected(record: ConnectionPoolEntry, connection: Any) -> bool:
        """Close a connection that the garbage collector found; True if the pool itself will not tell of it."""
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.join(Lifetime())

    def join(self, lifetime: Lifetime) -> None:
        """Be a generation of `lifetime`: closed if that is."""
        self._pools_returned = True  # whether what comes back is kept
        self._lifetime = lifetime
        lifetime.generations.add(self)
        if lifetime.closed:
            self.shut()

    @property
    def lifetime(self) -> Lifetime:
        """What it shares with the pools before and after it."""
        return self._lifetime

    @property
    def closed(self) -> bool:
        """Whether checkouts are refused."""
        return self._lifetime.closed

    def track(self, tracker: Tracker) -> None:
        """Tell `tracker` of every checkout and checkin, in this generation and those to come."""
        self._lifetime.tracker = tracker

    def close(self) -> None:
        """Refuse checkouts from now on and wake who waits for one. Closes no connection."""
        self._lifetime.close()

    def shut(self) -> None:
        """The same for this generation alone."""
        self._pools_returned = False

    def turn_away(self) -> None:
        """Wake who waits for a connection, with PoolClosed; where nobody waits, nobody."""

    def disown(self) -> None:
        """In a forked child: have nothing to do any more with this generation, whose locks others may have held."""
        self._lifetime.generations = weakref.WeakSet()

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out. Raises PoolClosed once closed, and to a request that was cancelled."""
        lifetime, request = self._lifetime, CURRENT_REQUEST.get()
        if lifetime.closed or (request is not None and was_cancelled(request)):
            raise self._pool_closed(waiting=False)
        if (tracker := lifetime.tracker) is None:
            proxy = super().connect()
        else:
            # Before the checkout: one that waits may come back without its caller's frames.
            caller = tracker.walker.capture(self._caller_frame())
            asked = lifetime.clock()
            proxy = super().connect()
            if not (self._lifetime.closed or (request is not None and was_cancelled(request))):
                # Else nobody gets it, and there is nothing to tell.
                tracker.checked_out(proxy, caller, self._worker(), asked)
        # While the connection was being opened or tested; asked last, so that none slips by.
        if self.closed or (request is not None and was_cancelled(request)):
            proxy.close()
            raise self._pool_closed(waiting=True)
        return proxy

    def take_idle(self) -> ConnectionPoolEntry | None:
        """One idle record, to be discarded; None when there is none."""
        return next((record for record in self.idle_records() if is_busy(record.driver_connection) is not True), None)

    def idle_records(self) -> list[ConnectionPoolEntry]:
        """What is open and not checked out."""
        tracker = self._lifetime.tracker
        return [] if tracker is None else tracker.idle_records()

    def discard(self, record: ConnectionPoolEntry) -> None:
        """Close a record's connection and forget it. Raises what the driver raises."""
        connection = record.dbapi_connection
        if is_usable_here(record.driver_connection):
            record.close()
        else:  # it ends with the last reference to it, in whichever thread
            let_go(record)
        if (tracker := self._lifetime.tracker) is not None:
            tracker.closed_one(connection)

    def numbers(self) -> PoolStatus:
        """The pool's numbers. It keeps none by a number of its own."""
        tracker = self._lifetime.tracker
        opened, out = (0, 0) if tracker is None else tracker.books()
        return PoolStatus(pool_size=0, checkedout=out, overflow=0, idle=max(0, opened - out))

    @property
    def most(self) -> int | None:
        """How many connections it may have open; None: no limit of its own."""
        return None

    @property
    def waiting(self) -> int:
        """How many wait for a connection."""
        return 0

    def recreate(self) -> Any:
        """A fresh pool of the same lifetime: closed if this one is."""
        fresh = super().recreate()
        assert isinstance(fresh, Closable), "made by its own class"
        fresh.join(self._lifetime)
        return fresh

    def _should_wrap_creator(self, creator: Any) -> Any:
        opening = super()._should_wrap_creator(creator)

        def open_unless_closed(record: ConnectionPoolEntry) -> Any:
            # A connection that fails its test would be replaced, even now.
            request = CURRENT_REQUEST.get()
            if self._lifetime.closed or (request is not None and was_cancelled(request)):
                raise self._pool_closed(waiting=True)
            began = self._lifetime.clock()
            try:
                opened = opening(record)
            except OSError as error:  # as asyncpg says that the database is out of reach; others' errors are DBAPI's
                mark(error, DATABASE_UNAVAILABLE)
                raise
            if (tracker := self._lifetime.tracker) is not None:
                tracker.connected(self._lifetime.clock() - began)
            return opened

        return open_unless_closed

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        super()._close_connection(connection, terminate=terminate)
        if (tracker := self._lifetime.tracker) is not None:
            tracker.closed_one(connection)  # not by the event, which comes before a close that may hang

    def _do_get(self) -> ConnectionPoolEntry:
        return self._untested(super()._do_get())

    def _untested(self, record: Any) -> ConnectionPoolEntry:
        """A record that is about to leave, to be tested or not."""
        lifetime = self._lifetime
        if self._pre_ping and lifetime.untested:
            used = getattr(record, _RETURNED_AT, -math.inf)
            if lifetime.clock() - used < lifetime.untested and not has_news(record.driver_connection):
                record.fresh = True  # SQLAlchemy's own word for a connection that it need not test
        return record  # type: ignore[no-any-return]

    def _return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._pre_ping and self._lifetime.untested:
            setattr(record, _RETURNED_AT, self._lifetime.clock())
        if (tracker := self._lifetime.tracker) is not None:
            tracker.checked_in(record)
        self._do_return_conn(record)

    def _pool_closed(self, *, waiting: bool) -> PoolClosed:
        _note(POOL_CLOSED)
        numbers = self.numbers()
        return PoolClosed(pool_size=numbers.pool_size, checkedout=numbers.checkedout, waiting=waiting)


class Unqueued(Closable):
    """The layer's half for pools that keep no queue: nobody waits for them, and what they keep is their own affair."""

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if not self._pools_returned and record.dbapi_connection is not None:
            self.discard(record)


class ClosablePool(Closable, QueuePool):
    """QueuePool with the layer. Use one of its two subclasses."""

    _sqla_logger_namespace = "sqlalchemy.pool.pooldrain"  # SQLAlchemy's records stay with SQLAlchemy's loggers
    _pool: ClosableQueue | ClosableAsyncQueue

    def make_queue(self, maxsize: int, *, use_lifo: bool) -> Any:
        """A queue of this colour."""
        return self._queue_class(maxsize, use_lifo=use_lifo)

    def shut(self) -> None:
        """Refuse checkouts, and wake who waits for one."""
        super().shut()
        self._pool.close()

    def turn_away(self) -> None:
        """Wake who waits for a connection, with PoolClosed."""
        self._pool.turn_away()

    def take_idle(self) -> ConnectionPoolEntry | None:
        """One idle record, taken out of the pool to be discarded; None when there is none."""
        return self._pool.take()

    def idle_records(self) -> list[ConnectionPoolEntry]:
        """What is in the pool."""
        return self._pool.items()

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
            idle=sum(record.dbapi_connection is not None for record in self.idle_records()),
        )

    @property
    def most(self) -> int | None:
        """How many connections it may have open; None: no limit."""
        return None if self._max_overflow == -1 else self.size() + self._max_overflow

    @property
    def waiting(self) -> int:
        """How many wait for a connection."""
        return self._pool.waiting

    def dispose(self) -> None:
        """Close every idle connection; as SQLAlchemy's, but with counts that stay true."""
        self._pools_returned = False
        while (record := self.take_idle()) is not None:
            self.discard(record)

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            try:
                return super()._do_get()
            except Exception as error:
                if self._lifetime.filling or not refuses_more(error) or not self._has_some:
                    raise
                return self._wait_for_own(error)
        except QueueClosed as closed:
            raise self._pool_closed(waiting=closed.waited) from None
        except PoolTimeout as error:
            numbers, waiting = self.numbers(), self._pool.waiting
            tracker = self._lifetime.tracker
            holders = () if tracker is None else tracker.timed_out(numbers, waiting)
            _note(POOL_EXHAUSTED)
            raise PoolExhausted(str(error.args[0]), numbers, waiting, holders) from None

    @property
    def _has_some(self) -> bool:
        """Whether it has connections, somewhere: one of them may come back."""
        return self.size() + self.overflow() > 0

    def _wait_for_own(self, error: Exception) -> ConnectionPoolEntry:
        """The server has no room for another connection: one of ours, once it comes back, or the next that it allows.

        Raises PoolTimeout, and QueueClosed, as if the pool were as large as the server lets it be.
        """
        clock = self._lifetime.clock
        until = clock() + self.timeout()
        if (tracker := self._lifetime.tracker) is not None:
            tracker.refused(self.numbers(), error)
        while (left := until - clock()) > 0:
            with suppress(sqla_queue.Empty):
                return self._untested(self._pool.get(True, min(PAUSE, left)))
            try:
                return super()._do_get()
            except Exception as again:
                if not refuses_more(again) or not self._has_some:
                    raise
        limit = f"the server refuses more than {self.size() + self.overflow()} connections"
        raise PoolTimeout(f"{limit}, and none of them became free in {self.timeout():.2f} s")

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._pools_returned:
            super()._do_return_conn(record)
        else:
            self.discard(record)


class Threaded(Closable):
    """The layer's half that belongs to threads."""

    _caller_frame = staticmethod(sys._getframe)

    @staticmethod
    def _worker() -> None:
        """Nothing else."""

    @staticmethod
    def discard_collected(record: ConnectionPoolEntry, connection: Any) -> bool:
        """Close it, instead of pooling it again as SQLAlchemy would."""
        record.invalidate()
        return False


class ClosableQueuePool(Threaded, ClosablePool):
    """For threads."""

    _queue_class = ClosableQueue
