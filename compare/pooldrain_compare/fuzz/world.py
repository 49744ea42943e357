"""What both colours of a trial share: what is recorded, who waits where, and what the applications answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from pooldrain import answers, status
from pooldrain.answers import Answer
from pooldrain.lifecycle import Lifecycle
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.hooks import EventSink
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain.transcript import Event
from pooldrain_compare.fuzz import simulated_database as database
from pooldrain_compare.fuzz.fuzz_scenario import FuzzScenario
from pooldrain_compare.fuzz.simulated_database import Database, Wait

SELECT, HOLD, HOLD_DEAF, INSERT = map(text, (database.SELECT, database.HOLD, database.HOLD_DEAF, database.INSERT))

# For SQLAlchemy's dialects only: nothing is ever opened.
URL = DatabaseUrl.parse("sqlite:///fuzz.db")
SERVICE = "fuzz"
PID = 1

BACKGROUND = "the nightly report"
# Between two operations a request rests until nobody else can go on: which of two that compete for a connection gets
# it is chance, in either colour. What waits there is named so.
REST = "~"
FIRST_HALF, SECOND_HALF = b"first half\n", b"second half\n"


class Crash(Exception):
    """What no application catches."""


class ClientGoneError(OSError):
    """What a server raises when it writes to a client that has left."""


@dataclass(slots=True)
class Received:
    """What a client got."""

    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    closes: bool = False
    body: bytes = b""
    error: str | None = None  # what the server was left to deal with

    def as_dict(self) -> dict[str, Any]:
        """To be compared."""
        return {
            "status": self.status,
            "headers": sorted([name.lower(), value] for name, value in self.headers),
            "closes": self.closes,
            "body": self.body.decode("utf-8", "replace"),
            "error": self.error,
        }


ENDING = 99  # the number that the application's end has among the requests


def told_alike(end: Callable[[], object]) -> Callable[[], object]:
    """The application's end, told by the same name in both colours."""
    function = getattr(end, "__func__", end)
    function.__module__ = "fuzz"
    return end


class Transcript(EventSink):
    """Keeps the events."""

    detailed = True

    def __init__(self, clock: Callable[[], float]) -> None:
        self.records: list[dict[str, Any]] = []
        self.phase = ""
        self._clock = clock

    def emit(self, event: Event) -> None:
        """Take one event."""
        self.records.append({**event.as_dict(), "t": self._clock(), "pid": PID})
        if event.name == "phase":
            self.phase = str(self.records[-1]["phase"])


class Waits:
    """Who waits where, by name."""

    def __init__(self) -> None:
        self._waiting: dict[str, Wait] = {}

    @property
    def names(self) -> list[str]:
        """In an order that does not depend on who came first."""
        return sorted(self._waiting)

    def enter(self, name: str, wait: Wait) -> str:
        """Somebody waits; the name, made its own."""
        while name in self._waiting:
            name += "+"
        self._waiting[name] = wait
        return name

    def leave(self, name: str) -> None:
        """And has been let go."""
        del self._waiting[name]

    def release(self, name: str) -> None:
        """Let somebody go on."""
        self._waiting[name].end()

    def release_next(self) -> bool:
        """Let the first go on that rests between two operations; False if none does."""
        name = next((name for name in sorted(self._waiting) if name.startswith(REST)), None)
        if name is not None:
            self.release(name)
        return name is not None


class World:
    """One trial in one colour."""

    def __init__(self, scenario: FuzzScenario, clock: Callable[[], float]) -> None:
        self.scenario = scenario
        self.clock = clock
        self.transcript = Transcript(clock)
        # Elsewhere a close that hangs would only be a request that hangs.
        self.database = Database(scenario.driver, lambda: self.transcript.phase in ("RECLAIMING", "DISPOSING"))
        self.waits = Waits()
        self.programs: list[tuple[str, ...]] = []  # what each request does
        self.received: dict[int, Received] = {}
        self.in_flight: dict[int, None] = {}
        self.gone: set[int] = set()  # clients that have left
        self.kept: list[Any] = []  # leaked connections that somebody may return
        self.errors: list[str] = []  # that nobody was there to catch
        self.over = False

    def begin(self, program: tuple[str, ...]) -> int:
        """A request comes; its number."""
        number = len(self.programs)
        self.programs.append(program)
        self.received[number] = Received()
        self.in_flight[number] = None
        return number

    def server_step(self, name: str) -> None:
        """What the runner asks of its server; raises if the scenario says so."""
        if name in self.scenario.failing:
            raise RuntimeError(f"the server cannot {name}")

    def ended(self, number: int) -> None:
        """The server is done with it."""
        del self.in_flight[number]


def path_of(number: int) -> str:
    """A request's path."""
    return f"/{number}"


def request_id(number: int) -> str:
    """A request's X-Request-ID."""
    return f"client-{number}"


def uncounted(path: str, runner: Lifecycle[Any, Any], pool: TrackedPool) -> Answer | None:
    """The answers to what is never counted, as in the demo."""
    if path == "/readyz":
        return answers.readyz(runner.phase)
    if path == "/pool-status":
        return answers.answer(
            status.pool_status_page(
                pool.status,
                connection_leak=runner.check_threshold(),
                accepting=runner.gate.accepting,
                active=runner.unanswered(),
            )
        )
    return None


def done(number: int) -> Answer:
    """The answer of a request that did all it had to do."""
    return answers.answer({"done": number})
