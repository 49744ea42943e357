"""A load client that accounts for every request: what was written, what came back, and when.

One thread drives many clients over non-blocking sockets, so that it can look at a connection in the very
moment before it writes. Every request that is taken from a workload ends in exactly one outcome:

ANSWERED  A complete response arrived, with any status but 503.
REFUSED   A complete response with status 503 arrived.
NOT_SENT  No byte of the request was written: connecting failed, or the *fresh* connection was already closed
          by the server when the client looked, right before writing. A *reused* keep-alive connection that
          is found closed at that moment costs nothing: the request goes out on a new connection (RFC 9112
          9.3.1 lets a server close an idle connection), and only what happens there counts.
LOST      At least one byte of the request was written and no complete response followed: reset, truncated,
          closed without an answer, no answer in time, or not HTTP. A close that arrives *after* the request was
          written counts here too, although HTTP would let a client retry: the user asked and got no answer.

A client stops when its workload ends, when it is told to, or when connecting is refused: nobody listens any more.
Times are seconds on the monotonic clock. A request counts as sent when its last byte was handed to the kernel.
"""

from __future__ import annotations

import errno
import itertools
import json
import random
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from pooldrain_compare.harness.http import MalformedResponseError, ResponseReader, header_lines, problem_detail

CONNECT_TIMEOUT = 10.0
REQUEST_TIMEOUT = 60.0
# A server that closes this many fresh connections in a row unseen is gone or broken: the client gives up.
GIVE_UP_AFTER = 50
_TICK = 0.25  # how often the request bound is checked; nothing else waits for it
_KEPT_REFUSALS = 16


class Outcome(Enum):
    """What became of a request; see the module's text."""

    ANSWERED = "answered"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    LOST = "lost"


class Mode(Enum):
    """How a client uses connections."""

    KEEP_ALIVE = "keep-alive"
    NEW = "new-connection"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be written. `route` groups requests in reports; `order` is a POSTed order's id.

    `identity` goes out as X-Request-ID, by which a report can be searched for it.
    """

    method: str
    target: str
    route: str
    body: bytes = b""
    order: str | None = None
    identity: str | None = None

    def wire(self, mode: Mode, host: str) -> bytes:
        """The bytes on the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {host}"]
        if mode is Mode.NEW:
            lines.append("Connection: close")
        if self.identity is not None:
            lines.append(f"X-Request-ID: {self.identity}")
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + self.body


Workload = Callable[[int], Iterator[Request]]  # from the number of a client to what it asks, in order


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what became of it."""

    outcome: Outcome
    mode: Mode
    route: str
    sent_at: float | None  # None: not sent, or not all of it
    ended_at: float  # the last byte of the response was read, or the failure was seen
    status: int | None
    reason: str  # why it was not sent or lost; empty otherwise
    order: str | None
    reused: bool  # it went out on a connection that had served before
    identity: str | None = None
    detail: str = ""  # what the problem document of a request with an identity says, for a status of 500 or more


@dataclass(frozen=True, slots=True)
class Refusal:
    """A 503 as it came: header lines without Date and Server, and the body."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(slots=True)
