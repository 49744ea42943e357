"""Output that never blocks for long what it tells of: a log may be a pipe that nobody reads.

A container runtime's blocking log driver, a stuck journal, `| tee` onto a full disk: whoever writes to such a pipe
waits for ever, with every lock that he holds. `O_NONBLOCK` is no way out: the others who write there share it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable

# Bytes that a pipe which is said to be writable takes without blocking (pipe(7): PIPE_BUF).
_AT_ONCE = select.PIPE_BUF

# Seconds for which lines wait to be taken, all together; a twentieth of the time that passes is regained, and all of it
# from a reader who takes one within PROMPT seconds: he is only busy, and loses nothing.
PATIENCE = 0.25
PROMPT = 0.05
_REGAINED = 0.05


class Output:
    """Lines to one descriptor, each whole or not at all; those that nobody takes are lost, counted, and told of.

    `lost`: the line that tells of so many lost ones, written before the next line that is taken.
    """

    def __init__(
        self, descriptor: int, lost: Callable[[int], bytes], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._descriptor = descriptor
        self._lost_line = lost
        self._clock = clock
        # A file takes everything; in one piece, so that lines of several processes do not mix.
        self._at_once = None if stat.S_ISREG(os.fstat(descriptor).st_mode) else _AT_ONCE
        self._lost = 0
        self._rest = b""  # of a line that was begun
        self._patience = PATIENCE
        self._waited_at = clock()
        self._lock = threading.RLock()  # a signal handler may write, too
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a forked child: what is not written yet, and who is about to write it, is the parent's."""
        self._lock = threading.RLock()
        self._lost, self._rest = 0, b""

    def write(self, line: bytes) -> None:
        """Write a line, or lose it. Raises OSError for a descriptor that is broken, closed or full."""
        with self._lock:
            self._write(line)

    def _write(self, line: bytes) -> None:
        if not self._flush():
            self._lost += 1
            return
        if self._lost:
            self._rest = self._lost_line(self._lost)
            if not self._flush():
                self._rest = b""
                self._lost += 1
                return
            self._lost = 0
        self._rest = line
        if not self._flush() and len(self._rest) == len(line):
            self._rest = b""
            self._lost += 1

    def _flush(self) -> bool:
        """Write what is left of a line; False if it is not taken."""
        while self._rest:
            if not self._writable():
                return False
            try:
                self._rest = self._rest[os.write(self._descriptor, self._rest[: self._at_once]) :]
            except BlockingIOError:  # somebody else was first, on a descriptor that does not block
                return False
            except OSError:
                self._rest = b""
                raise
        return True

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if poll.poll(0):
            return True
        if self._lost:
            return False  # nobody reads, it seems: the next line is not waited for
        now = self._clock()
        self._patience = min(PATIENCE, self._patience + (now - self._waited_at) * _REGAINED)
        ready = bool(poll.poll(self._patience * 1000))
        self._waited_at = self._clock()
        waited = self._waited_at - now
        self._patience = PATIENCE if ready and waited < PROMPT else max(0.0, self._patience - waited)
        return ready


def open_for_appending(path: str | os.PathLike[str]) -> int:
    """A descriptor that appends to a file, or writes to a named pipe. Raises OSError; ENXIO if nobody reads that."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
    with contextlib.suppress(OSError, AttributeError):  # not a pipe, or not Linux
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)  # a reader may be busy for a while
    return descriptor


def explain(error: OSError) -> str:
    """Why a file could not be opened for appending."""
    return "nobody reads this named pipe" if error.errno == errno.ENXIO else error.strerror or str(error)
