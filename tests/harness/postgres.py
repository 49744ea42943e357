"""What the database server itself says about the services under test."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from pooldrain_compare.harness.processes import send
from tests.harness.waiting import eventually

_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Session:
    """One row of pg_stat_activity."""

    backend: int  # process id of the server's side
    application: str
    database: str
    state: str | None
    query: str


class Postgres:
    """A superuser's connection to the server, for questions and for putting obstacles in the way."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True, application_name="pooldrain tests")

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement; the rows, if it has any."""
        cursor = self._connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def url_of(self, database: str) -> str:
        """The URL of a database on this server."""
        return make_url(self.url).set(database=database).render_as_string(hide_password=False)

    def new_database(self) -> str:
        """The name of a database that nobody has used before."""
        name = f"test_{next(_serial)}"
        self.run(f"CREATE DATABASE {name}")
        return name

    def sessions(self, pids: Collection[int] | None = None) -> list[Session]:
        """The sessions of services: of these processes, or of all."""
        rows = self.run(
            "SELECT pid, application_name, coalesce(datname, ''), state, query FROM pg_stat_activity "
            "WHERE application_name LIKE 'pooldrain:%'"
        )
        found = [Session(*row) for row in rows]
        if pids is None:
            return found
        return [session for session in found if int(session.application.rpartition(":")[2]) in pids]

    def working(self, pids: Collection[int]) -> list[Session]:
        """The sessions of these processes in which /work's query runs."""
        return [s for s in self.sessions(pids) if s.state == "active" and "pg_sleep" in s.query]

    def await_working(self, pids: Collection[int], number: int = 1) -> list[Session]:
        """Wait until that many requests are at work on the server."""

        def enough() -> list[Session]:
            found = self.working(pids)
            return found if len(found) >= number else []

        return eventually(enough, f"{number} requests at work in the database")

    def await_no_sessions(self, pids: Collection[int]) -> None:
        """Wait until these processes have no session; a server process ends a moment after its client."""
        eventually(lambda: not self.sessions(pids), f"no session of {sorted(pids)} left")

    def await_nobody(self) -> None:
        """Wait until no service has a session."""
        eventually(lambda: not self.sessions(), "no session of any service left")

    def await_empty(self, url: str) -> None:
        """Wait until no service has a session in the database of this URL."""
        name = make_url(url).database
        eventually(lambda: all(s.database != name for s in self.sessions()), f"no session in {name} left")

    def blocked(self, pids: Collection[int]) -> list[int]:
        """Of each of these processes' sessions that waits for a lock: the process."""
        waiting = (
            "SELECT application_name FROM pg_stat_activity "
            "WHERE application_name LIKE 'pooldrain:%' AND wait_event_type = 'Lock'"
        )
        holders = [int(name.rpartition(":")[2]) for (name,) in self.run(waiting)]
        return [pid for pid in holders if pid in pids]

    def await_blocked(self, pids: Collection[int], number: int) -> set[int]:
        """Wait until that many of these processes' sessions wait for a lock; the processes that have some."""

        def enough() -> list[int]:
            found = self.blocked(pids)
            return found if len(found) >= number else []

        return set(eventually(enough, f"{number} requests waiting in the database"))

    def orders(self, prefix: str) -> list[str]:
        """The ids of the orders in the table that start with `prefix`."""
        return [row[0] for row in self.run("SELECT id FROM orders WHERE starts_with(id, %s)", prefix)]

    def terminate(self, sessions: Iterable[Session]) -> None:
        """End sessions from the server's side."""
        for session in sessions:
            self.run("SELECT pg_terminate_backend(%s)", session.backend)

    @contextlib.contextmanager
    def frozen(self, session: Session) -> Generator[None]:
        """Stop the server's side of a session, as a hanging disk would: nothing it is told reaches it."""
        assert send(session.backend, signal.SIGSTOP), "the session has ended"
        try:
            yield
        finally:
            send(session.backend, signal.SIGCONT)
