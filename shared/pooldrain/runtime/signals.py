"""Signals: the handler counts and wakes the loop, nothing else.

SIGINT and SIGTERM are the same. The first asks for the shutdown, a second hurries it, a third exits at once
with 128 + its number, from the handler itself: the loop may be what hangs.

A worker under a master hears repeated SIGTERMs that are no impatience (systemd signals every process of a
service, a terminal every process of a group, and the master passes its own on). Such a worker takes only the
first, and SIGQUIT, which its master sends, as the request to hurry; at the others it looks again at what its
master has to say (see `worker`). SIGHUP, which replaces workers, is for the master alone: sent to all, it ends none.
"""

from __future__ import annotations

import os
import signal
import threading
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
        self._forking = threading.local()
        self.look_again: Callable[[], None] | None = None  # called, in the handler, when a master repeats itself

    def install(self) -> None:
        """Take over SIGINT and SIGTERM (SIGQUIT and SIGHUP too in a managed worker). Main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGQUIT, signal.SIGHUP) if self._managed else ())):
            signal.signal(number, self.handle)
            signal.siginterrupt(number, True)  # gunicorn asks for the opposite: a wait for a lock would not hear it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHUTDOWN_SIGNALS)  # a master forks with them blocked
        os.register_at_fork(before=self._hold_back, after_in_parent=self._let_in, after_in_child=self._uninstall)

    # A child that an application forks ends at a signal as any process does: it has no shutdown to perform.

    def _hold_back(self) -> None:
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN_SIGNALS)

    def _let_in(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _uninstall(self) -> None:
        for number in (*SHUTDOWN_SIGNALS, signal.SIGHUP):
            if signal.getsignal(number) == self.handle:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._let_in()

    def listen(self, wake: Callable[[str], None]) -> None:
        """Call `wake` with each signal's name, in the handler; at once for those that came before."""
        self._wake = wake
        for name in list(self.received):
            wake(name)

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        if number == signal.SIGHUP:
            return
        name = signal.Signals(number).name
        # Nothing is called from here to the append: Python could run the handler of a second signal in between.
        if self._managed and self.received and number != signal.SIGQUIT:
            if self.look_again is not None:
                self.look_again()
            return
        self.received.append(name)
        if len(self.received) >= 3:
            os._exit(128 + number)
        if self._wake is not None:
            self._wake(name)
