"""Signals: the handler counts and wakes the loop, nothing else.

SIGINT and SIGTERM are the same. The first asks for the shutdown, a second hurries it, a third exits at once
with 128 + its number, from the handler itself: the loop may be what hangs.

A worker under a master hears repeated SIGTERMs that are no impatience (systemd signals every process of a
service, a terminal every process of a group, and the master passes its own on). Such a worker takes only the
first, and SIGQUIT, which its master sends, as the request to hurry.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

# What asks for a shutdown, of a process or of a worker.
SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class SignalWatch:
    """Remembers signals until somebody listens: one that comes during the start is not lost."""

    def __init__(self, *, managed: bool = False) -> None:
        self._wake: Callable[[str], None] | None = None
        self._managed = managed
        self.received: list[str] = []

    def install(self) -> None:
        """Take over SIGINT and SIGTERM (SIGQUIT too in a managed worker). Main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGQUIT,) if self._managed else ())):
            signal.signal(number, self.handle)
            signal.siginterrupt(number, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHUTDOWN_SIGNALS)  # a master forks with them blocked

    def listen(self, wake: Callable[[str], None]) -> None:
        """Call `wake` with each signal's name, in the handler; at once for those that came before."""
        self._wake = wake
        for name in list(self.received):
            wake(name)

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        if self._managed and self.received and number != signal.SIGQUIT:
            return
        name = signal.Signals(number).name
        self.received.append(name)
        if len(self.received) >= 3:
            os._exit(128 + number)
        if self._wake is not None:
            self._wake(name)