class LoadResult:
    """Everything that was asked and what became of it."""

    exchanges: list[Exchange] = field(default_factory=list)
    refusals: set[Refusal] = field(default_factory=set)  # distinct 503s, a few at most
    stale: int = 0  # reused connections found closed before writing; no request was harmed
    unsolicited: int = 0  # reused connections on which the server had spoken unasked
    clients: int = 0

    def count(self, outcome: Outcome, mode: Mode | None = None) -> int:
        """Number of requests with this outcome, in one mode or in both."""
        return sum(1 for e in self.exchanges if e.outcome is outcome and (mode is None or e.mode is mode))

    @property
    def lost(self) -> list[Exchange]:
        """The lost requests."""
        return [e for e in self.exchanges if e.outcome is Outcome.LOST]

    @property
    def statuses(self) -> Counter[int]:
        """Complete responses by status."""
        return Counter(e.status for e in self.exchanges if e.status is not None)

    @property
    def reasons(self) -> Counter[str]:
        """Requests that were lost or not sent, by reason."""
        return Counter(f"{e.outcome.value}: {e.reason}" for e in self.exchanges if e.reason)

    @property
    def last_answer(self) -> float | None:
        """When the last complete response, of any status, had been read."""
        return max((e.ended_at for e in self.exchanges if e.status is not None), default=None)

    @property
    def first_answer(self) -> float | None:
        """When the first complete response had been read."""
        return min((e.ended_at for e in self.exchanges if e.status is not None), default=None)

    def sent_before(self, instant: float) -> list[Exchange]:
        """Requests written in full before `instant` and not finished by then: in flight for the client."""
        return [e for e in self.exchanges if e.sent_at is not None and e.sent_at < instant < e.ended_at]

    def orders(self, outcome: Outcome) -> list[str]:
        """Ids of the orders with this outcome; an answered one counts only when it was acknowledged (2xx)."""
        return [
            e.order
            for e in self.exchanges
            if e.order is not None
            and e.outcome is outcome
            and (outcome is not Outcome.ANSWERED or e.status in (200, 201))
        ]


def closed_before_write(sock: socket.socket, *, fresh: bool) -> str:
    """Why this connection must not be written on, or "" when it may: asked right before each write."""
    if fresh and _is_own_echo(sock):
        return "refused"  # connecting to a free ephemeral port can meet itself: nobody listens there
    try:
        waiting = sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return ""
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # still connecting, on systems that say so
            return ""
        return "reset before the request was written"
    return "unsolicited bytes" if waiting else "closed before the request was written"


class _Client:
    """State of one client; decided and moved only by LoadClient."""

    __slots__ = (
        "deadline", "done", "failures", "mode", "reader", "registered", "request",
        "sent_at", "sock", "used", "wire", "workload", "written",
    )  # fmt: skip

    def __init__(self, mode: Mode, workload: Iterator[Request]) -> None:
        self.mode = mode
        self.workload = workload
        self.done = False
        self.request: Request | None = None
        self.wire = b""
        self.written = 0
        self.sent_at: float | None = None
        self.deadline = 0.0
        self.sock: socket.socket | None = None
        self.registered = 0  # the selector events the socket is registered for
        self.used = False  # the connection has served a request
        self.reader = ResponseReader()
        self.failures = 0  # requests not sent, in a row


