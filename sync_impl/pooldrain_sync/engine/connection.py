"""One client's connection: what is still to be sent on it, and who waits for that.

A thread that serves hands over what it has; what the client does not take at once is kept, and sent by whichever thread
the poller wakes. A thread waits only if too much is kept, or for a body that is too long to be kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pooldrain.request_head import Limits
from pooldrain.runtime.listener import STALLED, has_taken_all
from pooldrain.sqla.waits import telling
from pooldrain_sync.engine.request import RequestParser
from pooldrain_sync.engine.tls import TlsSocket

# Bytes read at a time.
RECEIVE = 65536

# Bytes of answers that are kept for a client before the thread that makes more of them has to wait.
ANSWER_KEPT = 1 << 20

_ENDING = "the service is shutting down and waits no longer for this client"

# Bytes of a file handed to the kernel in one go.
FILE_PART = 1 << 20


class Interruption:
    """Once it is set, every thread that waits for a client is woken, and none waits again."""

    def __init__(self) -> None:
        self.descriptor, self._end = os.pipe()  # readable once the other end is closed
        self.is_set = False

    def set(self) -> None:
        """Wake them all. Once."""
        self.is_set = True
        os.close(self._end)


class FilePart:
    """Bytes of a file that the kernel is to send itself."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.fd = os.dup(fd)  # its application may close it when it is done with the answer
        self.offset = offset
        self.size = size

    def __len__(self) -> int:
        return self.size

    def send(self, sock: socket.socket | TlsSocket) -> int:
        """Send some of it; how many bytes are left. Raises OSError, also if the file has become shorter."""
        sent = os.sendfile(sock.fileno(), self.fd, self.offset, min(self.size, FILE_PART))
        if not sent:
            raise BrokenPipeError(errno.EPIPE, "the file has become shorter")
        self.offset += sent
        self.size -= sent
        return self.size

    def close(self) -> None:
        """Let the file go."""
        os.close(self.fd)


