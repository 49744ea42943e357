"""The listening socket, and what all servers do alike with connections: how long they live, who refuses them.

It is bound before anything else is started: a port in use is told at once, in one line.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import os
import select
import selectors
import socket
import stat
import struct
import sys
import termios
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from pooldrain.errors import StartupError

BACKLOG = 2048  # connections the kernel keeps for us

# Seconds for which a client may send nothing of a body that is waited for, or take nothing of its answer.
STALLED = 75

# Seconds to wait for the client's end of a connection that we half-closed.
LINGER_LIMIT = 2.0

# Connections that one process of the threaded backend keeps at once; further clients wait in the kernel's queue.
MOST_CONNECTIONS = 20_000

# Seconds in which a client that has just connected sends its first bytes, on a busy machine, too: until then its
# connection is not closed at the end, for what it is about to send would be reset.
FIRST_BYTES = 0.25

# Seconds for which a worker that retires keeps a connection on which nothing comes: a client that has just read an
# answer may be about to send its next request.
IDLE_LIMIT = 2

# Threads of a threaded server that do nothing but refuse while draining.
REFUSING_THREADS = 2

# Connections accepted in one go before others are looked after.
ACCEPT_BATCH = 64

# Seconds for which nothing is accepted when the process, or the machine, has no room for another connection.
ACCEPT_PAUSE = 1.0

# Seconds for which a client that is to be refused may be silent while others wait for its descriptor.
SCARCE = 0.01

# Seconds between two turns of a server's loop of which the first has failed.
BROKEN_PAUSE = 0.05


_paths: dict[str, tuple[int, int]] = {}  # of Unix sockets that we have bound: device and inode


def bind_socket(host: str, port: int, mode: int = 0o666, flag: str = "--bind") -> socket.socket:
    """A bound socket that does not listen yet. Port 0: the kernel picks one. Raises StartupError.

    A `host` that begins with a slash is the path of a Unix socket, which gets this `mode`. `flag`: what asked for it.
    """
    if is_path(host):
        return _bind_path(host, mode, flag)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: asyncio sets TCP_NODELAY only on what is TCP by its own account.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise cannot_listen(host, port, error, flag) from error
    listener.set_inheritable(True)
    return listener


def bind_all(addresses: Sequence[tuple[str, int]], mode: int) -> list[socket.socket]:
    """A bound socket for each of these, or none of them. Raises StartupError."""
    bound: list[socket.socket] = []
    try:
        for host, port in addresses:
            bound.append(bind_socket(host, port, mode))
    except StartupError:
        for listener in bound:
            _unlink(listener)
            listener.close()
        raise
    return bound


class Listeners:
    """Several listening sockets, as a server sees one: readable as soon as any of them has a client.

    Its descriptor is a poller's own, which other pollers can wait for (epoll(7), kqueue(2)).
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = tuple(sockets)
        self.family = self.sockets[0].family
        self.type, self.proto = self.sockets[0].type, self.sockets[0].proto
        self._selector = selectors.DefaultSelector()
        for each in self.sockets:
            self._selector.register(each, selectors.EVENT_READ)
        self._next = 0  # whose turn it is
        self._closed = False

    def fileno(self) -> int:
        """The poller's descriptor; -1 once it is closed."""
        if self._closed:
            return -1
        descriptor: int = getattr(self._selector, "fileno")()  # noqa: B009 - of the pollers that have one
        return descriptor

    def getsockname(self) -> Any:
        """The first one's address."""
        return self.sockets[0].getsockname()

    def setblocking(self, blocking: bool) -> None:
        """For all of them."""
        for each in self.sockets:
            each.setblocking(blocking)

    def listen(self, backlog: int) -> None:
        """All of them. Raises OSError."""
        for each in self.sockets:
            each.listen(backlog)

    def accept(self) -> tuple[socket.socket, Any]:
        """A client of any of them, by turns. Raises BlockingIOError if there is none, and OSError."""
        for _ in self.sockets:
            self._next = (self._next + 1) % len(self.sockets)
            try:
                return self.sockets[self._next].accept()
            except BlockingIOError:
                continue
        raise BlockingIOError

    def close(self) -> None:
        """All of them."""
        self._closed = True
        self._selector.close()
        for each in self.sockets:
            each.close()


