"""Clients that misbehave, each in a way of its own. What becomes of their requests is their own affair."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

_CONNECT_TIMEOUT = 5.0
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset

# Orders of theirs must never be found half-written; this is a whole one, of which only a part is sent.
HALF_ORDER = "half-sent"
_ORDER = b'{"id": "half-sent", "item": "notebook", "quantity": 1}'


def _silent(client: socket.socket) -> None:
    """Connects, and says nothing."""


def _half_head(client: socket.socket) -> None:
    """Begins a request, and stops in its head."""
    client.sendall(b"GET /db-test HTTP/1.1\r\nHost: localhost\r\nX-Slow")


def _half_body(client: socket.socket) -> None:
    """Sends a part of the body that it has announced."""
    head = f"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(_ORDER)}\r\n\r\n"
    client.sendall(head.encode() + _ORDER[:-8])


def _leaver(client: socket.socket) -> None:
    """Asks for something slow, and leaves."""
    client.sendall(b"GET /work?ms=300 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.close()


def _crasher(client: socket.socket) -> None:
    """The same, with a reset."""
    client.sendall(b"GET /work?ms=300 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    client.close()


def _chatterbox(client: socket.socket) -> None:
    """Sends requests without waiting for answers, and reads none."""
    client.sendall(b"GET /db-test HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5)


def _babbler(client: socket.socket) -> None:
    """Speaks something else."""
    client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n")


def _watcher(client: socket.socket) -> None:
    """Opens a stream of events, and looks at none of them."""
    client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")


def _talker(client: socket.socket) -> None:
    """Opens a WebSocket, says a word, and does not answer when it is sent away."""
    handshake = (
        "GET /talk HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    client.sendall(handshake.encode())
    client.recv(1)
    client.sendall(b"\x81\x82\x00\x00\x00\x00hi")  # a text frame of two letters, masked with zeros


def _flooder(client: socket.socket) -> None:
    """The same, with many words at once, and reads none of the answers."""
    _talker(client)
    client.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        for _ in range(1000):
            client.sendall(b"\x81\xfe\x10\x00\x00\x00\x00\x00" + b"x" * 4096)


# Of an application that has streams of events and WebSockets: `/events` and `/talk`.
VISITORS: dict[str, Callable[[socket.socket], None]] = {"watcher": _watcher, "talker": _talker, "flooder": _flooder}

MANNERS: dict[str, Callable[[socket.socket], None]] = {
    "silent": _silent,
    "half-head": _half_head,
    "half-body": _half_body,
    "leaver": _leaver,
    "crasher": _crasher,
    "chatterbox": _chatterbox,
    "babbler": _babbler,
}


class RudeClients:
    """Some of them, on one service; they let go at the end of the context."""

    def __init__(self, address: tuple[str, int], manners: tuple[str, ...]) -> None:
        self._address = address
        self._manners = manners
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for manner in self._manners:
            with contextlib.suppress(OSError):
                client = self._stack.enter_context(socket.create_connection(self._address, _CONNECT_TIMEOUT))
                (MANNERS | VISITORS)[manner](client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
