"""The channels of waitress 3.0.2 on the engine's poller and run slots: a request costs what it changes, no look at all.

waitress has one thread that reads and writes for all channels: it asks each of them before every wait what it waits
for, and every thread that is done with a request has it ask again. Here the threads that serve wait for clients
themselves; who has changed what a channel waits for arms it for that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from waitress import wasyncore
from waitress.task import ThreadedTaskDispatcher

from pooldrain_sync.engine.lookout import LOOK
from pooldrain_sync.engine.poller import Poller, make_poller
from pooldrain_sync.engine.slots import RunSlots


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
        self._poller: Poller = make_poller()
        self._entries: dict[int, _Entry] = {}
        self._bell, self._ring = os.pipe()  # for who waits here: there is something to do elsewhere
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)
        self._poller.add(self._bell)

    def __setitem__(self, fd: int, polled: Polled) -> None:
        super().__setitem__(fd, polled)
        self._entries[fd] = _Entry(polled)

    def __delitem__(self, fd: int) -> None:
        super().__delitem__(fd)
        del self._entries[fd]
        self._poller.remove(fd)

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
                    self._poller.arm(fd, write=wanted == "write")
                else:
                    entry.known = True
                    self._poller.add(fd, write=wanted == "write")

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

    def wait(self, timeout: float, limit: int) -> Sequence[int]:
        """Where something has happened, as `Poller.poll`."""
        return self._poller.poll(timeout, limit)

    def ring(self) -> None:
        """Wake who waits here."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._ring, b"x")

    def attend(self, fd: int) -> None:
        """Something has happened there."""
        if fd == self._bell:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            self._poller.arm(fd)
            return
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
        self._slots = slots
        self._ready: deque[Any] = deque()  # channels that wait for a thread
        self._mine = threading.local()  # `reads`: what this thread has read it goes on with, or with what came before

    def handler_thread(self, thread_no: int) -> None:
        """Serve, for ever: the process ends without asking."""
        slots, ran = self._slots, False
        while True:
            slots.poll(from_run=ran)
            ran = False
            channel: Any = None
            fds: Sequence[int] = ()
            try:
                channel = self._next()
                if channel is None:
                    fds = self._map.wait(-1, 1)
            except OSError as error:  # a broken poller: the main thread will find out as well
                self.logger.error("waiting for clients failed", exc_info=error)
                time.sleep(LOOK)
            if channel is None and not fds:
                slots.polled()
                continue
            slots.run(from_poll=True)
            slots.held = ran = True
            try:
                self._mine.reads = True
                for fd in fds:
                    self._map.attend(fd)
                self._mine.reads = False
                channel = channel or self._next()
                if channel is not None:
                    channel.service()
            except BaseException as error:
                self.logger.error("a connection failed", exc_info=error)
            finally:
                slots.held = False

    def _next(self) -> Any:
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def add_task(self, task: Any) -> None:
        """Have a channel served, in the order of arrival."""
        self._ready.append(task)
        if getattr(self._mine, "reads", False):
            self._mine.reads = False
        else:
            self._call()

    def _call(self) -> None:
        """Have a thread come for what is ready."""
        self._slots.need_poller()
        if self._slots.polling:
            self._map.ring()

    def take_over(self, limit: int) -> bool:
        """Read what has come, in place of the threads; whether there was anything."""
        fds = self._map.wait(0, limit)
        for fd in fds:
            self._map.attend(fd)
        if self._ready:  # what has rung for it may just have been taken
            self._call()
        return bool(fds)

    def take_all(self) -> list[Any]:
        """Those that wait for a thread, which they do not any more."""
        waiting: list[Any] = []
        while (channel := self._next()) is not None:
            waiting.append(channel)
        return waiting
