"""What the database server itself says: whose sessions are open, which orders are in the table.

Asked over a connection of its own, so that no backend's word has to be taken for it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psycopg

APPLICATION_NAME = "pooldrain-compare"
_PAUSE = 0.002  # between two looks at pg_stat_activity; the server offers no event for it


@dataclass(frozen=True, slots=True)
class Left:
    """Sessions of a service after its process ended."""

    at_exit: int  # at the first look
    finally_: int  # when the waiting was over
    seconds: float  # from the first look to none, or to the bound


class Witness:
    """A connection to the server under test, used for questions only. `url` as libpq takes it."""

    def __init__(self, url: str, *, connect_timeout: float = 5.0) -> None:
        self._connection = psycopg.connect(
            url,
            autocommit=True,
            application_name=APPLICATION_NAME,
            connect_timeout=max(1, round(connect_timeout)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def sessions(self, prefix: str) -> int:
        """Open sessions whose application name starts with `prefix`."""
        row = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)", (prefix,)
        ).fetchone()
        assert row is not None, "count(*) has a row"
        return int(row[0])

    def end_sessions(self, prefix: str) -> None:
        """End them from the server's side: queries whose client has gone run on there."""
        self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, %s)", (prefix,)
        )

    def await_running(self, prefix: str, number: int, timeout: float) -> None:
        """Look until so many of them run a query; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (running := self.running(prefix)) < number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{running} of {number} queries were running after {timeout:g} s")
            time.sleep(_PAUSE)

    def running(self, prefix: str) -> int:
        """How many of them are running a query at this moment."""
        row = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s) AND state = 'active'",
            (prefix,),
        ).fetchone()
        assert row is not None, "count(*) has a row"
        return int(row[0])

    def setting(self, name: str) -> str:
        """A setting of the server, such as `server_version`."""
        row = self._connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
        assert row is not None, "a setting has a value"
        return str(row[0])

    def await_none(self, prefix: str, timeout: float) -> Left:
        """Look until no session is left, at most `timeout` seconds.

        A server process ends a moment after its client has said goodbye; that moment is no fault of the client.
        """
        started = time.monotonic()
        at_exit = left = self.sessions(prefix)
        while left and time.monotonic() - started < timeout:
            time.sleep(_PAUSE)
            left = self.sessions(prefix)
        return Left(at_exit, left, time.monotonic() - started)

    def create_orders(self) -> None:
        """The orders' table, for baselines, which do not create it."""
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, item text NOT NULL, quantity integer NOT NULL, "
            "created_at timestamptz NOT NULL DEFAULT now())"
        )

    def orders(self, prefix: str) -> Counter[str]:
        """How often each order whose id starts with `prefix` is in the table."""
        rows = self._connection.execute(
            "SELECT id, count(*) FROM orders WHERE starts_with(id, %s) GROUP BY id", (prefix,)
        ).fetchall()
        return Counter({str(identity): int(count) for identity, count in rows})

    def remove_orders(self, prefix: str) -> None:
        """Take this run's orders out again: the database may be the user's."""
        self._connection.execute("DELETE FROM orders WHERE starts_with(id, %s)", (prefix,))
