"""One request and its answer, as WSGI has them (PEP 3333), and the gate's idea of its client."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import formatdate
from io import UnsupportedOperation
from typing import Any

from pooldrain.answers import Answer
from pooldrain.gate import BODILESS
from pooldrain.in_flight import InFlightRequest
from pooldrain_sync.engine.connection import Connection, FilePart
from pooldrain_sync.engine.request import Request
from pooldrain_sync.engine.tls import TlsSocket

SOFTWARE = "pooldrain"

# What a header is made of (RFC 9110, 5.1 and 5.5); anything else could end the head, and begin another answer.
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
_STATUS = re.compile(r"[1-9][0-9][0-9](?: [ \t\x21-\x7e\x80-\xff]*)?")

# What concerns the connection is the server's (PEP 3333, "Other HTTP Features").
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailers", "transfer-encoding", "upgrade"),
    }
)


class _Date:
    """The time of an answer, made once a second."""

    def __init__(self) -> None:
        self._made = (0, "")

    def now(self) -> str:
        """As HTTP has it."""
        second = int(time.time())
        made = self._made
        if made[0] != second:
            made = self._made = (second, formatdate(second, usegmt=True))
        return made[1]


_date = _Date()


class FileWrapper:
    """`wsgi.file_wrapper`: a file in blocks; the kernel sends it itself where it can."""

    def __init__(self, file: Any, block_size: int = 65536) -> None:
        self.file = file
        self._block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        while block := self.file.read(self._block_size):
            yield block

    def part(self) -> FilePart | None:
        """The rest of the file, for the kernel to send; None if it is no file, or not one that is read as it is."""
        try:
            fd, offset = self.file.fileno(), self.file.tell()
            size = os.fstat(fd).st_size - offset
            if size <= 0 or os.lseek(fd, 0, os.SEEK_CUR) < 0 or "b" not in getattr(self.file, "mode", "b"):
                return None
            return FilePart(fd, offset, size)
        except (AttributeError, OSError, UnsupportedOperation, ValueError):
            return None


class Exchange:
    """A request that is served: its `start_response`, and what its answer becomes on the wire."""

    # Defaults live in the class: an exchange is made for every answer, and few of them change.
    _head = b""  # built, and not sent yet
    _built = False
    _chunked = False
    _bodiless = False
    _left: int | None = None  # bytes of the body still to come, if somebody has said how many
    _status = ""
    _headers: Sequence[tuple[str, str]] = ()
    _close = False

    def __init__(self, conn: Connection, request: Request) -> None:
        self.conn = conn
        self.request = request

    # --- the gate's client ------------------------------------------------------------------------------------

    @property
    def admitted(self) -> InFlightRequest | None:
        """Its request, if it was admitted before its body had come."""
        return self.request.admitted

    @property
    def interrupted(self) -> bool:
        """Whether we have stopped waiting for the client."""
        return self.conn.interrupted

    @property
    def left(self) -> bool:
        """Whether it has left in the middle of its request."""
        return self.conn.left

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` as soon as everything is in the kernel's hands."""
        self.conn.when_sent(done)

    def answer_instead(self, response: bytes) -> bool:
        """Answer in place of the thread."""
        return self.conn.answer_instead(response)

    def broken_off(self) -> Exception:
        """What to raise where the response has to be broken off."""
        return BrokenPipeError(errno.EPIPE, "the service is shutting down")

    def sendable(self, body: Iterable[bytes]) -> Iterable[Any]:
        """The body, or what the kernel sends in its place."""
        plain = not isinstance(self.conn.sock, TlsSocket)  # else the kernel could not encrypt it
        if plain and isinstance(body, FileWrapper) and (part := body.part()) is not None:
            return (part,)
        return body

    # --- the answer -------------------------------------------------------------------------------------------

    def force_close(self) -> None:
        """Close the connection after this answer."""
        self._close = True

    @property
    def keeps(self) -> bool:
        """Whether the connection is kept after this answer."""
        return not self._close and self.request.keep_alive and not self.conn.broken and self.request.complete

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        """Begin the answer, or begin it anew as long as nothing was sent. Raises ValueError for what is no header."""
        if exc_info:
            try:
                if self._built:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._status:
            raise AssertionError("the response has been begun already")
        if not _STATUS.fullmatch(status):
            raise ValueError(f"{status!r} is no status")
        self._left = None
        kept = []
        for name, value in headers:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header")
            if not _VALUE.fullmatch(value):
                raise ValueError(f"the value of the header {name} is none")  # it may be a secret
            lower = name.lower()
            if lower == "content-length":
                self._left = int(value)
            elif lower in _HOP_BY_HOP:
                continue
            kept.append((name, value))
        self._status = status
        self._headers = kept
        return self.write

    def _build_head(self) -> None:
        request = self.request
        code = int(self._status[:3])
        self._built = True
        self._bodiless = request.method == "HEAD" or code in BODILESS or code < 200
        lines = [f"HTTP/1.1 {self._status}"]
        own = True
        dated = False
        for name, value in self._headers:
            lines.append(f"{name}: {value.strip()}")
            size = len(name)
            if size == 6 and name.lower() == "server":
                own = False
            elif size == 4 and name.lower() == "date":
                dated = True
        if own:
            lines.append("Server: " + SOFTWARE)
        if not dated:
            lines.append("Date: " + _date.now())
        if self._left is None and not self._bodiless:
            if request.version == "1.0":
                self._close = True  # its end is the body's
            else:
                self._chunked = True
                lines.append("Transfer-Encoding: chunked")
        if not request.complete:
            self._close = True  # what is still to come of its body is not read
        if self._close or not request.keep_alive:
            lines.append("Connection: close")
        elif request.version == "1.0":
            lines.append("Connection: keep-alive")
        self._head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def write(self, data: bytes | FilePart) -> None:
        """Send a part of the body, the head in front of the first. Raises OSError if the client has left."""
        if not self._built:
            if not self._status:
                raise AssertionError("the application has not called start_response")
            self._build_head()
        else:
            self.conn.await_room()
        head, self._head = self._head, b""
        size = len(data)
        if self._bodiless or not size:
            if head:
                self.conn.send(head)
            return
        if self._left is not None:
            if size > self._left:
                data, size = data[: self._left], self._left  # type: ignore[index]  # a file's length is never wrong
            self._left -= size
        if isinstance(data, FilePart):
            if self._chunked:
                head += b"%x\r\n" % size
            if head:
                self.conn.send(head)
            self.conn.send(data)
            if self._chunked:
                self.conn.send(b"\r\n")
        elif self._chunked:
            self.conn.send(b"%b%x\r\n%b\r\n" % (head, size, data))
        else:
            self.conn.send(head + data if head else bytes(data))

    def finish(self) -> None:
        """The body is complete. Raises OSError if the client has left."""
        if not self._built:
            self.write(b"")
        elif self._head:
            head, self._head = self._head, b""
            self.conn.send(head)
        if self._chunked:
            self.conn.send(b"0\r\n\r\n")
        if self._left and not self._bodiless:
            self._close = True  # the body was shorter than announced

    def answer(self, answer: Answer) -> None:
        """Send a whole answer in place of the application's; raises OSError if the client has left."""
        if answer.close:
            self._close = True
        self._status = answer.status_line
        self._headers = answer.headers
        self._left = len(answer.body)
        self._chunked = False
        self.write(answer.body)
