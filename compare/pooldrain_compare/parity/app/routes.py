"""What both scenario applications decide alike: their routes, SQL and answers, and where a request waits.

A *latch* is a point at which a request (or a task, or a step of the shutdown) waits until the suite opens it, so
that the suite decides when a "slow" request ends. There are two kinds. An application latch is a connection to
the suite's own listener: it tells the suite who has come, and ends the wait by its end. A query latch is a lock
on the database server, held by the suite: a statement waits for it as it would for any other slow thing.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from pooldrain import demo
from pooldrain.answers import Answer, answer
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.problems import problem

Function = TypeVar("Function", bound=Callable[[], object])

LATCHES_VARIABLE = "SCENARIO_LATCHES"  # HOST:PORT of the suite's listener
WORKER_PATH = "/which-worker"  # tells the pid; never counted, so asking leaves no trace

# Path, name of the handler in both applications, methods; beside the demo's own routes.
ROUTES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("/query", "query", ("GET",)),  # holds a connection in a statement, until the query latch opens
    ("/hold", "hold", ("GET",)),  # holds a connection without a statement, until the latch opens
    ("/late-checkout", "late_checkout", ("GET",)),  # waits at the latch first, then checks out
    ("/reserve", "reserve", ("GET",)),  # a transaction that writes, waits at the query latch, and commits
    ("/fail", "fail", ("GET",)),  # raises while it holds a connection
    ("/stream", "stream", ("GET",)),  # sends a half, waits at the query latch, sends the other half
    ("/pinned", "pinned", ("GET",)),  # the same, but for a latch in place of the statement: its transaction idles
    ("/short", "short", ("GET",)),  # its body is shorter than its Content-Length says
    ("/long", "long", ("GET",)),  # longer
    ("/background", "background", ("GET",)),  # leaves a task behind that holds a connection until the latch opens
    ("/nightly", "nightly", ("GET",)),  # leaves a named task behind: a transaction that writes, at the query latch
    ("/outside", "outside", ("GET",)),  # leaves nameless work behind: a transaction that writes, at the query latch
    ("/listener", "listener", ("GET",)),  # leaves a connection behind that is held, and in no transaction
    ("/after-response", "after_response", ("GET",)),  # the same, as a part of the request after its answer
    ("/after-query", "after_query", ("GET",)),  # the same, in a statement, until the query latch opens
    ("/keep", "keep", ("GET",)),  # answers without returning its connection
    ("/return", "give_back", ("GET",)),  # waits at the latch, then returns what /keep has kept
    ("/big", "big", ("GET",)),  # an answer that no buffer of the kernel holds
    ("/endless", "endless", ("GET",)),  # sends line after line, and never ends
    ("/events", "events", ("GET",)),  # the same as a stream of events, with a connection only when it begins
    ("/stubborn", "stubborn", ("GET",)),  # as /hold, and heeds no cancellation
    ("/second", "second", ("GET",)),  # holds a connection of the second engine at the query latch
    ("/second-leak", "second_leak", ("GET",)),  # leaks a connection of the second engine
)

TALK_PATH = "/talk"  # a WebSocket, where there are any: it says again what is said

ADOPTED = "shop"  # what the application calls the engine that it makes itself
AT_SHUTDOWN = "shutdown"  # id of the row that a quick teardown writes

FIRST_HALF, SECOND_HALF = b"first half\n", b"second half\n"
ANNOUNCED = len(FIRST_HALF) + 1  # bytes that /short and /long announce
STREAM_TYPE = "text/plain; charset=utf-8"
EVENTS_TYPE = "text/event-stream"
EVENT = b"data: tick\n\n"
BIG = 20_000_000  # bytes
LINE, LINE_PAUSE = b"and so on\n", 0.02  # what /endless sends, and the seconds between two of them
BACKGROUND_NAME = "the nightly report"
SELECT_ONE = demo.SELECT_ONE
INSERT = "INSERT INTO orders (id, item, quantity) VALUES (:id, 'reserved', 1)"

# Latches of the factories that slow down the start or the end.
START_LATCH, CLOSE_LATCH, TEARDOWN_LATCH, STOP_LATCH = "start", "close", "teardown", "stop"

# The second engine's pool, when there is one.
SECOND_POOL = PoolPolicy(pool_size=2, max_overflow=0, min_idle=1)
SECOND_LEAKS = LeakPolicy()

_WAIT = {
    "postgresql": "SELECT pg_advisory_xact_lock_shared(:latch)",
    # SQLite has no locks to wait for: this counts until the function below says that the latch is open.
    "sqlite": (
        "WITH RECURSIVE wait(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM wait WHERE scenario_waits(:latch)) "
        "SELECT max(i) FROM wait"
    ),
}
_TURN = 0.01  # seconds between two chances to interrupt SQLite


def wait_statement(dialect: str) -> str:
    """A statement that waits at the query latch `:latch`."""
    return _WAIT[dialect]


NO_LATCH = 0  # what nobody ever closes


def latch_number(name: str) -> int:
    """The latch's lock on the database server; no name has the number of NO_LATCH but the empty one."""
    return zlib.crc32(name.encode())


def latches_address() -> tuple[str, int]:
    """Where the suite listens."""
    host, _, port = os.environ[LATCHES_VARIABLE].rpartition(":")
    return host, int(port)


def latch_line(name: str) -> bytes:
    """What is said there."""
    return f"{name}\n".encode()


def wait_at(name: str) -> None:
    """Wait in a thread until the latch opens."""
    with socket.create_connection(latches_address()) as connection:
        connection.sendall(latch_line(name))
        connection.recv(1)


def add_wait_function(dbapi_connection: Any, record: object = None) -> None:
    """A `connect` listener that gives SQLite the function of its wait statement."""
    waiting: dict[int, socket.socket] = {}

    def waits(latch: int) -> bool:
        if latch == NO_LATCH:
            return False
        connection = waiting.get(latch)
        if connection is None:
            connection = waiting[latch] = socket.create_connection(latches_address())
            connection.sendall(latch_line(str(latch)))
            connection.settimeout(_TURN)
        try:
            connection.recv(1)
        except TimeoutError:
            return True
        waiting.pop(latch).close()
        return False

    dbapi_connection.create_function("scenario_waits", 1, waits)


class Given:
    """A request's query parameters, read alike."""

    def __init__(self, parameter: Callable[[str], str | None]) -> None:
        self.latch = parameter("latch")  # None: do not wait
        self.id = parameter("id") or "order"

    @property
    def number(self) -> int:
        """The lock of its latch."""
        return latch_number(self.latch or "")

    @property
    def row(self) -> dict[str, str]:
        """Parameters of INSERT."""
        return {"id": self.id}


def told_alike(function: Function) -> Function:
    """`function`, of a module that is told by the same name in both applications."""
    function.__module__ = "scenarios"
    return function


def done(what: str) -> Answer:
    """A handler's answer."""
    return answer({"status": "success", "done": what})


def reserved(given: Given) -> Answer:
    """`/reserve`, after its commit."""
    return answer({"status": "success", "reserved": given.id}, 201)


def worker_answer() -> Answer:
    """Which process has answered."""
    return answer({"worker": os.getpid()})


def failure() -> RuntimeError:
    """What `/fail` raises."""
    return RuntimeError("this handler fails")


def missing(path: str) -> Answer:
    """A route that this application was not made with."""
    return problem(404, f"there is no route {path}")
