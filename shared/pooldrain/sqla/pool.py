"""The closable pools.

What SQLAlchemy's pools do at a shutdown, and these do not: `dispose()` closes only what is checked in and
at once opens a fresh pool, so late checkouts succeed and blocked waiters sleep out their timeout, then open
a *new* connection; and the counts go negative. Here, once closed:
1. a checkout raises PoolClosed at once, and waiters are woken with it;
2. a connection that comes back is closed, not pooled;
3. `recreate()` (what `Engine.dispose()` calls) gives a pool that is closed as well;
4. the counts stay true.

This module patches internals of SQLAlchemy 2.1's QueuePool (`_do_get`, `_return_conn`, `_do_return_conn`,
`_close_connection`, `_should_wrap_creator`, `_queue_class`) and reads those of its records (`fairy_ref`).
"""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any, Protocol

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

from pooldrain.errors import PoolClosed
from pooldrain.sqla.queues import ClosableAsyncQueue, ClosableQueue, QueueClosed
from pooldrain.stacks import RawStack, StackWalker
from pooldrain.status import PoolStatus


class Tracker(Protocol):
    """Whom a pool tells of what leaves it and comes back."""

    @property
    def walker(self) -> StackWalker:
        """Finds who is checking out."""
        ...

    def checked_out(self, proxy: PoolProxiedConnection, caller: RawStack, worker: object) -> None:
        """A connection has left the pool; `worker`: what runs its caller."""

    def checked_in(self, record: ConnectionPoolEntry) -> None:
        """A connection is coming back."""

    def closed_one(self, connection: Any) -> None:
        """A connection is closed."""

    def timed_out(self, numbers: PoolStatus, waiting: int) -> tuple[str, ...]:
        """Somebody has waited in vain, `waiting` others still wait; who has the connections, in words."""
        ...


class PoolExhausted(PoolTimeout):
    """No connection became free in time. SQLAlchemy's error, with the pool's numbers and its holders."""

    def __init__(self, text: str, numbers: PoolStatus, waiting: int, holders: tuple[str, ...]) -> None:
        held = "; ".join(holders) or "nobody"
        super().__init__(f"{text} (checked out {numbers.checkedout}, {waiting} more wait; held: {held})")
        self.numbers = numbers
        self.waiting = waiting
        self.holders = holders


class _Lifetime:
    """What the generations of a pool share: `Engine.dispose()` replaces the pool object, not the pool."""

    def __init__(self) -> None:
        self.closed = False
        self.tracker: Tracker | None = None
        self.generations: weakref.WeakSet[ClosablePool] = weakref.WeakSet()


class ClosablePool(QueuePool):
    """QueuePool with the four properties at the head of this module. Use one of its two subclasses."""

    _sqla_logger_namespace = "sqlalchemy.pool.pooldrain"  # SQLAlchemy's records stay with SQLAlchemy's loggers
    _pool: ClosableQueue | ClosableAsyncQueue

    # What differs between the colours, beside the queue.

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
        self._pools_returned = True  # whether what comes back is kept
        self._join(_Lifetime())

    def _join(self, lifetime: _Lifetime) -> None:
        self._lifetime = lifetime
        lifetime.generations.add(self)
        if lifetime.closed:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether checkouts are refused."""
        return self._lifetime.closed

    def track(self, tracker: Tracker) -> None:
        """Tell `tracker` of every checkout and checkin, in this generation and those to come."""
        self._lifetime.tracker = tracker

    def close(self) -> None:
        """Refuse checkouts from now on and wake who waits for one. Closes no connection."""
        self._lifetime.closed = True
        for pool in list(self._lifetime.generations):
            pool._pools_returned = False
            pool._pool.close()

    def disown(self) -> None:
        """In a forked child: have nothing to do any more with this generation, whose locks others may have held."""
        self._lifetime.generations = weakref.WeakSet()

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out. Raises PoolClosed once closed."""
        if (tracker := self._lifetime.tracker) is None:
            proxy = super().connect()
        else:
            # Before the checkout: one that waits may come back without its caller's frames.
            caller = tracker.walker.capture(self._caller_frame())
            proxy = super().connect()
            if not self._lifetime.closed:  # or nobody gets it, and there is nothing to tell of
                tracker.checked_out(proxy, caller, self._worker())
        if self._lifetime.closed:  # while the connection was being opened or tested; asked last, so that none slips by
            proxy.close()
            raise self._pool_closed(waiting=True)
        return proxy

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

    def dispose(self) -> None:
        """Close every idle connection; as SQLAlchemy's, but with counts that stay true."""
        self._pools_returned = False
        while (record := self.take_idle()) is not None:
            self.discard(record)

    def recreate(self) -> ClosablePool:
        """A fresh pool of the same lifetime: closed if this one is."""
        fresh = super().recreate()
        assert isinstance(fresh, ClosablePool)
        fresh._join(self._lifetime)
        return fresh

    def _should_wrap_creator(self, creator: Any) -> Any:
        opening = super()._should_wrap_creator(creator)

        def open_unless_closed(record: ConnectionPoolEntry) -> Any:
            if self._lifetime.closed:  # a connection that fails its test would be replaced, even now
                raise self._pool_closed(waiting=True)
            return opening(record)

        return open_unless_closed

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return QueuePool._do_get(self)
        except QueueClosed as closed:
            raise self._pool_closed(waiting=closed.waited) from None
        except PoolTimeout as error:
            numbers, waiting = self.numbers(), self._pool.waiting
            tracker = self._lifetime.tracker
            holders = () if tracker is None else tracker.timed_out(numbers, waiting)
            raise PoolExhausted(str(error.args[0]), numbers, waiting, holders) from None

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

    _caller_frame = staticmethod(sys._getframe)

    @staticmethod
    def _worker() -> None:
        """Nothing else."""

    @staticmethod
    def discard_collected(record: ConnectionPoolEntry, connection: Any) -> bool:
        """Close it, instead of pooling it again as SQLAlchemy would."""
        record.invalidate()
        return False
