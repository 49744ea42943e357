"""Being a container's first process: what a machine's init does for its processes, as far as a service needs it.

Whoever loses their parent becomes a child of process 1, which has to reap them, or their numbers are used up. The
process that serves must not do that: it would take the exit codes of children that the application waits for itself. So
process 1 is a small one that does nothing else, and passes every signal on to the one that serves.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from typing import Literal

from pooldrain.exit_codes import by_signal
from pooldrain.runtime.process.signals import IGNORED_SIGNALS, SHUTDOWN_SIGNALS, SignalWatch

InitMode = Literal["auto", "on", "off"]

# prctl(2): be sent a signal when the parent ends, and be who orphans become children of.
_PDEATHSIG, _SUBREAPER = 1, 36

_PASSED_ON = (*SHUTDOWN_SIGNALS, *IGNORED_SIGNALS)


def is_wanted(mode: InitMode) -> bool:
    """Whether to be one: by default, as process 1."""
    return mode == "on" or (mode == "auto" and os.getpid() == 1)


def split(watch: SignalWatch) -> int | None:
    """Fork; None in the process that is to serve. In the other one, after its end: its exit code.

    `watch` has the signals that came before, which are passed on. The process that serves has to watch anew.
    """
    _prctl(_SUBREAPER, 1)
    awaited = {signal.SIGCHLD, *_PASSED_ON}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    init = os.getpid()
    service = os.fork()
    if service == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        with suppress(OSError):
            os.setsid()  # a terminal's Ctrl+C comes once, through process 1
        _prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != init:  # it has ended meanwhile
            os.kill(os.getpid(), signal.SIGTERM)
        return None
    for name in watch.received:
        os.kill(service, signal.Signals[name])
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(service, number)
        elif (code := _reap(service)) is not None:
            return code if code >= 0 else by_signal(-code)


def _reap(service: int) -> int | None:
    """Reap whoever has ended; the exit code of the process that serves, if it has."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == service:
                found = os.waitstatus_to_exitcode(status)
    return found


def _prctl(what: int, value: int) -> None:
    """Linux's; elsewhere nothing happens."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(what, value, 0, 0, 0)
