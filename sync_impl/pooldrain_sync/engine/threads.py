"""The threads of a server: they wait for clients on one poller, in run slots, and serve what is ready."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pooldrain_sync.engine.lookout import LOOK
from pooldrain_sync.engine.poller import Poller
from pooldrain_sync.engine.slots import RunSlots

Item = TypeVar("Item")

logger = logging.getLogger("pooldrain")

# Events taken from the poller at a time by the main thread, and how often in a row before it looks at anything else.
BATCH = 64
TURNS = 8


class ServingThreads(Generic[Item]):
    """What these threads do, and what waits for one of them. Thread-safe."""

    def __init__(
        self,
        poller: Poller,
        slots: RunSlots,
        *,
        attend: Callable[[int], Item | None],
        serve: Callable[[Item], None],
        failed: Callable[[Item | None], None] = lambda item: None,
    ) -> None:
        """`attend` sees to a descriptor on which something has happened, and returns what is to be served now.

        `failed` is called with what was served when anything was raised, which is logged.
        """
        self._poller = poller
        self._slots = slots
        self._attend = attend
        self._serve = serve
        self._failed = failed
        self._ready: deque[Item] = deque()
        self._bell, self._ring = os.pipe()  # for who waits for clients: something is ready
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)
        poller.add(self._bell)

    def work(self) -> None:
        """What each of the threads does, for ever: the process ends without asking."""
        slots, poll, bell, attend = self._slots, self._poller.poll, self._bell, self._attend
        ran = False
        while True:
            slots.poll(from_run=ran)
            ran = False
            fds: Sequence[int] = ()
            item = self.next()
            if item is None:
                try:
                    fds = poll(-1, 1)
                except OSError as error:  # a broken poller: the main thread will find out as well
                    logger.error("waiting for clients failed", exc_info=error)
                    time.sleep(LOOK)
                if not fds:
                    slots.polled()
                    continue
            slots.run(from_poll=True)
            slots.held = ran = True
            try:
                for fd in fds:
                    item = self._answer_bell() if fd == bell else attend(fd)
                if item is not None:
                    self._serve(item)
            except BaseException as error:
                logger.error("a connection failed", exc_info=error)
                self._failed(item)
            finally:
                slots.held = False

    def next(self) -> Item | None:
        """What has been ready for longest; it is the caller's now."""
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def queue(self, item: Item, *, call: bool = True) -> None:
        """Have it served in the order of arrival. `call`: by another thread than this one, which has to come for it."""
        self._ready.append(item)
        if call:
            self._call()

    def take_over(self, attend: Callable[[int], object]) -> None:
        """Have `attend` see to what has happened, in the main thread; what is ready is left to the threads."""
        for _ in range(TURNS):
            fds = self._poller.poll(0, BATCH)
            if not fds:
                break
            for fd in fds:
                if fd == self._bell:
                    self._silence()
                else:
                    attend(fd)
        if self._ready:  # what has rung for it may just have been taken
            self._call()

    def _call(self) -> None:
        """Have a thread come for what is ready."""
        self._slots.need_poller()
        if self._slots.polling:
            with contextlib.suppress(BlockingIOError):
                os.write(self._ring, b"x")

    def _answer_bell(self) -> Item | None:
        self._silence()
        return self.next()

    def _silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 4096)
        self._poller.arm(self._bell)
