"""A connection pooler (PgBouncer) between us and PostgreSQL: how it is found out, and what is not done then.

Behind it a start-up parameter is refused (`unsupported startup parameter: options`), or belongs to somebody else's
session, and a prepared statement is gone, or somebody else's, with the next transaction. It shows: the process number
that it gives with a connection is one of its own, and not that of the server's process.

It accepts more clients than it has server connections; who gets none hangs at the first statement, without a word. So
the first statement is ours, and it is given a bound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pooldrain.policy import PoolerMode
from pooldrain.sqla.drivers import shut_down_socket

logger = logging.getLogger("pooldrain")

_UNSUPPORTED = "unsupported startup parameter"
_PID = "SELECT pg_backend_pid()"

# The drivers that prepare statements on their own, and can be told not to of a connection that is open.
PREPARING = ("psycopg", "psycopg_async")

# What psycopg prepares on its own: statements that are executed so often.
_PSYCOPG_DEFAULT = 5


class Pooler:
    """What is known of one database: whether a pooler is in between (`found`; None: not known yet)."""

    def __init__(self, mode: PoolerMode, name: str, patience: float) -> None:
        """`patience`: seconds in which a new connection has to answer its first statement."""
        self.found = {"on": True, "off": False, "auto": None}[mode]
        self._name = name
        self._patience = patience

    def connect(self, dialect: Any, cargs: Any, cparams: dict[str, Any], url_options: str | None) -> Any:
        """A connection, as it has to be behind a pooler; None if there is none, for the dialect to connect as ever.

        `url_options`: what the URL itself has as `options`. Raises the driver's errors.
        """
        if self.found is False:
            return None
        if self.found is None:
            connection = self._find_out(dialect, cargs, cparams)
            if connection is not None:
                return connection
        _leave_out(cparams, url_options)
        return self._open(dialect, cargs, cparams)[0]

    def look_at(self, connection: Any, record: object = None) -> None:
        """A listener for `connect` of an application's engine, on psycopg: behind a pooler nothing is prepared."""
        if self.found is None:
            try:
                self._know(pooled=_ask_pid(connection) != _driver(connection).info.backend_pid)
            except Exception:  # noqa: BLE001 - a database that has no such function: its application is not to notice
                self.found = False
                connection.rollback()
        if self.found and _driver(connection).prepare_threshold == _PSYCOPG_DEFAULT:
            _driver(connection).prepare_threshold = None

    def _find_out(self, dialect: Any, cargs: Any, cparams: dict[str, Any]) -> Any:
        """The first connection, if there is no pooler in between."""
        try:
            connection, pid = self._open(dialect, cargs, cparams)
        except dialect.loaded_dbapi.OperationalError as error:
            if _UNSUPPORTED not in str(error):
                raise
            self._know(pooled=True)
            return None
        self._know(pooled=pid != _driver(connection).info.backend_pid)
        if self.found:  # it was given what it is not to have
            connection.close()
            return None
        return connection

    def _open(self, dialect: Any, cargs: Any, cparams: dict[str, Any]) -> tuple[Any, int]:
        """A connection that has answered its first statement, and the number of the server's process."""
        connection = dialect.connect(*cargs, **cparams)
        try:
            with self._bounded(dialect, connection):
                return connection, _ask_pid(connection)
        except BaseException:
            connection.close()
            raise

    def _know(self, *, pooled: bool) -> None:
        if pooled and self.found is None:
            logger.info(
                "%s: a connection pooler is in between: no start-up parameters, no prepared statements", self._name
            )
        self.found = pooled

    @contextmanager
    def _bounded(self, dialect: Any, connection: Any) -> Generator[None]:
        """End the connection's socket if this takes too long: there is no other way that both colours have.

        An answer that comes as the time is up is none: what is given to a request never has its socket ended.
        """
        once = threading.Lock()  # who has it first says how it ended: the answer, or the time

        def end() -> None:
            if once.acquire(blocking=False):
                shut_down_socket(_driver(connection))

        timer = threading.Timer(self._patience, end)
        timer.daemon = True
        timer.start()
        hangs = dialect.loaded_dbapi.OperationalError(
            f"the connection pooler took the connection and gave it no server connection within {self._patience:g} "
            "s: all that its pool may have (default_pool_size) are in use; it has to have as many as all pools "
            "before it together"
        )
        try:
            yield
        except Exception as error:
            if once.acquire(blocking=False):
                raise
            raise hangs from error
        else:
            if not once.acquire(blocking=False):
                raise hangs
        finally:
            timer.cancel()


def _leave_out(cparams: dict[str, Any], url_options: str | None) -> None:
    """What a pooler does not take, or cannot keep; what the URL asks for stays."""
    if url_options is None:
        cparams.pop("options", None)
    else:
        cparams["options"] = url_options
    cparams["prepare_threshold"] = None


def _ask_pid(connection: Any) -> int:
    """The number of the server's process, as it says itself; the connection is as before."""
    cursor = connection.cursor()
    try:
        cursor.execute(_PID)
        row = cursor.fetchone()
    finally:
        cursor.close()
    connection.rollback()
    number: int = row[0]
    return number


def _driver(connection: Any) -> Any:
    """The driver's own connection, of SQLAlchemy's wrapper around an asyncio one."""
    return getattr(connection, "driver_connection", connection)