Listener = socket.socket | Listeners


def joined(sockets: Sequence[socket.socket]) -> Listener:
    """One listener for all of these."""
    return sockets[0] if len(sockets) == 1 else Listeners(sockets)


def each_of(listener: Listener) -> tuple[socket.socket, ...]:
    """The sockets of a listener."""
    return listener.sockets if isinstance(listener, Listeners) else (listener,)


def _bind_path(path: str, mode: int, flag: str) -> socket.socket:
    """The same for a Unix socket. One that nobody listens on any more is removed first."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        Path(path).chmod(mode)
        bound = Path(path).stat()
    except OSError as error:
        listener.close()
        raise cannot_listen(path, 0, error, flag) from error
    _paths[path] = (bound.st_dev, bound.st_ino)
    listener.set_inheritable(True)
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that a process has left behind. Raises OSError if it is none, or somebody listens on it."""
    try:
        there = Path(path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def is_path(host: str) -> bool:
    """Whether it is the path of a Unix socket, and no host."""
    return host.startswith("/")


def bind_text(host: str, port: int) -> str:
    """An address as it is typed."""
    if is_path(host):
        return f"unix:{host}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_address(listener: Listener) -> tuple[str, int]:
    """Host and port of a listener, or of our end of a connection, as CGI wants them; a Unix socket has none."""
    return ("localhost", 80) if listener.family == socket.AF_UNIX else listener.getsockname()[:2]


_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def keep_from_children(listener: Listener) -> None:
    """Close a listener of this process in its children.

    One that outlives its service would keep the address, and clients would wait in vain.
    """
    _listeners.update(each_of(listener))


def _close_in_child() -> None:
    for listener in _listeners:
        descriptor = listener.detach()  # `close` would wait for the loop that it is registered with
        if descriptor >= 0:
            os.close(descriptor)


os.register_at_fork(after_in_child=_close_in_child)


def cannot_listen(host: str, port: int, error: Exception, flag: str = "--bind") -> StartupError:
    """Why not, in one line."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    other = f"path with {flag} unix:PATH" if is_path(host) else f"address with {flag} HOST:PORT"
    return StartupError(f"cannot listen on {bind_text(host, port)}: {reason}; choose another {other}")


# What the process or the machine has run out of: the connection stays in the queue, and `accept` fails again at once.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Errors of the connection that was to be accepted, not of the listener.
_BROUGHT = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNRESET", "EINTR", "ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "EPERM", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)


class AcceptExhausted(Exception):
    """No descriptor or memory is left for another connection: accept nothing for ACCEPT_PAUSE seconds."""


def accepted(listener: Listener, limit: int = BACKLOG) -> Iterator[tuple[socket.socket, Any]]:
    """The connections that wait on a non-blocking listener, each with its client's address; `limit` at most.

    The one policy of all servers for what `accept` may fail with (accept(2), "Error handling"): a client that has left,
    or an error that its connection brought with it, costs nobody anything; when descriptors or memory have run out
    AcceptExhausted is raised, which says so; anything else is raised as it is, for the listener is broken.
    """
    for _ in range(limit):
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise AcceptExhausted(os.strerror(error.errno)) from error
            if error.errno in _BROUGHT:
                continue
            raise
        yield connection, address or ("", 0)  # whoever comes over a Unix socket has no address


# Linux's number for attaching a classic BPF program to a socket; the socket module does not name it.
_SO_ATTACH_FILTER = 26
# Load the TCP flags, keep SYN and ACK, drop the segment if only SYN is left, pass anything else.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),
        (0x54, 0, 0, 0x12),
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0xFFFFFFFF),
    )
)


def drop_new_connections(listener: Listener) -> None:
    """Have the kernel drop attempts to connect, so that the queue can be emptied and nothing comes after.

    A Unix socket loses its name instead. Without it, what the kernel completes between the last `accept` and `close` is
    reset, with its request. A client whose attempt is dropped tries again after a second, and finds the next process,
    or nobody. Linux only (SO_ATTACH_FILTER, socket(7)); elsewhere that short moment remains.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    for each in each_of(listener):
        if each.family == socket.AF_UNIX:
            _unlink(each)
            continue
        with suppress(OSError):
            option = struct.pack("HL", len(_DROP_SYN) // 8, ctypes.addressof(program))
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def _unlink(listener: socket.socket) -> None:
    """Remove a Unix socket's name, if it is still that of this one."""
    if listener.family == socket.AF_UNIX:
        with suppress(OSError):
            unlink_path(listener.getsockname())


def unlink_path(path: str) -> None:
    """Remove the name of a Unix socket that this process has bound; a successor may have taken it. Raises OSError."""
    there = Path(path).lstat()
    if _paths.get(path) == (there.st_dev, there.st_ino):
        Path(path).unlink()


def has_arrived(connection: int) -> bool:
    """Whether bytes that nobody has read, or the end, have come on a connection, by its descriptor."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


# How many bytes a socket has sent that are not acknowledged, and how many have come that nobody has read (tcp(7)).
_QUEUES = (termios.TIOCOUTQ, termios.FIONREAD) if sys.platform == "linux" else ()


def has_taken_all(connection: int) -> bool:
    """Whether a client has acknowledged all that was sent, our end included, and has sent nothing that is unread.

    If what it has taken says that it is the last, closing the connection (a descriptor) now resets nothing.
    """
    if not _QUEUES:
        return False
    with suppress(OSError):
        return not any(any(fcntl.ioctl(connection, number, bytes(4))) for number in _QUEUES)
    return False


def refuse_queued(listener: Listener, response: bytes, deadline: float = math.inf) -> int:
    """Answer every connection that the kernel still queues with `response`, all together, then close the listener.

    For who is the last to listen: what came too late is refused, not reset. Waits FIRST_BYTES at most for the requests,
    as long again for the clients to take their answers, and not beyond `deadline` (monotonic seconds). Returns how many
    were refused.
    """
    drop_new_connections(listener)
    listener.setblocking(False)
    with closing(listener), _LateClients(response) as late:
        silent_until = time.monotonic() + FIRST_BYTES
        exhausted = late.accept(listener)
        while late:
            now = time.monotonic()
            until = min(deadline, silent_until if late.silent else late.answered_at + FIRST_BYTES)
            late.attend(SCARCE if exhausted else until - now)
            if exhausted or now >= silent_until:
                late.close_silent()
            if now >= min(deadline, max(silent_until, late.answered_at + FIRST_BYTES)):
                break
            if exhausted:
                exhausted = late.accept(listener)
        return late.refused


class _LateClients:
    """Clients that are refused, all at the same time and none waiting for another."""

    def __init__(self, response: bytes) -> None:
        self._response = response
        self._poll = select.poll()  # needs no descriptor of its own
        self._clients: dict[int, socket.socket] = {}
        self.silent: set[int] = set()  # those that have sent nothing yet
        self.refused = 0
        self.answered_at = -math.inf  # the last of them, in monotonic seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in list(self._clients):
            self._close(descriptor)

    def __len__(self) -> int:
        return len(self._clients)

    def accept(self, listener: Listener) -> bool:
        """Accept who is queued; True if there was no room for all of them."""
        try:
            for client, _address in accepted(listener):
                client.setblocking(False)
                self._clients[client.fileno()] = client
                self.silent.add(client.fileno())
                self._poll.register(client, select.POLLIN)
        except AcceptExhausted:
            return True
        return False

    def attend(self, seconds: float) -> None:
        """Answer whose request has come, close who has closed; wait so long at most for something to do."""
        for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000):
            client = self._clients[descriptor]
            try:
                received = client.recv(65536)
                if received and descriptor in self.silent:
                    client.sendall(self._response)  # it fits into any empty buffer
                    client.shutdown(socket.SHUT_WR)  # the rest when the client has closed: unread bytes reset an answer
                    self.refused += 1
                    self.answered_at = time.monotonic()
            except BlockingIOError:
                continue
            except OSError:
                received = b""
            self.silent.discard(descriptor)
            if not received:
                self._close(descriptor)

    def close_silent(self) -> None:
        """Wait for nobody's request any more."""
        for descriptor in list(self.silent):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self.silent.discard(descriptor)
        self._clients.pop(descriptor).close()
