"""The request gate: admits or refuses a request, and knows what is in flight.

Rules:
1. A request is *in flight* from its admission to the end of its response.
2. A *reservation* stands for a request that has arrived but waits for a thread. It was promised an answer:
   it is admitted even after the gate closed, and the gate is not idle before it was.
3. A closed gate stays closed.
4. A gate that keeps no connections admits as before, but each answer is the last on its connection.

Plain state, no lock: the shell calls every method under its own lock, and passes the time in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Protocol

from pooldrain.printable import printable

if TYPE_CHECKING:
    from pooldrain.ledger import Checkout

# Answered in every phase and never counted: probes and the status page have to work while we drain.
UNCOUNTED_PATHS = frozenset({"/livez", "/readyz", "/pool-status"})

# Where in a WSGI environment a server's adapter puts the call that closes the connection after the response: an
# application must not send the Connection header itself (PEP 3333).
CLOSE_CONNECTION = "pooldrain.close_connection"

# Where in a WSGI environment or an ASGI scope a server's adapter puts the request's Client.
CLIENT = "pooldrain.client"

# Bytes that a server hands to the kernel in one go; a longer rest of a response may take its client a while.
ONE_WRITE = 65536

# Statuses whose answers have no body (RFC 9110, 15.3.5 and 15.4.5).
BODILESS = frozenset({204, 304})

# A client's X-Request-ID beyond this length is replaced by a number of our own.
LONGEST_ID = 64

_serial = count(1)

# A client's X-Request-ID; or an ASGI request's headers, in which to look for it when somebody wants to know.
GivenId = str | Iterable[tuple[bytes, bytes]] | None


def route_label(method: str, path: str) -> str:
    """`GET /work`, safe to print: a path may carry line breaks, which would forge log lines."""
    return printable(f"{method} {path}")


class Client(Protocol):
    """Who waits for an answer, as the server's adapter knows it."""

    @property
    def interrupted(self) -> bool:
        """Whether the server has stopped waiting for it: its body did not come, or it did not take its answer."""
        ...

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` as soon as all that the application has sent is in the kernel's hands, or never will be."""

    def answer_instead(self, response: bytes) -> bool:
        """Answer in place of whoever serves the request, and close; False if an answer has begun already."""
        ...


class InFlightRequest:
    """One admitted request: who it is, since when, and which connections it holds."""

    # Defaults live in the class: a request is made for every answer, and few of them change.
    status: int | None = None  # HTTP status, once its headers are built
    answered = False  # its last bytes are on their way
    cancelled = False  # the drain timed out while it was in flight
    broken = False  # its response ended before it was complete
    unwound = False  # what served it failed because it was cancelled, be it after the answer
    given_up = False  # and it did not unwind in time
    ended = False
    client: Client | None = None  # if the server tells

    def __init__(self, method: str, path: str, given_id: GivenId, started: float, worker: object = None) -> None:
        self.method = method
        self.path = path
        self.given_id = given_id
        self.serial = next(_serial)
        self.started = started  # monotonic seconds
        self.worker = worker  # what runs it (an asyncio task), opaque to the core
        self.checkouts: dict[Checkout, None] = {}

    @property
    def route(self) -> str:
        """Method and path, without the query: a query may carry secrets."""
        return route_label(self.method, self.path)

    @property
    def request_id(self) -> str:
        """The client's X-Request-ID, if it is fit to be printed, or a number of our own."""
        given = self.given_id
        if given is not None and not isinstance(given, str):
            given = next((value.decode("latin-1") for name, value in given if name == b"x-request-id"), None)
        if given and len(given) <= LONGEST_ID and given.isascii() and given.isprintable():
            return given
        return f"r{self.serial}"

    @property
    def was_cut(self) -> bool:
        """Whether the shutdown ended it: cancelled, and without an answer of its own or with work left after it."""
        if self.given_up or not self.cancelled:
            return self.given_up
        interrupted = self.client is not None and self.client.interrupted
        return self.unwound or interrupted or self.broken or self.status is None or self.status >= 500


class Reservation:
    """The promise of an answer to a request that waits for a thread."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = True


# Which request (or waiting reservation) the running code serves; a context variable, because a thread or
# a task alone does not say: tasks are handed work, threads are reused.
CURRENT_REQUEST: ContextVar[InFlightRequest | None] = ContextVar("pooldrain_current_request", default=None)
CURRENT_RESERVATION: ContextVar[Reservation | None] = ContextVar("pooldrain_current_reservation", default=None)


class RequestGate:
    """Admits requests while open, refuses them once closed, counts both."""

    def __init__(self) -> None:
        self.accepting = True
        self.keep_alive = True  # whether a connection is kept after an answer
        self.in_flight: dict[InFlightRequest, None] = {}  # a dict keeps the order of admission
        self.waiting = 0  # reservations not yet admitted
        self.finished = 0
        self.refused = 0
        self.cut: list[InFlightRequest] = []

    @property
    def active(self) -> int:
        """Requests in flight, those waiting for a thread included."""
        return len(self.in_flight) + self.waiting

    @property
    def unanswered(self) -> int:
        """The same without those whose last bytes are on their way: their clients may already believe them over."""
        return sum(not request.answered for request in self.in_flight) + self.waiting

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self.in_flight and not self.waiting

    def reserve(self) -> Reservation | None:
        """Promise an answer to a request that has arrived; None once the gate is closed."""
        if not self.accepting:
            return None
        self.waiting += 1
        return Reservation()

    def release(self, reservation: Reservation) -> None:
        """Take back a promise that no request came to claim (the client left, or sent no valid request)."""
        if reservation.pending:
            reservation.pending = False
            self.waiting -= 1

    def admit(
        self,
        method: str,
        path: str,
        given_id: GivenId,
        now: float,
        reservation: Reservation | None = None,
        worker: object = None,
    ) -> InFlightRequest | None:
        """The request, now in flight; None when it has to be refused. `now` in monotonic seconds."""
        promised = reservation is not None and reservation.pending
        if not self.accepting and not promised:
            self.refused += 1
            return None
        request = InFlightRequest(method, path, given_id, now, worker)
        self.in_flight[request] = None
        if reservation is not None:
            self.release(reservation)
        return request

    def finish(self, request: InFlightRequest) -> None:
        """The response of `request` is finished (or will never be)."""
        del self.in_flight[request]
        request.ended = True
        if not request.cancelled or not request.was_cut:
            self.finished += 1
        elif not request.given_up:
            self.cut.append(request)

    def close(self) -> None:
        """Refuse every request from now on, except those that hold a reservation."""
        self.accepting = False
        self.keep_alive = False

    def cancel(self) -> list[InFlightRequest]:
        """Mark everything in flight as cancelled and return it, oldest first."""
        for request in self.in_flight:
            request.cancelled = True
        return list(self.in_flight)

    def give_up(self) -> list[InFlightRequest]:
        """Count what is still in flight as cut, whatever becomes of it, and return it."""
        for request in self.in_flight:
            request.cancelled = request.given_up = True
            self.cut.append(request)
        return list(self.in_flight)
