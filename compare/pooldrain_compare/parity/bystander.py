"""What the database itself says while a scenario runs: its sessions over time, its locks, its rows."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, LiteralString, Protocol

import psycopg
from sqlalchemy.engine import make_url

from pooldrain_compare.harness.witness import APPLICATION_NAME
from pooldrain_compare.parity.app import routes
from pooldrain_compare.parity.latches import Latches

_PAUSE = 0.004  # between two looks; the server offers no event for what is looked at
_OURS = "datname = current_database() AND application_name LIKE 'pooldrain:%'"
_NO_TABLE = sqlite3.OperationalError  # the scenario needs none
END_OF_SESSIONS = 3.0  # seconds; a server process ends a moment after its client has said goodbye
RETURN_OF_SERVER = 15.0  # seconds until a server that was restarted, or killed for a while, has to accept again


class Bystander(Protocol):
    """The database under one service."""

    @property
    def url(self) -> str:
        """As the service is told."""
        ...

    def close_latches(self, names: set[str]) -> None:
        """Close these query latches."""
        ...

    def open_latch(self, name: str) -> None:
        """Open a query latch."""
        ...

    def at_query(self, name: str, count: int, timeout: float, running: Callable[[], bool]) -> bool:
        """Wait until so many statements wait there; False if they do not in `timeout` seconds."""
        ...

    def await_sessions(self, total: int, timeout: float, running: Callable[[], bool]) -> bool:
        """Wait until there are so many sessions; False if it does not come to it in `timeout` seconds."""
        ...

    def sessions(self) -> int | None:
        """How many there are now; None if there is no server to ask."""
        ...

    def end_sessions(self) -> None:
        """End all sessions from the server's side."""
        ...

    def finish(self, disposing_at: float | None) -> dict[str, Any]:
        """After the service has ended: what was seen. `disposing_at`: when the last worker began to (monotonic)."""
        ...


class _Session:
    """A connection that is opened again when the server has ended it: scenarios restart servers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = self._open()

    def _open(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._url, autocommit=True, application_name=APPLICATION_NAME, connect_timeout=10)

    def execute(self, statement: LiteralString | bytes, parameters: Sequence[object] = ()) -> psycopg.Cursor[Any]:
        """Run a statement; once more, if the connection is lost over it."""
        deadline = time.monotonic() + RETURN_OF_SERVER
        while True:
            try:
                if self._connection.closed:
                    self._connection = self._open()
                return self._connection.execute(statement, parameters or None)
            except psycopg.OperationalError:
                self._connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def close(self) -> None:
        """Leave."""
        self._connection.close()


class PostgresBystander:
    """For PostgreSQL: connections of its own to the service's database, which no other service uses.

    `seen_as`: the URL under which the service is told of it, if that is another one.
    """

    def __init__(self, url: str, seen_as: str | None = None) -> None:
        self.url = seen_as or url
        self._own_url = url
        self._stack = contextlib.ExitStack()
        self._asker = self._connect()
        self._holder = self._connect()
        self._watcher = self._connect()
        self._asker.execute("DROP TABLE IF EXISTS orders")
        self._most_sessions = 0  # at one time
        self._begun: set[tuple[int, float]] = set()  # each session: its process, and its start by the clock
        self._watching = True
        self._thread = threading.Thread(target=self._watch, name="sessions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave; harmless if it was done."""
        self._watching = False
        self._thread.join()
        self._stack.close()

    def close_latches(self, names: set[str]) -> None:
        """Take their locks."""
        for name in sorted(names):
            self._holder.execute("SELECT pg_advisory_lock(%s::bigint)", (routes.latch_number(name),))

    def open_latch(self, name: str) -> None:
        """Give its lock back."""
        self._holder.execute("SELECT pg_advisory_unlock(%s::bigint)", (routes.latch_number(name),))

    def at_query(self, name: str, count: int, timeout: float, running: Callable[[], bool]) -> bool:
        """Look at who waits for its lock."""
        number = routes.latch_number(name)
        return self._await(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s::bigint::oid "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            count,
            timeout,
            running,
            number,
        )

    def await_sessions(self, total: int, timeout: float, running: Callable[[], bool]) -> bool:
        """Look at pg_stat_activity."""
        return self._await(f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS}", total, timeout, running)  # noqa: S608 - fixed

    def sessions(self) -> int | None:
        """Look at pg_stat_activity."""
        return self._one(f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS}")  # noqa: S608 - fixed

    def end_sessions(self) -> None:
        """As an administrator would."""
        self._asker.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {_OURS}")  # noqa: S608 - fixed

    def finish(self, disposing_at: float | None) -> dict[str, Any]:
        """Sessions and rows."""
        gone = self.await_sessions(0, END_OF_SESSIONS, _always)
        left = 0 if gone else self.sessions()
        if left:
            self.end_sessions()
        self._watching = False
        self._thread.join()
        rows: list[str] = []
        if self._one("SELECT count(*) FROM pg_class WHERE relname = 'orders'"):
            rows = [_row(row) for row in self._asker.execute("SELECT id, item, quantity FROM orders ORDER BY id")]
        self.close()
        return {
            "sessions left": left,
            "greatest number of sessions": self._most_sessions,
            "sessions opened while disposing": 0 if disposing_at is None else self._begun_after(disposing_at),
            "orders": rows,
        }

    def _begun_after(self, instant: float) -> int:
        """How many sessions began after this instant (monotonic): the server runs on this machine: one clock."""
        # In this order, and the least of some: a pause between the two readings would make it too late.
        ahead = min(-time.monotonic() + time.time() for _ in range(10))
        return sum(start > instant + ahead for _, start in self._begun)

    def _connect(self) -> _Session:
        return self._stack.enter_context(contextlib.closing(_Session(self._own_url)))

    def _one(self, statement: str, *parameters: object) -> int:
        row = self._asker.execute(statement.encode(), parameters).fetchone()
        assert row is not None, "count(*) has a row"
        return int(row[0])

    def _await(
        self, statement: str, count: int, timeout: float, running: Callable[[], bool], *parameters: object
    ) -> bool:
        deadline = time.monotonic() + timeout
        while self._one(statement, *parameters) != count:
            if time.monotonic() > deadline or not running():
                return False
            time.sleep(_PAUSE)
        return True

    def _watch(self) -> None:
        while self._watching:
            sessions = self._watcher.execute(
                f"SELECT pid, extract(epoch FROM backend_start)::float8 FROM pg_stat_activity WHERE {_OURS}"  # noqa: S608 - fixed
            ).fetchall()
            self._most_sessions = max(self._most_sessions, len(sessions))
            self._begun.update(sessions)
            time.sleep(_PAUSE)


