"""One client of gunicorn's threaded worker: a thread may wait for it, and can be woken (patches gunicorn 27.0.1).

A thread that reads a body or writes an answer waits for its client for as long as that takes. An `Interruption` ends
all these waits at once, and a thread that is stuck elsewhere can be answered for, as long as it has sent nothing.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.errors import (
    ChunkMissingTerminator,
    ExpectationFailed,
    InvalidChunkExtension,
    InvalidChunkSize,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.wsgi import Response

from pooldrain.errors import InvalidRequest
from pooldrain.in_flight import InFlightRequest
from pooldrain.runtime.listener import KEEP_ALIVE

_STATUSES: dict[type[Exception], int] = {
    LimitRequestLine: 414,
    ExpectationFailed: 417,
    LimitRequestHeaders: 431,
    UnsupportedTransferCoding: 501,
}


def refusal_status(error: BaseException) -> int | None:
    """The status for a request that is not valid HTTP; None if the error is of another kind."""
    ours = type(error).__name__.startswith("InvalidResponseHeader")  # one that we were to send
    if ours or not isinstance(error, ParseException | InvalidRequest):
        return None
    return _STATUSES.get(type(error), 400)


# What a body is found out by; those of chunks are parse errors only since gunicorn 27.
_INVALID_BODY = (ParseException, InvalidChunkSize, ChunkMissingTerminator, InvalidChunkExtension)

# Bytes of a body that the application has not read, which the server reads off behind its answer (within 5 s, or the
# connection is closed); of a longer one the answer says close. As much as gunicorn's parser takes (`_DRAIN_MAX_BYTES`).
DISCARDED = 65536 - 1024


class Interruption:
    """Once it is set, every thread that waits for a client is woken, and none waits again."""

    def __init__(self) -> None:
        self.descriptor, self._end = os.pipe()  # readable once the other end is closed

    def set(self) -> None:
        """Wake them all. Once."""
        os.close(self._end)


class ClientSocket(socket.socket):
    """A client's connection, on which a thread waits: until it is interrupted, or nothing moves for KEEP_ALIVE."""

    def __init__(self, accepted: socket.socket, interruption: Interruption) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._interruption = interruption
        self._turn = threading.Lock()
        self._begun = False
        self._answered_for = False
        self.interrupted = False
        self.left = False

    def next_request(self) -> None:
        """A request begins: none of its answer has been sent."""
        self._begun = False

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As a socket's; raises BrokenPipeError when interrupted."""
        self._await(select.POLLIN)
        data = super().recv(size, flags)
        self.left = not data
        return data

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As a socket's; raises BrokenPipeError when interrupted."""
        with self._turn:
            if self._answered_for:
                raise _broken("the request has been answered for its thread")
            self._begun = True
        rest = memoryview(data)
        while rest:
            try:
                sent = self.send(rest, flags | socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self.gettimeout() == 0:
                    raise
                self._await(select.POLLOUT)
            else:
                rest = rest[sent:]

    def answer_instead(self, response: bytes) -> bool:
        """Answer for a thread that does not, and close our half; False if it has begun to answer."""
        with self._turn:
            if self._begun or self._answered_for:
                return False
            self._answered_for = True
        with contextlib.suppress(OSError):  # its client has left
            self.send(response, socket.MSG_DONTWAIT)
            self.shutdown(socket.SHUT_WR)
        return True

    def _await(self, event: int) -> None:
        """Wait until the client has sent, or can be sent to; not at all on a non-blocking socket."""
        timeout = self.gettimeout()
        if timeout == 0:
            return
        poll = select.poll()
        poll.register(self.fileno(), event)
        poll.register(self._interruption.descriptor, select.POLLIN)
        ready = dict(poll.poll((KEEP_ALIVE if timeout is None else timeout) * 1000))
        if self.fileno() in ready:
            return
        if not ready:
            raise _broken("the client has stalled") if timeout is None else TimeoutError("timed out")
        self.interrupted = True
        raise _broken("the service is shutting down and waits no longer for this client")


class DrainBody(Body):
    """A request's body, which may turn out not to be valid HTTP."""


def _telling(read: Callable[..., bytes]) -> Callable[..., bytes]:
    """`read`, with what is not valid HTTP told as such."""

    def telling(self: Body, *args: Any, **kwargs: Any) -> bytes:
        try:
            return read(self, *args, **kwargs)
        except _INVALID_BODY as error:
            raise InvalidRequest(str(error)) from error

    return telling


# Where all of it reads from the client: one method since gunicorn 27.
for _name in ("_read_reader",) if hasattr(Body, "_read_reader") else ("read", "readline"):
    setattr(DrainBody, _name, _telling(getattr(Body, _name)))


class DrainResponse(Response):
    """A response as the other servers send it, and the gate's idea of its client."""

    sock: ClientSocket
    admitted: InFlightRequest | None = None  # the gate does that itself

    def default_headers(self) -> list[str]:
        """Status line and the server's own headers; what HTTP/1.1 takes for granted is not said.

        When a body has not been read by now, and is too long to be thrown away, the connection's end is announced.
        """
        if _unread(self.req.body) > DISCARDED:
            self.force_close()
        return [header for header in super().default_headers() if header != "Connection: keep-alive\r\n"]

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Take over the application's headers, in place of those of a response that it began before."""
        self.headers: list[tuple[str, str]] = []
        self.response_length = None
        super().process_headers(headers)

    @property
    def interrupted(self) -> bool:
        """Whether we have stopped waiting for the client."""
        return self.sock.interrupted

    @property
    def left(self) -> bool:
        """Whether the client has left in the middle of its request."""
        return self.sock.left

    def when_sent(self, done: Callable[[], None]) -> None:
        """At once: a thread returns from sending when the kernel has everything."""
        done()

    def answer_instead(self, response: bytes) -> bool:
        """Answer in place of the thread."""
        return self.sock.answer_instead(response)

    def broken_off(self) -> Exception:
        """What to raise where the response has to be broken off."""
        return _broken("the service is shutting down")


def _unread(body: Body | None) -> float:
    """Bytes of a body that have not been read, if its head says how many."""
    reader = None if body is None else body.reader
    if isinstance(reader, LengthReader):
        return int(reader.length)
    return math.inf if isinstance(reader, ChunkedReader) and reader.parser is not None else 0


def _broken(why: str) -> BrokenPipeError:
    """What gunicorn takes for a client that left."""
    return BrokenPipeError(errno.EPIPE, why)
