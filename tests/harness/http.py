"""An HTTP/1.1 client that hides nothing: raw bytes out, exact headers in, and the way a connection ends."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pooldrain.gate import BODILESS
from tests.harness.waiting import BOUND

Address = tuple[str, int]
Headers = tuple[tuple[str, str], ...]

# What names a server or a moment, or says how a server keeps connections, and nothing about the service.
INCIDENTAL = ("date", "server", "connection", "keep-alive")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, as it came."""

    status: int
    reason: str
    headers: Headers  # as spelt by the server, in its order
    body: bytes
    at: float  # monotonic seconds when its last byte was read

    def header(self, name: str) -> str | None:
        """The header's only value, None if it is absent."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        assert len(values) < 2, f"{name} is sent {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def closes(self) -> bool:
        """Whether the server says that it closes the connection."""
        return (self.header("connection") or "").lower() == "close"

    @property
    def comparable(self) -> tuple[int, str, Headers, bytes]:
        """What has to be equal on all backends."""
        headers = ((name.lower(), value) for name, value in self.headers)
        kept = tuple(sorted(pair for pair in headers if pair[0] not in INCIDENTAL))
        return self.status, self.reason, kept, self.body


class NoAnswerError(AssertionError):
    """The connection ended, or nothing came in time, where an answer was due."""


def request(method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The bytes of a request; a body brings its Content-Length along."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Connection:
    """One connection to a server."""

    def __init__(self, address: Address, timeout: float = BOUND) -> None:
        self._socket = socket.create_connection(address, timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self._asked: deque[str] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def reset(self) -> None:
        """Leave as a crashed client does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def everything(self, timeout: float = BOUND) -> bytes:
        """All bytes until the server's end of the connection."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(NoAnswerError):
            while True:
                self._read(deadline, "the end")
        return self._data

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self._socket.sendall(data)

    def ask(self, method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> Self:
        """Send a request, and do not wait for its answer."""
        self.expect(method)
        self.send(request(method, target, body, headers))
        return self

    def expect(self, method: str) -> None:
        """Remember that an answer to `method` is due: the one to HEAD has no body."""
        self._asked.append(method)

    def await_bytes(self, timeout: float = BOUND) -> None:
        """Wait until something has come, and leave it where it is."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        assert poll.poll(timeout * 1000), f"nothing came within {timeout:g} s"

    def answer(self, timeout: float = BOUND, pace: float | None = None) -> Answer:
        """The next answer that is due; its body is read no faster than `pace`, in bytes per second."""
        method = self._asked.popleft()
        deadline = time.monotonic() + timeout
        while b"\r\n\r\n" not in self._data:
            self._read(deadline, "its headers")
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        _, status, reason = status_line.split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        length = 0
        if method != "HEAD" and int(status) not in BODILESS:
            lengths = [value for name, value in headers if name.lower() == "content-length"]
            assert len(lengths) == 1, f"no answer of the demo's is without one Content-Length: {head!r}"
            length = int(lengths[0])
        while len(self._data) < length:
            before = len(self._data)
            self._read(deadline, f"{length} bytes of its body")
            if pace is not None:
                time.sleep((len(self._data) - before) / pace)
        body, self._data = self._data[:length], self._data[length:]
        return Answer(int(status), reason, headers, body, time.monotonic())

    def get(self, target: str, timeout: float = BOUND) -> Answer:
        """Ask, and wait for the answer."""
        return self.ask("GET", target).answer(timeout)

    def ending(self, timeout: float = BOUND) -> str:
        """Wait for the server's end of the connection: `closed`, `reset`, or `open` if it does not come."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return "open"
        except ConnectionError:
            return "reset"
        assert not data, f"bytes nobody asked for: {self._data + data!r}"
        return "closed"

    def _read(self, deadline: float, awaited: str) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(1 << 19)
        except TimeoutError:
            raise NoAnswerError(f"no answer in time; waiting for {awaited}, got {self._data!r}") from None
        except ConnectionError as error:
            raise NoAnswerError(f"{error}; waiting for {awaited}, got {self._data!r}") from None
        if not data:
            raise NoAnswerError(f"closed; waiting for {awaited}, got {self._data!r}")
        self._data += data


def ask(
    address: Address, method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
) -> Answer:
    """One request on a connection of its own."""
    with Connection(address) as connection:
        return connection.ask(method, target, body, headers).answer()


def get(address: Address, target: str) -> Answer:
    """`GET` on a connection of its own."""
    return ask(address, "GET", target)