class SqliteBystander:
    """For SQLite: there is no server to ask, so only rows are seen; query latches are application latches."""

    def __init__(self, path: Path, latches: Latches) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path
        self._latches = latches

    def close(self) -> None:
        """Nothing to leave."""

    def close_latches(self, names: set[str]) -> None:
        """They are closed."""

    def open_latch(self, name: str) -> None:
        """Let go."""
        self._latches.open(str(routes.latch_number(name)))

    def at_query(self, name: str, count: int, timeout: float, running: Callable[[], bool]) -> bool:
        """Ask the latches."""
        return self._latches.arrived(str(routes.latch_number(name)), count, timeout, running)

    def await_sessions(self, total: int, timeout: float, running: Callable[[], bool]) -> bool:
        """There are none."""
        return True

    def sessions(self) -> int | None:
        """There are none to be seen."""
        return None

    def end_sessions(self) -> None:
        """There are none."""

    def finish(self, disposing_at: float | None) -> dict[str, Any]:
        """The rows."""
        rows: list[str] = []
        if self._path.exists():
            with contextlib.closing(sqlite3.connect(self._path)) as connection, contextlib.suppress(_NO_TABLE):
                rows = [_row(row) for row in connection.execute("SELECT id, item, quantity FROM orders ORDER BY id")]
        return {"orders": rows}


def _always() -> bool:
    return True


def make_databases(url: str, prefix: str, count: int) -> list[str]:
    """Fresh databases on a server; their URLs."""
    names = [f"{prefix}_{number}" for number in range(count)]
    with psycopg.connect(url, autocommit=True, application_name=APPLICATION_NAME) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return [make_url(url).set(database=name).render_as_string(hide_password=False) for name in names]


def drop_databases(url: str, urls: list[str]) -> None:
    """Drop them."""
    with psycopg.connect(url, autocommit=True, application_name=APPLICATION_NAME) as connection:
        for each in urls:
            connection.execute(f"DROP DATABASE IF EXISTS {make_url(each).database} WITH (FORCE)".encode())


def _row(row: tuple[Any, ...]) -> str:
    return ", ".join(map(str, row))
