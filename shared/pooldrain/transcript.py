"""The events both backends emit: one vocabulary, defined once, for the log and for the transcript.

A transcript is one JSON object a line: `event` (its name), `t` (seconds since the process began), `pid`, and
the event's own fields. An event with a `message` is logged as well, at its `level`. Events of single
requests, checkouts and connections go to the transcript only; they are not even built when none is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from pooldrain.ledger import MAIN_POOL, Holding
from pooldrain.status import PoolStatus

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40  # the levels of the standard library's logging


@dataclass(frozen=True, slots=True)
class Event:
    """Base of the events."""

    name: ClassVar[str] = "event"
    level: ClassVar[int] = INFO

    def message(self) -> str | None:
        """What a person reads in the log; None keeps the event out of it."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON-ready data."""
        record: dict[str, Any] = {"event": self.name}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Holding | PoolStatus):
                value = value.as_dict()
            elif isinstance(value, tuple):
                value = list(value)
            record[item.name] = value
        return record


Emit = Callable[[Event], None]


def _pool(name: str) -> str:
    """How a line about a pool begins: with its name, unless it is the one that the service has of its own."""
    return "pool" if name == MAIN_POOL else f"pool {name}"


# --- the life of the service --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolOpened(Event):
    """The pool is connected and filled."""

    name: ClassVar[str] = "pool_opened"
    database: str  # URL, password masked
    pool_size: int
    max_overflow: int
    connected: int
    seconds: float
    pool: str = MAIN_POOL

    def message(self) -> str:
        return (
            f"{_pool(self.pool)}: database connection test succeeded, {self.connected} connections opened in "
            f"{self.seconds:.3f} s (pool_size {self.pool_size}, max_overflow {self.max_overflow}, "
            f"{self.pool_size + self.max_overflow} in all) to {self.database}"
        )


@dataclass(frozen=True, slots=True)
class PoolExhausted(Event):
    """Somebody has waited for a connection in vain; who has them."""

    name: ClassVar[str] = "pool_exhausted"
    level: ClassVar[int] = WARNING
    pool_size: int
    overflow: int
    checkedout: int
    waiting: int  # who still waits for one
    held: tuple[str, ...]  # who holds how many, for how long, and from where; the most first
    pool: str = MAIN_POOL

    def message(self) -> str:
        held = "; ".join(self.held) or "nobody"
        return (
            f"{_pool(self.pool)}: no connection became free in time: pool_size {self.pool_size}, "
            f"overflow {self.overflow}, checked out {self.checkedout}, {self.waiting} more wait; held: {held}"
        )


