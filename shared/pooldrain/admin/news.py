"""Who streams the status waits here for the next one; the end waits, a little, until they have the last."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from pooldrain.snapshot import ServiceStatus

# Seconds for which the end waits for its readers. One that does not read delays it by no more than that.
LAST_WAIT = 0.05


class News:
    """The newest status, by number: readers may miss some, and never the last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._status: ServiceStatus | None = None
        self._number = self._readers = 0
        self.over = False

    @contextmanager
    def reader(self) -> Generator[None]:
        """Somebody reads."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def next(self, seen: int, seconds: float) -> tuple[int, ServiceStatus | None, bool]:
        """The number of the newest status, itself, and whether it is the last; after `seconds`, be it as before."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != seen or self.over, seconds)
            return self._number, self._status, self.over

    def tell(self, status: ServiceStatus, *, last: bool = False) -> None:
        """There is a new status. The last one: wait until everybody who reads has it."""
        with self._changed:
            self._status, self.over = status, last
            self._number += 1
            self._changed.notify_all()
            if last:
                self._changed.wait_for(lambda: not self._readers, LAST_WAIT)
