"""Signals: the handler takes note and wakes the loop, nothing else.

What each means is decided here, once, for every process of the service:

| signal | means |
|---|---|
| SIGTERM, SIGINT | the shutdown; a second one hurries it, a third exits at once with 128 + its number |
| SIGQUIT | the shutdown, hurried: as if it came twice |
| SIGHUP, SIGUSR1, SIGUSR2 | nothing, but a line in the log; their default is to kill (a master reloads at SIGHUP) |

A third signal exits from the handler itself: the loop may be what hangs. Everything else keeps its default: it is a
bug of the process (SIGSEGV, SIGABRT ...), a limit or a timer that somebody set (SIGXCPU, SIGALRM ...), or not to be
handled at all. An application that handles one of them itself, which it can do only later, is not overruled.

A worker under a master hears repeated SIGTERMs that are no impatience (systemd signals every process of a
service, a terminal every process of a group, and the master passes its own on). Such a worker takes only the
first, and SIGQUIT, which its master sends, as the request to hurry; at the others it looks again at what its
master has to say (see `worker`).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from pooldrain.exit_codes import by_signal

# What asks for a shutdown, of a process or of a worker.
SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# What would kill a process that does not know it, and is sent by people who take it for another program.
IGNORED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_HANDLED = (*SHUTDOWN_SIGNALS, *IGNORED_SIGNALS)


class SignalWatch:
    """Remembers signals until somebody looks: one that comes during the start is not lost.

    `received` has the names of those that ask for the shutdown or hurry it, in their order. Whoever acts on them keeps
    to itself how many it knows: a wake-up carries no name, and may come once too often.
    """

    def __init__(self, *, managed: bool = False) -> None:
        self._managed = managed
        self.received: list[str] = []
        self._ignored: deque[str] = deque()
        self._call: Callable[[], None] | None = None
        self._forking = threading.local()
        self._woken: socket.socket | None = None
        self._waking: socket.socket | None = None

    def install(self) -> None:
        """Take over the signals. Main thread only; in the process that is to hear of them, after any fork."""
        self._woken, self._waking = socket.socketpair()
        for end in (self._woken, self._waking):
            end.setblocking(False)
        # Python's own handlers run between two instructions: of a wait that is just about to begin, they would wait for
        # the end. What is written here ends it.
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, self.handle)
            signal.siginterrupt(number, True)  # gunicorn asks for the opposite: a wait for a lock would not hear it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)  # a master forks with them blocked
        os.register_at_fork(before=self._hold_back, after_in_parent=self._let_in, after_in_child=self._uninstall)

    # A child that an application forks ends at a signal as any process does: it has no shutdown to perform.

    def _hold_back(self) -> None:
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)

    def _let_in(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _uninstall(self) -> None:
        for number in _HANDLED:
            if signal.getsignal(number) == self.handle:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        awake = signal.set_wakeup_fd(-1)
        if self._waking is None or awake != self._waking.fileno():
            signal.set_wakeup_fd(awake)  # somebody else's
        self._let_in()

    # --- who acts on them -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """What is readable when there may be something new: wait for it together with everything else."""
        assert self._woken is not None, "not installed"
        return self._woken.fileno()

    def drain(self) -> None:
        """Take note of the wake-ups; look at what was received after this, not before."""
        assert self._woken is not None, "not installed"
        with suppress(BlockingIOError):
            while self._woken.recv(64):
                pass

    def take_ignored(self) -> list[str]:
        """The names of the signals that mean nothing, each once."""
        return [self._ignored.popleft() for _ in range(len(self._ignored))]

    def listen(self, call: Callable[[], None]) -> None:
        """Have `call` called in the handler when the shutdown is asked for, and at once if it has been."""
        self._call = call
        if self.received:
            call()

    # --- the handler ----------------------------------------------------------------------------------------

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """The handler."""
        name = signal.Signals(number).name
        if number in IGNORED_SIGNALS:
            self._ignored.append(name)
        # Nothing is called from here to the append: Python could run the handler of a second signal in between.
        elif not self._managed or not self.received or number == signal.SIGQUIT:
            if number == signal.SIGQUIT and not self._managed and not self.received:
                self.received += (name, name)
            else:
                self.received.append(name)
            if len(self.received) >= 3:
                os._exit(by_signal(number))
            if self._call is not None:
                self._call()
        if self._waking is not None:
            with suppress(OSError):  # full: it is awake
                self._waking.send(b"\0")
