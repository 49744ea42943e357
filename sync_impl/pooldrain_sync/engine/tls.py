"""A client's socket that speaks TLS, as the engine uses sockets: non-blocking, and by several threads."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress


class TlsSocket:
    """What stands for a client's socket. Raises BlockingIOError where TLS has to wait, whatever it waits for.

    One lock for both directions, for OpenSSL has none. The handshake is a part of the first `recv`.
    """

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        """`client` is non-blocking, and this one's from now on. Raises OSError if it has left."""
        self._tls = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._tls.fileno()

    def recv(self, size: int) -> bytes:
        """What has come, all that is decrypted of it: no poller tells of that."""
        with self._lock:
            try:
                data = self._tls.recv(size)
                while data and (more := self._tls.pending()):
                    data += self._tls.recv(more)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Send some of it; how much."""
        with self._lock:
            try:
                return self._tls.send(data)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Say that nothing more comes, in TLS's own words first."""
        with self._lock:
            with suppress(OSError, ValueError):  # its answer is not waited for
                self._tls.unwrap()
            socket.socket.shutdown(self._tls, how)  # not SSLSocket's, which would forget that it speaks TLS

    def close(self) -> None:
        """Close it."""
        self._tls.close()
