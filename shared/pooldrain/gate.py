"""The request gate: admits or refuses a request, and counts what is in flight.

Rules:
1. A request is *in flight* from its admission to the end of its response.
2. A *reservation* stands for a request that has arrived but waits for a thread. It was promised an answer:
   it is admitted even after the gate closed, and the gate is not idle before it was.
3. A closed gate stays closed.
4. A gate that keeps no connections admits as before, but each answer is the last on its connection.

Plain state, no lock: the shell calls every method under its own lock, and passes the time in.
"""

from __future__ import annotations

from contextvars import ContextVar

from pooldrain.in_flight import GivenId, InFlightRequest

# Where in a WSGI environment a server's adapter puts the call that closes the connection after the response: an
# application must not send the Connection header itself (PEP 3333).
CLOSE_CONNECTION = "pooldrain.close_connection"

# Where in a WSGI environment or an ASGI scope a server's adapter puts the request's Client.
CLIENT = "pooldrain.client"

# Bytes that a server hands to the kernel in one go; a longer rest of a response may take its client a while.
ONE_WRITE = 65536

# Statuses whose answers have no body (RFC 9110, 15.3.5 and 15.4.5).
BODILESS = frozenset({204, 304})


class Reservation:
    """The promise of an answer to a request that waits for a thread."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = True


CURRENT_RESERVATION: ContextVar[Reservation | None] = ContextVar("pooldrain_current_reservation", default=None)


class RequestGate:
    """Admits requests while open, refuses them once closed, counts both."""

    def __init__(self) -> None:
        self.accepting = True
        self.keep_alive = True  # whether a connection is kept after an answer
        self.ends_streams = False  # whether event streams are ended between two events
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
