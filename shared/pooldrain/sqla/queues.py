"""The queues of the closable pools, threads and asyncio: SQLAlchemy 2.1's, with a `close` that wakes who waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only
from sqlalchemy.util import queue as sqla_queue

from pooldrain.sqla.waits import telling


class QueueClosed(Exception):
    """The queue is closed, to this getter at least; it may have `waited` for it. Never leaves the pool."""

    def __init__(self, *, waited: bool) -> None:
        super().__init__()
        self.waited = waited


class ClosableQueue(sqla_queue.Queue[ConnectionPoolEntry]):
    """SQLAlchemy's thread queue, with a `close` that wakes every getter.

    A pool never waits to put, so nobody is told of free room; that pays for what the ledger costs.
    """

    closed = False
    _waiting = 0
    _turned_away = 0  # how often that was done

    def put(self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None) -> None:
        """Put without waiting; raises Full."""
        with self.mutex:  # re-entrant: a garbage collection may return a leaked connection at any point
            if 0 < self.maxsize <= len(self.queue) - self._waiting:  # what somebody waits for is not closed
                raise sqla_queue.Full
            self.queue.append(item)
            if self._waiting:
                self.not_empty.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        """As in SQLAlchemy; raises QueueClosed once closed."""
        with self.mutex:
            if self.closed:
                raise QueueClosed(waited=False)
            if self.queue:
                return self._pop()
            if not block:
                raise sqla_queue.Empty
        return self._wait(timeout)

    def _pop(self) -> ConnectionPoolEntry:
        return self.queue.pop() if self.use_lifo else self.queue.popleft()

    @telling  # without the mutex: who is told may have this thread wait, and others need it meanwhile
    def _wait(self, timeout: float | None) -> ConnectionPoolEntry:
        """Wait for an item; raises Empty or QueueClosed."""
        with self.mutex:
            turn = self._turned_away
            self._waiting += 1
            try:
                arrived = self.not_empty.wait_for(
                    lambda: self.closed or self._turned_away > turn or self.queue, timeout
                )
            finally:
                self._waiting -= 1
            if self.closed or self._turned_away > turn:
                raise QueueClosed(waited=True)
            if not arrived:
                raise sqla_queue.Empty
            return self._pop()

    @property
    def waiting(self) -> int:
        """How many getters wait."""
        return self._waiting

    def take(self) -> ConnectionPoolEntry | None:
        """An item, from a closed queue too; None when there is none."""
        with self.mutex:
            return self.queue.popleft() if self.queue else None

    def close(self) -> None:
        """Wake every getter; from now on none gets anything."""
        with self.mutex:
            self.closed = True
            self.not_empty.notify_all()

    def turn_away(self) -> None:
        """Wake every getter, which gets nothing; who comes later may."""
        with self.mutex:
            self._turned_away += 1
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
        self._turned_away = 0  # how often that was done
        self._items: deque[ConnectionPoolEntry] = deque()
        self._getters: deque[asyncio.Future[bool]] = deque()

    def empty(self) -> bool:
        """Whether there is nothing to get."""
        return not self._items

    def full(self) -> bool:
        """Whether there is no room."""
        return 0 < self.maxsize <= len(self._items) - len(self._getters)  # what somebody waits for is not closed

    def qsize(self) -> int:
        """How many items there are."""
        return len(self._items)

    def put_nowait(self, item: ConnectionPoolEntry) -> None:
        """Put without waiting; raises Full."""
        if self.full():
            raise sqla_queue.Full
        self._items.append(item)
        if self._getters:
            self._on_their_loop(self._wake_one)

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
        loop = asyncio.get_running_loop()
        turn = self._turned_away
        deadline = None if timeout is None else loop.time() + timeout
        while not self._items:
            getter = loop.create_future()
            self._getters.append(getter)
            # No asyncio.timeout: an exception thrown into the caller hides its frames from the ledger (CPython 3.11).
            alarm = None if deadline is None else loop.call_at(deadline, _let_go, getter, False)
            try:
                woken = await getter
            except asyncio.CancelledError:
                if not getter.cancelled() and self._items:
                    self._wake_one()  # the wake-up was ours, the item is not: pass it on
                raise
            finally:
                if alarm is not None:
                    alarm.cancel()
                with contextlib.suppress(ValueError):  # who was woken is not in it any more
                    self._getters.remove(getter)
            if self.closed or self._turned_away > turn:
                raise QueueClosed(waited=True)
            if not woken and not self._items:
                raise sqla_queue.Empty
        return self.get_nowait()

    @property
    def waiting(self) -> int:
        """How many getters wait."""
        return len(self._getters)

    def take(self) -> ConnectionPoolEntry | None:
        """An item, from a closed queue too; None when there is none."""
        return self._items.popleft() if self._items else None

    def _on_their_loop(self, wake: Callable[[], None]) -> None:
        loop = self._getters[0].get_loop()
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            wake()
        elif not loop.is_closed():  # a garbage collection in another thread returns a leaked connection
            loop.call_soon_threadsafe(wake)

    def _wake_one(self) -> None:
        while self._getters:
            if _let_go(self._getters.popleft(), True):
                break

    def close(self) -> None:
        """Wake every getter; from now on none gets anything."""
        self.closed = True
        self.turn_away()

    def turn_away(self) -> None:
        """Wake every getter, which gets nothing; who comes later may."""
        self._turned_away += 1
        if self._getters:
            self._on_their_loop(self._wake_all)

    def _wake_all(self) -> None:
        while self._getters:
            self._wake_one()

    def items(self) -> list[ConnectionPoolEntry]:
        """What is in the queue."""
        return list(self._items)


def _let_go(getter: asyncio.Future[bool], woken: bool) -> bool:
    """Tell a getter that it was `woken`, or that its time is up. False if it waits no more."""
    waits = not getter.done()
    if waits:
        getter.set_result(woken)
    return waits
