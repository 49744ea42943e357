"""One-shot readiness that many threads wait for at once: epoll, kqueue, or whatever `selectors` has.

Each arming tells of one event, to one thread. Descriptors that are closed need no removal, except by `remove`, from the
plain kind, which would otherwise wait for a stranger.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

# Forces one kind, by name: so that what Linux never needs is tested there.
KIND = "POOLDRAIN_POLLER"


class Poller(Protocol):
    """What waits for events."""

    def add(self, fd: int, *, write: bool = False) -> None:
        """Wait for a new descriptor, once."""

    def arm(self, fd: int, *, write: bool = False) -> None:
        """Wait for a known one again, once."""

    def remove(self, fd: int) -> None:
        """Have nothing to do with it any more; it is about to be closed."""

    def poll(self, timeout: float, limit: int) -> Sequence[int]:
        """The descriptors on which something has happened; waits for one as long as that, -1 for ever (seconds)."""
        ...

    def close(self) -> None:
        """Wait for nothing any more."""


class EpollPoller:
    """Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._read = select.EPOLLIN | select.EPOLLONESHOT
        self._write = select.EPOLLOUT | select.EPOLLONESHOT

    def add(self, fd: int, *, write: bool = False) -> None:
        """Wait for a new descriptor, once."""
        self._epoll.register(fd, self._write if write else self._read)

    def arm(self, fd: int, *, write: bool = False) -> None:
        """Wait for a known one again, once."""
        self._epoll.modify(fd, self._write if write else self._read)

    def remove(self, fd: int) -> None:
        """The kernel does that itself when it is closed."""

    def poll(self, timeout: float, limit: int) -> Sequence[int]:
        """The descriptors on which something has happened."""
        return [fd for fd, _ in self._epoll.poll(timeout, limit)]

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()


class KqueuePoller:
    """macOS and the BSDs."""

    def __init__(self) -> None:
        self._kqueue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]  # where it exists

    def add(self, fd: int, *, write: bool = False) -> None:
        """Wait for a new descriptor, once."""
        kind = select.KQ_FILTER_WRITE if write else select.KQ_FILTER_READ  # type: ignore[attr-defined,unused-ignore]
        flags = select.KQ_EV_ADD | select.KQ_EV_ONESHOT  # type: ignore[attr-defined,unused-ignore]  # as above
        event = select.kevent(fd, kind, flags)  # type: ignore[attr-defined,unused-ignore]  # as above
        self._kqueue.control([event], 0, 0)

    arm = add

    def remove(self, fd: int) -> None:
        """The kernel does that itself when it is closed."""

    def poll(self, timeout: float, limit: int) -> Sequence[int]:
        """The descriptors on which something has happened."""
        return [event.ident for event in self._kqueue.control(None, limit, None if timeout < 0 else timeout)]

    def close(self) -> None:
        """Wait for nothing any more."""
        self._kqueue.close()


class PlainPoller:
    """Anywhere: one thread waits, the others for their turn; what is armed meanwhile wakes it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._turn = threading.Lock()  # who has it waits, and alone touches the selector
        self._changes_lock = threading.Lock()
        self._changes: dict[int, int | None] = {}  # descriptors to wait for; None: no more
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def add(self, fd: int, *, write: bool = False) -> None:
        """Wait for a descriptor, once."""
        self._change(fd, selectors.EVENT_WRITE if write else selectors.EVENT_READ)

    arm = add

    def remove(self, fd: int) -> None:
        """Forget it, before another one gets its number."""
        self._change(fd, None)

    def _change(self, fd: int, events: int | None) -> None:
        with self._changes_lock:
            first = not self._changes
            self._changes[fd] = events
        if first:
            os.write(self._wake, b"x")

    def _apply_changes(self) -> None:
        with self._changes_lock:
            changes, self._changes = self._changes, {}
        for fd, events in changes.items():
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
            if events is not None:
                with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                    self._selector.register(fd, events)

    def poll(self, timeout: float, limit: int) -> Sequence[int]:
        """The descriptors on which something has happened."""
        if not self._turn.acquire(timeout=timeout) if timeout >= 0 else not self._turn.acquire():
            return []
        try:
            while True:
                self._apply_changes()
                ready = [key.fd for key, _ in self._selector.select(None if timeout < 0 else timeout)]
                if self._woken in ready:
                    ready.remove(self._woken)
                    os.read(self._woken, 65536)
                    if not ready:
                        continue
                for fd in ready[:limit]:
                    self._selector.unregister(fd)
                return ready[:limit]
        finally:
            self._turn.release()

    def close(self) -> None:
        """Wait for nothing any more."""
        os.close(self._wake)
        os.close(self._woken)
        self._selector.close()


def make_poller() -> Poller:
    """The best kind that there is here."""
    kinds: dict[str, Callable[[], Poller]] = {"epoll": EpollPoller, "kqueue": KqueuePoller, "plain": PlainPoller}
    wanted = os.environ.get(KIND)
    if wanted is None:
        wanted = next((kind for kind in ("epoll", "kqueue") if hasattr(select, kind)), "plain")
    return kinds[wanted]()