class LoadClient:
    """Many concurrent clients, half of them keep-alive, without think time, in one thread.

    `start()` runs them in a thread of their own, `run()` in the caller's. The counters may be read at any time.
    """

    def __init__(
        self,
        address: tuple[str, int],
        workload: Workload,
        *,
        clients: int = 40,
        modes: tuple[Mode, ...] = (Mode.KEEP_ALIVE, Mode.NEW),
        connect_timeout: float = CONNECT_TIMEOUT,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self.result = LoadResult(clients=clients)
        self.answered = 0
        self.refused = 0
        self._address = address
        self._host = f"{address[0]}:{address[1]}"
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._clients = [_Client(modes[n % len(modes)], workload(n)) for n in range(clients)]
        self._selector = selectors.DefaultSelector()
        self._wires: dict[tuple[int, Mode], tuple[Request, bytes]] = {}
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    # -- control ---------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Run in a thread."""
        self._thread = threading.Thread(target=self._run_in_thread, name="load", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ask every client to end after the request it is at."""
        self._stopping = True

    def join(self, timeout: float) -> LoadResult:
        """Wait until all clients have ended, or give up on them after `timeout` seconds: TimeoutError."""
        assert self._thread is not None, "the load has not been started"
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.stop()
            raise TimeoutError(f"the load did not end within {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self.result

    @property
    def running(self) -> bool:
        """Some client has not ended."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def in_flight(self) -> int:
        """Requests written and not answered at this moment."""
        return sum(1 for client in self._clients if client.sent_at is not None)

    def run(self) -> LoadResult:
        """Run all clients until they have ended."""
        try:
            for client in self._clients:
                self._advance(client)
            left = len(self._clients)
            next_check = time.monotonic() + _TICK
            while left:
                for key, _ in self._selector.select(_TICK):
                    self._on_event(key.data)
                now = time.monotonic()
                if now >= next_check:
                    next_check = now + _TICK
                    self._check_deadlines(now)
                left = sum(1 for client in self._clients if not client.done)
        finally:
            for client in self._clients:
                self._close(client)
            self._selector.close()
        return self.result

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - handed to whoever joins
            self._error = error

    # -- the life of a request -------------------------------------------------------------------------

    def _advance(self, client: _Client) -> None:
        """Go on until this client has to wait for the network, or has ended."""
        while not client.done:
            if client.request is None and not self._take(client):
                return
            if client.sock is None:
                self._open(client)
            assert client.sock is not None
            closed = "" if client.written else closed_before_write(client.sock, fresh=not client.used)
            if closed:
                self._found_closed(client, closed)
                continue
            try:
                client.written += client.sock.send(client.wire[client.written :] if client.written else client.wire)
            except (BlockingIOError, InterruptedError):
                self._register(client, selectors.EVENT_WRITE)
                return
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    self._register(client, selectors.EVENT_WRITE)
                    return
                self._write_failed(client, error)
                continue
            if client.written < len(client.wire):
                self._register(client, selectors.EVENT_WRITE)
                return
            client.sent_at = time.monotonic()
            client.deadline = client.sent_at + self._request_timeout
            self._register(client, selectors.EVENT_READ)
            return

    def _take(self, client: _Client) -> bool:
        request = None if self._stopping else next(client.workload, None)
        if request is None:
            self._retire(client)
            return False
        client.request = request
        kept = self._wires.get((id(request), client.mode))
        if kept is None:
            kept = request, request.wire(client.mode, self._host)
            once = request.order is not None or request.identity is not None
            if not once and len(self._wires) < 4096:
                self._wires[id(request), client.mode] = kept
        client.wire = kept[1]
        client.written = 0
        client.sent_at = None
        client.reader = ResponseReader()
        return True

    def _open(self, client: _Client) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sock, client.used, client.registered = sock, False, 0
        client.deadline = time.monotonic() + self._connect_timeout
        sock.connect_ex(self._address)  # a failure shows when the connection is looked at, just before writing

    def _found_closed(self, client: _Client, closed: str) -> None:
        self._close(client)
        if client.used:
            self.result.stale += 1
            self.result.unsolicited += closed == "unsolicited bytes"
            client.used = False
            return
        self._not_sent(client, closed)

    def _write_failed(self, client: _Client, error: OSError) -> None:
        partly = client.written > 0
        used = client.used
        self._close(client)
        if partly:
            self._end(client, Outcome.LOST, "closed while the request was being written")
        elif used and not isinstance(error, ConnectionRefusedError):
            self.result.stale += 1
            client.used = False
        else:
            refused = isinstance(error, ConnectionRefusedError)
            self._not_sent(client, "refused" if refused else f"write failed: {_name(error)}")

    def _not_sent(self, client: _Client, reason: str) -> None:
        self._end(client, Outcome.NOT_SENT, reason)
        client.failures += 1
        if reason == "refused" or client.failures >= GIVE_UP_AFTER:
            self._retire(client)

    def _on_event(self, client: _Client) -> None:
        if client.done or client.sock is None:
            return
        if client.sent_at is None:
            self._advance(client)
            return
        try:
            data = client.sock.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            how = "truncated" if client.reader.started else "unanswered"
            self._fail(client, f"{how}: {_name(error)}")
            return
        reader = client.reader
        try:
            complete = reader.feed(data) if data else reader.end_of_stream()
        except MalformedResponseError as error:
            self._fail(client, f"malformed: {error}")
            return
        if complete:
            self._answered(client, reader)
        elif not data:
            self._fail(client, "truncated: closed" if reader.started else "unanswered: closed")

    def _answered(self, client: _Client, reader: ResponseReader) -> None:
        if reader.status == 503:
            self.refused += 1
            outcome = Outcome.REFUSED
            if len(self.result.refusals) < _KEPT_REFUSALS:
                self.result.refusals.add(Refusal(header_lines(reader.head), reader.body))
        else:
            self.answered += 1
            outcome = Outcome.ANSWERED
        client.failures = 0
        assert client.request is not None
        detail = problem_detail(reader.body) if reader.status >= 500 and client.request.identity is not None else ""
        self._end(client, outcome, "", reader.status, detail)
        client.used = True
        if client.mode is Mode.NEW or not reader.keep_alive:
            self._close(client)
        self._advance(client)

    def _fail(self, client: _Client, reason: str) -> None:
        self._close(client)
        self._end(client, Outcome.LOST, reason)
        self._advance(client)

    def _end(self, client: _Client, outcome: Outcome, reason: str, status: int | None = None, detail: str = "") -> None:
        assert client.request is not None
        self.result.exchanges.append(
            Exchange(
                outcome=outcome,
                mode=client.mode,
                route=client.request.route,
                sent_at=client.sent_at,
                ended_at=time.monotonic(),
                status=status,
                reason=reason,
                order=client.request.order,
                reused=client.used,
                identity=client.request.identity,
                detail=detail,
            )
        )
        client.request, client.sent_at = None, None

    def _check_deadlines(self, now: float) -> None:
        for client in self._clients:
            if client.done or client.request is None or now < client.deadline:
                continue
            if client.sent_at is not None:
                self._fail(client, "truncated: timed out" if client.reader.started else "unanswered: timed out")
            elif client.written:
                self._fail(client, "timed out while the request was being written")
            else:
                self._close(client)
                self._not_sent(client, "connecting timed out")
                self._advance(client)

    # -- sockets ---------------------------------------------------------------------------------------

    def _register(self, client: _Client, events: int) -> None:
        if client.registered == events or client.sock is None:
            return
        if client.registered:
            self._selector.modify(client.sock, events, client)
        else:
            self._selector.register(client.sock, events, client)
        client.registered = events

    def _close(self, client: _Client) -> None:
        if client.sock is None:
            return
        if client.registered:
            self._selector.unregister(client.sock)
        client.sock.close()
        client.sock, client.registered = None, 0

    def _retire(self, client: _Client) -> None:
        self._close(client)
        client.done = True


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _is_own_echo(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False


# -- workloads -----------------------------------------------------------------------------------------


def constant(target: str = "/") -> Workload:
    """Every client asks for the same, again and again."""
    request = Request("GET", target, f"GET {target.partition('?')[0]}")
    return lambda _client: itertools.repeat(request)


def mixed(prefix: str, *, seed: int = 1) -> Workload:
    """Reads, queries that hold a connection for 50 to 300 ms, and orders with unique ids that start with `prefix`."""
    reads = (Request("GET", "/", "GET /"), Request("GET", "/db-test", "GET /db-test"))
    work = tuple(Request("GET", f"/work?ms={ms}", "GET /work") for ms in range(50, 301, 10))

    def requests(client: int) -> Iterator[Request]:
        dice = random.Random(seed * 1000 + client)  # noqa: S311 - the same load every time
        for number in itertools.count():
            kind = dice.random()
            if kind < 0.5:
                yield reads[kind < 0.25]
            elif kind < 0.75:
                yield dice.choice(work)
            else:
                yield order(f"{prefix}-{client}-{number}")

    return requests


def order(identity: str) -> Request:
    """A POST /orders with this id."""
    body = json.dumps({"id": identity, "item": "notebook", "quantity": 1}).encode()
    return Request("POST", "/orders", "POST /orders", body, identity)