@dataclass(frozen=True, slots=True)
class ConnectionsRefused(Event):
    """The database has no room for another connection: who wants one waits for one of ours."""

    name: ClassVar[str] = "connections_refused"
    level: ClassVar[int] = WARNING
    pool_size: int
    overflow: int
    checkedout: int
    reason: str  # the server's words
    pool: str = MAIN_POOL

    def message(self) -> str:
        return (
            f"{_pool(self.pool)}: the database refuses another connection, so requests wait for one of ours (pool_size "
            f"{self.pool_size}, overflow {self.overflow}, checked out {self.checkedout}): {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class EngineAdopted(Event):
    """The application has made an engine: its pool is tracked, and will be closed with the service."""

    name: ClassVar[str] = "engine_adopted"
    pool: str
    driver: str  # as in a URL, postgresql+psycopg
    pool_class: str
    limits: str  # what cannot be done with this driver, empty for those we know

    def message(self) -> str:
        but = f"; {self.driver} is not known: {self.limits}" if self.limits else ""
        return f"{_pool(self.pool)}: adopted from the application ({self.driver}, {self.pool_class}){but}"


@dataclass(frozen=True, slots=True)
class ProbesAnswered(Event):
    """Who answers the probes."""

    name: ClassVar[str] = "probes"
    answered_by: str  # own, app or off
    livez: str
    readyz: str

    def message(self) -> str:
        paths = f"{self.livez} and {self.readyz}"
        match self.answered_by:
            case "own":
                return f"probes: {paths} are answered by pooldrain, whatever the application has there"
            case "app":
                return f"probes: {paths} are the application's, until the shutdown is announced"
            case _:
                return "probes: off"


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """Requests are accepted."""

    name: ClassVar[str] = "listening"
    host: str
    port: int
    server: str
    pid: int

    def message(self) -> str:
        return f"listening on {self.where} ({self.server}, pid {self.pid})"

    @property
    def where(self) -> str:
        """The address, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{host}" if host.startswith("/") else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SignalReceived(Event):
    """A signal asks for the shutdown, or to hurry it."""

    name: ClassVar[str] = "signal"
    signal: str
    number: int  # 1 for the first

    def message(self) -> str:
        what = "shutting down" if self.number == 1 else "hurrying: no more waiting for requests"
        return f"{self.signal} received: {what}"


@dataclass(frozen=True, slots=True)
class EventsLost(Event):
    """The transcript goes into a pipe, and nobody has read it for a while."""

    name: ClassVar[str] = "events_lost"
    events: int


@dataclass(frozen=True, slots=True)
class SignalIgnored(Event):
    """A signal that would kill a process which does not know it, and means nothing to this one."""

    name: ClassVar[str] = "signal_ignored"
    signal: str

    def message(self) -> str:
        return f"{self.signal} is ignored; SIGTERM and SIGINT end the service"


@dataclass(frozen=True, slots=True)
class AcceptPaused(Event):
    """No connection can be accepted, for want of descriptors or memory; told once until one can be."""

    name: ClassVar[str] = "accept_paused"
    level: ClassVar[int] = WARNING
    error: str

    def message(self) -> str:
        return f"cannot accept connections: {self.error}; they wait, and it is tried again every second"


@dataclass(frozen=True, slots=True)
class PhaseEntered(Event):
    """The service moved on to a phase."""

    name: ClassVar[str] = "phase"
    level: ClassVar[int] = DEBUG
    phase: str

    def message(self) -> str:
        return f"phase {self.phase}"


@dataclass(frozen=True, slots=True)
class DrainStarted(Event):
    """New requests are refused from here on."""

    name: ClassVar[str] = "drain_started"
    in_flight: int

    def message(self) -> str:
        return f"drain: refusing new requests, {self.in_flight} in flight"


@dataclass(frozen=True, slots=True)
class DrainEnded(Event):
    """Nothing is in flight any more, or the waiting is over."""

    name: ClassVar[str] = "drain_ended"
    complete: bool
    in_flight: int
    refused: int
    seconds: float
    at_work: int = 0  # connections that work outside requests, in a transaction or under a name

    def message(self) -> str:
        if self.complete:
            return f"drain: complete after {self.seconds:.3f} s, {self.refused} refused"
        work = f", {self.at_work} connections at work outside requests" if self.at_work else ""
        return f"drain: given up after {self.seconds:.3f} s, {self.in_flight} still in flight{work}"


@dataclass(frozen=True, slots=True)
class PoolClosing(Event):
    """The pool as it is before it is closed."""

    name: ClassVar[str] = "pool_closing"
    pool_status: PoolStatus
    pool: str = MAIN_POOL

    def message(self) -> str:
        status = self.pool_status
        return (
            f"{_pool(self.pool)}: before closing: pool_size {status.pool_size}, checked out {status.checkedout}, "
            f"overflow {status.overflow}, idle {status.idle}"
        )


@dataclass(frozen=True, slots=True)
class NotReturned(Event):
    """Connections that were not returned; their holders follow, one event each."""

    name: ClassVar[str] = "not_returned"
    level: ClassVar[int] = WARNING
    count: int
    pool: str = MAIN_POOL

    def message(self) -> str:
        subject = "1 connection was" if self.count == 1 else f"{self.count} connections were"
        return f"{_pool(self.pool)}: {subject} not returned, possible leak:"


@dataclass(frozen=True, slots=True)
class Outstanding(Event):
    """One connection that was not returned, by holder."""

    name: ClassVar[str] = "outstanding"
    level: ClassVar[int] = WARNING
    number: int
    holding: Holding

    def message(self) -> str:
        return f"pool:   #{self.number} {self.holding}"


@dataclass(frozen=True, slots=True)
class PoolDisposed(Event):
    """The pool is closed."""

    name: ClassVar[str] = "pool_closed"
    seconds: float
    closed: int  # idle connections closed now; reclaimed ones were closed before

    def message(self) -> str:
        return f"pool: closed in {self.seconds:.3f} s, {self.closed} idle connections closed"


@dataclass(frozen=True, slots=True)
class PoolAbandoned(Event):
    """The pool could not be closed in time."""

    name: ClassVar[str] = "pool_abandoned"
    level: ClassVar[int] = ERROR
    abandoned: int
    seconds: float

    def message(self) -> str:
        return f"pool: not closed after {self.seconds:.3f} s, {self.abandoned} connections abandoned"


@dataclass(frozen=True, slots=True)
class ShutdownComplete(Event):
    """The last line of a process's story."""

    name: ClassVar[str] = "shutdown_complete"
    outcome: str
    exit_code: int
    signal: str
    seconds: float
    finished: int
    refused: int
    cut: int
    leaked: int  # connections that were not returned
    collected: int  # connections that the garbage collector found
    work_cut: int = 0  # connections at work outside requests, at the deadline

    def message(self) -> str:
        collected = f", {self.collected} garbage-collected" if self.collected else ""
        work = f", {self.work_cut} connections at work outside requests cut" if self.work_cut else ""
        return (
            f"shutdown complete in {self.seconds:.3f} s: {self.outcome}, {self.finished} requests finished, "
            f"{self.refused} refused, {self.cut} cut{work}, {self.leaked} connections not returned{collected}, "
            f"exit code {self.exit_code}"
        )


@dataclass(frozen=True, slots=True)
class StepFailed(Event):
    """A step of the shutdown raised; the sequence goes on."""

    name: ClassVar[str] = "step_failed"
    level: ClassVar[int] = ERROR
    phase: str
    error: str

    def message(self) -> str:
        return f"{self.phase}: failed, going on: {self.error}"


@dataclass(frozen=True, slots=True)
class BackgroundFailed(Event):
    """Something that runs beside the requests raised: a watch, a server's loop."""

    name: ClassVar[str] = "background_failed"
    level: ClassVar[int] = ERROR
    what: str
    error: str
    raised_at: str  # file:line in function

    def message(self) -> str:
        return f"{self.what} failed: {self.error}, raised at {self.raised_at}"


# --- leaks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeakFound(Event):
    """A leak by one of the rules, with its holder."""

    name: ClassVar[str] = "leak"
    level: ClassVar[int] = WARNING
    rule: str
    holding: Holding

    def message(self) -> str:
        return f"leak ({self.rule}): connection {self.holding}"


@dataclass(frozen=True, slots=True)
class ThresholdReached(Event):
    """The coarse rule: so many connections are out that one may suspect a leak."""

    name: ClassVar[str] = "leak_threshold"
    level: ClassVar[int] = WARNING
    checkedout: int
    threshold: int
    pool: str = MAIN_POOL

    def message(self) -> str:
        where = "" if self.pool == MAIN_POOL else f" of {self.pool}"
        return f"leak (threshold): {self.checkedout} connections{where} checked out, threshold {self.threshold}"


@dataclass(frozen=True, slots=True)
class LeakReturned(Event):
    """A connection that was reported did come back, so that nobody hunts a ghost."""

    name: ClassVar[str] = "leak_returned"
    level: ClassVar[int] = WARNING
    rule: str
    holding: Holding

    def message(self) -> str:
        return f"leak ({self.rule}): returned after {self.holding.age:.3f} s, connection {self.holding}"


# --- single requests, checkouts, connections: transcript only -----------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestAdmitted(Event):
    """A request is in flight. `waited`: it had arrived before, and waited for a thread."""

    name: ClassVar[str] = "request_admitted"
    request: str
    route: str
    waited: bool


@dataclass(frozen=True, slots=True)
class RequestRefused(Event):
    """A request was answered 503 at the gate."""

    name: ClassVar[str] = "request_refused"
    route: str


@dataclass(frozen=True, slots=True)
class RequestFinished(Event):
    """A response is finished."""

    name: ClassVar[str] = "request_finished"
    request: str
    route: str
    status: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ResponseBroken(Event):
    """An application's response is not as long as it has announced, so that no other may follow it."""

    name: ClassVar[str] = "response_broken"
    level: ClassVar[int] = ERROR
    request: str | None  # None for what is not counted
    route: str
    body: str  # "shorter" or "longer"

    def message(self) -> str:
        who = "" if self.request is None else f", request {self.request}"
        return f"{self.route}{who}: the body is {self.body} than its Content-Length says; the connection is closed"


@dataclass(frozen=True, slots=True)
class RequestCut(Event):
    """A request was ended by the deadline."""

    name: ClassVar[str] = "request_cut"
    level: ClassVar[int] = WARNING
    request: str
    route: str
    status: int | None
    seconds: float
    call_site: str = ""

    def message(self) -> str:
        answer = "no answer" if self.status is None else f"answered {self.status}"
        holding = f", with a connection checked out at {self.call_site}" if self.call_site else ""
        return f"cancel: {self.route}, request {self.request}, cut after {self.seconds:.3f} s, {answer}{holding}"


@dataclass(frozen=True, slots=True)
class WorkCut(Event):
    """The deadline found a connection at work outside requests."""

    name: ClassVar[str] = "work_cut"
    level: ClassVar[int] = WARNING
    holding: Holding

    def message(self) -> str:
        return f"cancel: background work cut: connection {self.holding}"


@dataclass(frozen=True, slots=True)
class TeardownAbandoned(Event):
    """The application has not ended in its time: its shutdown is left to itself."""

    name: ClassVar[str] = "teardown_abandoned"
    level: ClassVar[int] = ERROR
    function: str  # that was running
    seconds: float

    def message(self) -> str:
        return f"teardown: {self.function} has not ended after {self.seconds:.3f} s, going on without it"


@dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """The pool opened a connection."""

    name: ClassVar[str] = "connection_opened"
    pool: str = MAIN_POOL


@dataclass(frozen=True, slots=True)
class ConnectionClosed(Event):
    """A connection of the pool was closed."""

    name: ClassVar[str] = "connection_closed"
    pool: str = MAIN_POOL


@dataclass(frozen=True, slots=True)
class CheckedOut(Event):
    """A connection left the pool."""

    name: ClassVar[str] = "checkout"
    holder: str
    request: str | None
    call_site: str
    pool: str = MAIN_POOL


@dataclass(frozen=True, slots=True)
class CheckedIn(Event):
    """A connection came back."""

    name: ClassVar[str] = "checkin"
    holder: str
    request: str | None
    seconds: float
    pool: str = MAIN_POOL


@dataclass(frozen=True, slots=True)
class ConnectionReclaimed(Event):
    """A connection that nobody returned was closed by us."""

    name: ClassVar[str] = "connection_reclaimed"
    holder: str
    request: str | None


# --- for people ---------------------------------------------------------------------------------------------

_LEVELS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}


def event_kinds() -> list[type[Event]]:
    """The kinds of events, in the order of this file."""
    found = [value for value in globals().values() if isinstance(value, type) and issubclass(value, Event)]
    return [kind for kind in found if kind is not Event]


def events_table() -> str:
    """The events as a Markdown table, for the documentation."""
    lines = ["| event | level | fields | what has happened |", "|---|---|---|---|"]
    for kind in event_kinds():
        level = "transcript only" if kind.message is Event.message else _LEVELS[kind.level]
        told = ", ".join(f"`{item.name}`" for item in fields(kind)) or "none"
        meaning = " ".join((kind.__doc__ or "").split())
        lines.append(f"| `{kind.name}` | {level} | {told} | {meaning} |")
    return "\n".join(lines) + "\n"
