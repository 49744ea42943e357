"""The channels of waitress 3.0.2 on the engine's poller and threads: a request costs only what it changes.

waitress has one thread that reads and writes for all channels: it asks each of them before every wait what it waits
for, and every thread that is done with a request has it ask again. Here the threads that serve wait for clients
themselves; who has changed what a channel waits for arms it for that.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Protocol

from waitress import wasyncore
from waitress.task import ThreadedTaskDispatcher

from pooldrain_sync.engine.poller import make_poller
from pooldrain_sync.engine.slots import RunSlots
from pooldrain_sync.engine.threads import ServingThreads


class Polled(Protocol):
    """What waitress's map holds: a channel, or the listener."""

    def readable(self) -> object:
        """Whether it waits to read."""

    def writable(self) -> object:
        """Whether it waits to write; then it does not read before it has."""


class _Entry:
    """One of them."""

    __slots__ = ("armed", "claimed", "known", "lock", "polled")

    def __init__(self, polled: Polled) -> None:
        self.polled = polled
        self.lock = threading.Lock()  # who asks it last what it waits for has to be the last to arm it
        self.armed: str | None = None  # "read", "write"
        self.claimed = False
        self.known = False  # to the poller


class PolledMap(dict[int, Any]):
    """waitress's map of all that is waited for, by descriptor. Thread-safe.

    Who claims an entry attends to it alone until it is released: a thread that has been told of it, or the main one,
    which closes what has been idle for too long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.poller = make_poller()
        self._entries: dict[int, _Entry] = {}

    def __setitem__(self, fd: int, polled: Polled) -> None:
        super().__setitem__(fd, polled)
        self._entries[fd] = _Entry(polled)

    def __delitem__(self, fd: int) -> None:
        super().__delitem__(fd)
        del self._entries[fd]
        self.poller.remove(fd)

    def arm(self, fd: int | None) -> None:
        """Wait for what it waits for now: to be called by whoever has changed that, afterwards.

        If it is claimed, that is done when it is released.
        """
        entry = None if fd is None else self._entries.get(fd)
        if fd is None or entry is None:
            return
        with entry.lock:
            if entry.claimed:
                return
            wanted = "write" if entry.polled.writable() else "read" if entry.polled.readable() else None
            if wanted is None or wanted == entry.armed:
                return
            entry.armed = wanted
            with contextlib.suppress(OSError):  # it is being closed
                if entry.known:
                    self.poller.arm(fd, write=wanted == "write")
                else:
                    entry.known = True
                    self.poller.add(fd, write=wanted == "write")

    def claim(self, fd: int | None) -> bool:
        """Whether it was waited for, and is the caller's now."""
        entry = None if fd is None else self._entries.get(fd)
        if entry is None:
            return False
        with entry.lock:
            if entry.armed is None:
                return False
            entry.armed, entry.claimed = None, True
        return True

    def release(self, fd: int | None) -> None:
        """It is the caller's no more: wait for what it waits for now."""
        if fd is not None and (entry := self._entries.get(fd)) is not None:
            entry.claimed = False
            self.arm(fd)

    def waits(self, fd: int | None) -> bool:
        """Whether it is waited for."""
        entry = None if fd is None else self._entries.get(fd)
        return entry is not None and entry.armed is not None

    def attend(self, fd: int) -> None:
        """Something has happened there."""
        polled = self.get(fd)
        if polled is None or not self.claim(fd):
            return
        if polled.writable():
            wasyncore.write(polled)
        elif polled.readable():
            wasyncore.read(polled)
        if self.get(fd) is polled:  # it may be closed, and its number another's
            self.release(fd)


class SlotDispatcher(ThreadedTaskDispatcher):
    """Threads that wait for clients, and serve them, in run slots."""

    def __init__(self, polled: PolledMap, slots: RunSlots) -> None:
        super().__init__()
        self._map = polled
        self._serving: ServingThreads[Any] = ServingThreads(
            polled.poller, slots, attend=self._read, serve=lambda channel: channel.service()
        )
        self._mine = threading.local()  # `reads`: this thread serves what it reads, or what has waited for longer

    def handler_thread(self, thread_no: int) -> None:
        """Serve, for ever."""
        self._serving.work()

    def _read(self, fd: int) -> Any:
        self._mine.reads = True
        try:
            self._map.attend(fd)
        finally:
            self._mine.reads = False
        return self._serving.next()

    def add_task(self, task: Any) -> None:
        """Have a channel served, in the order of arrival."""
        self._serving.queue(task, call=not getattr(self._mine, "reads", False))

    def take_over(self) -> None:
        """Read what has come, in place of the threads, and queue it for them."""
        self._serving.take_over(self._map.attend)

    def take_all(self) -> list[Any]:
        """Those that wait for a thread, which they do not any more."""
        return list(iter(self._serving.next, None))