class Connection:
    """A client."""

    # Defaults live in the class: most of them never change.
    unsent = 0  # bytes that are kept
    broken = False  # nothing can be sent any more
    ended = False  # nothing more is to be sent: `keep` tells what comes then
    keep = False
    interrupted = False
    left = False  # in the middle of a request
    answered_for = False  # another thread has answered in place of the one that serves
    begun = False  # some of the current answer was handed over
    invalid: Exception | None = None  # what was wrong with what it has sent
    closed = False
    told = False  # its last answer has said that it is the last
    base: dict[str, Any] | None = None  # of its WSGI environment, if there are several addresses to come to
    head_until = 0.0  # monotonic seconds; when the head that is coming has to be complete

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        peer: tuple[str, int],
        interruption: Interruption,
        arm: Callable[[Connection], None],
        limits: Limits,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.parser = RequestParser(limits)
        self.requests = self.parser.requests
        self.first_bytes_until = 0.0  # monotonic seconds; until then a new client is about to send
        self.moved_at = 0.0  # when it last took something, while something is kept for it
        self._interruption = interruption
        self._arm = arm  # has the poller wait until more can be sent
        self.lock = threading.RLock()
        self._out: deque[memoryview | FilePart] = deque()
        self._when_sent: list[Callable[[], None]] = []
        self._room: threading.Condition | None = None

    # --- reading ----------------------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Read what has come, and parse it; False at the connection's end. Raises BlockingIOError, InvalidRequest."""
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            raise
        except OSError:
            return False
        if not data:
            return False
        self.first_bytes_until = 0.0
        self.parser.feed(data)
        return True

    def more(self) -> None:
        """Wait for more of the body that is being read. Raises OSError or InvalidRequest."""
        while True:
            if self.interrupted:
                raise _broken(_ENDING)
            try:
                if not self.receive():
                    self.left = True
                    raise _broken("the client has left")
                return
            except BlockingIOError:
                self._await_data()

    @telling
    def _await_data(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.register(self._interruption.descriptor, select.POLLIN)
        ready = dict(poll.poll(STALLED * 1000))
        if self.fd in ready:
            return
        if not ready:
            raise _broken("the client has stalled")
        self.interrupted = True

    # --- sending ----------------------------------------------------------------------------------------------

    def send(self, data: bytes | FilePart) -> None:
        """Send, or keep what its client does not take at once. Raises OSError if nothing can be sent any more."""
        with self.lock:
            if self.answered_for:
                raise _broken("the request has been answered for its thread")
            self.begun = True
            if self.broken:
                raise _broken("the client has left")
            if not self._out and isinstance(data, bytes):
                try:
                    sent = self.sock.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._break()
                    raise
                if sent == len(data):
                    return
                self._keep(memoryview(data)[sent:])
            else:
                self._keep(data if isinstance(data, FilePart) else memoryview(data))

    def send_interim(self) -> None:
        """Ask for the body of a request whose client waits for that. It fits into any buffer."""
        with contextlib.suppress(OSError):  # it has left
            self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _keep(self, data: memoryview | FilePart) -> None:
        if self._interruption.is_set:
            self.interrupted = True
            self._break()
            raise _broken(_ENDING)
        first = not self._out
        self._out.append(data)
        self.unsent += len(data)
        if first:
            self.moved_at = time.monotonic()
            self._arm(self)

    def await_room(self) -> None:
        """Wait, if much is kept, until most of it is sent. Raises OSError if it never will be."""
        if self.unsent > ANSWER_KEPT:
            self._await_room()

    @telling
    def _await_room(self) -> None:
        with self.lock:
            if self._room is None:
                self._room = threading.Condition(self.lock)
            while self.unsent > ANSWER_KEPT // 2 and not self.broken:
                self._room.wait()
            if self.interrupted:
                raise _broken(_ENDING)

    def flush(self) -> bool:
        """The client takes more: whether the exchange has ended, and all of it is sent."""
        with self.lock:
            try:
                self._flush_locked()
            except OSError:
                self._break()
            done, over = self._after_flush_locked()
        for each in done:
            each()
        return over

    def _after_flush_locked(self) -> tuple[list[Callable[[], None]], bool]:
        if self._room is not None:
            self._room.notify_all()
        if self._out:
            self._arm(self)
            return [], False
        done, self._when_sent = self._when_sent, []
        over, self.ended = self.ended, False
        return done, over

    def _flush_locked(self) -> None:
        while self._out:
            first = self._out[0]
            before = len(first)
            try:
                left = first.send(self.sock) if isinstance(first, FilePart) else before - self.sock.send(first)
            except BlockingIOError:
                return
            self.moved_at = time.monotonic()
            self.unsent -= before - left
            if isinstance(first, memoryview):
                self._out[0] = first[before - left :]
            if not left:
                self._out.popleft()
                if isinstance(first, FilePart):
                    first.close()

    def _break(self) -> None:
        self.broken = True
        for part in self._out:
            if isinstance(part, FilePart):
                part.close()
        self._out.clear()
        self.unsent = 0

    def give_up(self, *, interrupted: bool = False) -> bool:
        """Nothing of what is kept is sent any more; who waits for it is told. Whether the exchange had ended."""
        with self.lock:
            self.interrupted |= interrupted
            self._break()
            done, over = self._after_flush_locked()
        for each in done:
            each()
        return over

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` when nothing is kept any more."""
        with self.lock:
            if self._out:
                self._when_sent.append(done)
                return
        done()

    def end_exchange(self, *, keep: bool) -> bool:
        """Nothing more is to be sent; whether all is. If not, the thread that flushes the rest learns of it."""
        with self.lock:
            self.keep = keep
            self.ended = bool(self._out)
            return not self._out

    def answer_instead(self, response: bytes) -> bool:
        """Answer for a thread that does not, and close our half; False if it has begun to answer."""
        with self.lock:
            if self.begun or self.answered_for or self.broken:
                return False
            self.answered_for = True
            with contextlib.suppress(OSError):  # its client has left
                self.sock.send(response)
                self.sock.shutdown(socket.SHUT_WR)
        return True

    @property
    def has_taken_all(self) -> bool:
        """Whether its client has taken all, and has nothing more to send: then closing resets nothing."""
        return not self.broken and not self.requests and self.parser.between_requests and has_taken_all(self.fd)

    def close(self) -> None:
        """Close it, and leave nobody waiting."""
        self.closed = True
        if self._out:
            self.give_up()
        self.parser.close()
        self.sock.close()


def _broken(why: str) -> BrokenPipeError:
    return BrokenPipeError(errno.EPIPE, why)
