"""What is in flight: the admitted requests, and the connections that are checked out, which know each other.

Records only. `gate` admits and counts the requests, `ledger` judges the checkouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import count
from typing import Protocol

from pooldrain.leak_rules import LeakRule
from pooldrain.printable import printable
from pooldrain.stacks import RawStack

# A client's X-Request-ID beyond this length is replaced by a number of our own.
LONGEST_ID = 64

_serial = count(1)

# A client's X-Request-ID; or an ASGI request's headers, in which to look for it when somebody wants to know.
GivenId = str | Iterable[tuple[bytes, bytes]] | None


def fit_id(given: GivenId) -> str | None:
    """A client's X-Request-ID, if it is fit to be printed."""
    if given is not None and not isinstance(given, str):
        given = next((value.decode("latin-1") for name, value in given if name == b"x-request-id"), None)
    fit = given and len(given) <= LONGEST_ID and given.isascii() and given.isprintable()
    return given if fit else None


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
    connected = False  # it has been given a connection
    failure: object = None  # a `problems.Failure`, if the last thing that it heard from its database was one
    answered = False  # its last bytes are on their way
    cancelled = False  # the drain timed out while it was in flight
    broken = False  # its response ended before it was complete
    unwound = False  # what served it failed because it was cancelled, be it after the answer
    given_up = False  # and it did not unwind in time
    ended = False
    client: Client | None = None  # if the server tells
    address = ""  # the client's, for the access log
    sent = 0  # bytes of its answer's body
    end_stream: Callable[[], None] | None = None  # ends its event stream, if it is one that can be ended from outside

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
        return fit_id(self.given_id) or f"r{self.serial}"

    @property
    def was_cut(self) -> bool:
        """Whether the shutdown ended it: cancelled, and without an answer of its own or with work left after it."""
        if self.given_up or not self.cancelled:
            return self.given_up
        interrupted = self.client is not None and self.client.interrupted
        return self.unwound or interrupted or self.broken or self.status is None or self.status >= 500


# Which request (or waiting reservation) the running code serves; a context variable, because a thread or
# a task alone does not say: tasks are handed work, threads are reused.
CURRENT_REQUEST: ContextVar[InFlightRequest | None] = ContextVar("pooldrain_current_request", default=None)


class Checkout:
    """One connection out of the pool."""

    # Defaults live in the class: a checkout is made for every use of a connection, and few of them change.
    holder_name: str | None = None  # set when no request owns it
    named = False  # whether its holder has named itself, with `hold_as`
    statement: str | None = None  # the last statement, without its parameters
    rule: LeakRule | None = None  # the strongest leak rule that applied so far
    runs = 0  # statements so far
    streams = False  # whether the last of them is read row by row from the server, which counts as running
    idle_runs: int | None = None  # how many there were when it was last seen to idle in a transaction

    def __init__(
        self,
        key: object,
        request: InFlightRequest | None,
        since: float,
        stack: RawStack,
        worker: object,
        proxy: Callable[[], object],
    ) -> None:
        self.key = key  # the pool's record, opaque to the core
        self.request = request
        self.since = since  # monotonic seconds
        self.stack = stack
        self.worker = worker  # what ran the checkout (an asyncio task), opaque to the core
        self.proxy = proxy  # gives what the holder holds, None once that was garbage collected

    @property
    def holder(self) -> str:
        """Who holds it: the request's method and path, or the background task's name."""
        if self.request is not None:
            return self.request.route
        return self.holder_name or "outside a request"

    @property
    def request_id(self) -> str | None:
        """The id of the request that owns it, if one does."""
        return None if self.request is None else self.request.request_id
