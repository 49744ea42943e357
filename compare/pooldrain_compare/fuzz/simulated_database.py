"""A database that does as the script says, and its two drivers.

Not SQLite: its files and aiosqlite's threads would cost more than all the rest, and run on a clock of their own.
The drivers have what pooldrain asks drivers for, either as psycopg has it (cancel, a socket that can be shut down,
a lock while in use, a close without waiting) or as sqlite3 and aiosqlite do (interrupt, nothing else). SQLAlchemy
takes them for its SQLite dialects, which expect the least of a server.
"""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol, Self

from sqlalchemy import event
from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection, AsyncAdapt_terminate
from sqlalchemy.util import await_only

PING = "SELECT 1"  # SQLAlchemy's, before it hands a connection out
SELECT = "SELECT one()"
HOLD = "SELECT hold(:key)"
HOLD_DEAF = "SELECT hold_deaf(:key)"
INSERT = "INSERT INTO orders VALUES (:key)"
# The keys of what else may hang; that of a close is completed by the session's number.
CLOSE, OPEN, TEST = "close", "open", "test"

Error = sqlite3.Error


def gone() -> Error:
    """What a statement on a lost connection raises; SQLAlchemy knows these words."""
    return sqlite3.ProgrammingError("Cannot operate on a closed database.")


def cancelled() -> Error:
    """What a cancelled statement raises."""
    return sqlite3.OperationalError("canceling statement due to user request")


class Wait(Protocol):
    """Something that waits until it is ended, in either colour."""

    deaf: bool

    def end(self, error: Exception | None = None) -> None:
        """Let it go on, or make it raise."""


class Database:
    """The server."""

    def __init__(self, driver: str, may_hang: Callable[[], bool]) -> None:
        self.driver = driver
        self.may_hang = may_hang  # whether somebody is there to be bored by a close that hangs
        self.rows: list[str] = []  # committed
        self.sessions: list[Session] = []
        self.refusing = False
        self.slow = False  # whether connecting and testing a connection wait
        self.closing = "well"

    def connect(self) -> Session:
        """A new session."""
        if self.refusing:
            raise sqlite3.OperationalError("connection refused")
        session = Session(self, len(self.sessions) + 1)
        self.sessions.append(session)
        return session

    @property
    def held_sessions(self) -> int:
        """How many of them no client has let go, also those that are lost and whose client does not know yet."""
        return sum(session.held for session in self.sessions)

    def kill_idle(self) -> None:
        """End the sessions that do nothing, as an administrator or a firewall would.

        Those that run a statement stay: who of several that fail at once comes first is chance.
        """
        for session in self.sessions:
            if session.open and not session.in_transaction and session.wait is None:
                session.lose()

    def notice(self) -> bool:
        """Take note of sockets that were shut down; True if there was one."""
        hung_up = [session for session in self.sessions if session.held and session.hung_up()]
        for session in hung_up:
            session.lose()
            session.let_go()
        return bool(hung_up)


class Session:
    """One connection, as the server sees it: both drivers are a thin coat around it."""

    def __init__(self, database: Database, number: int) -> None:
        self.database = database
        self.number = number
        self.open = True
        self.held = True  # its client has not closed it
        self.in_transaction = False
        self.wait: Wait | None = None  # the statement that runs
        self._uncommitted: list[str] = []
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def execute(self, statement: str, parameters: Sequence[Any]) -> tuple[str, bool] | None:
        """Run a statement; one that has to wait answers with its key, and whether it is deaf."""
        if statement == PING and self.database.slow:
            return TEST, True  # it takes a while to notice that the connection is lost
        if not self.open:
            raise gone()
        if self.database.driver == "psycopg" or statement.startswith("INSERT"):
            self.in_transaction = True
        if statement.startswith("INSERT"):
            self._uncommitted.append(parameters[0])
        if statement.startswith("SELECT hold"):
            return parameters[0], statement.startswith("SELECT hold_deaf")
        return None

    def end_transaction(self, *, commit: bool) -> None:
        """Commit or roll back."""
        if not self.open:
            raise gone()
        if commit:
            self.database.rows += self._uncommitted
        self._uncommitted.clear()
        self.in_transaction = False

    def closing(self) -> str | None:
        """Begin to close; the key to wait for, if that hangs."""
        if not self.open or self.database.driver == "sqlite":
            return None  # there is nobody to say good-bye to
        if self.database.closing == "raises":
            self.finish()  # what fails to say good-bye is gone all the same
            raise sqlite3.OperationalError("close failed")
        return f"{CLOSE} {self.number}" if self.database.closing == "hangs" and self.database.may_hang() else None

    def cancel(self) -> None:
        """Cancel the statement that runs, if it listens."""
        if self.wait is not None and not self.wait.deaf:
            self.wait.end(cancelled())

    def lose(self) -> None:
        """The connection breaks, and with it the statement that runs."""
        self._end()
        if self.wait is not None:
            self.wait.end(gone())

    def finish(self) -> None:
        """The client closes it."""
        self._end()
        self.let_go()

    def let_go(self) -> None:
        """Close the socket."""
        self.held = False
        for end in self._sockets or ():
            end.close()
        self._sockets = None

    def _end(self) -> None:
        self.open = False
        self.in_transaction = False
        self._uncommitted.clear()

    def fileno(self) -> int:
        """The driver's end of the socket, made when somebody asks."""
        if not self.held:
            raise OSError("the connection is closed")
        if self._sockets is None:
            self._sockets = socket.socketpair()
            self._sockets[1].setblocking(False)
        return self._sockets[0].fileno()

    def hung_up(self) -> bool:
        """Whether the driver's end was shut down."""
        if self._sockets is None:
            return False
        try:
            return self._sockets[1].recv(1) == b""
        except BlockingIOError:
            return False


def lost(session: Session | None) -> Error | None:
    """What a wait for a session ends with when that is lost."""
    return None if session is None or session.open else gone()


def _result(statement: str) -> tuple[Any, list[tuple[Any, ...]]]:
    """Description and rows of a statement; one column, one row, for everything that asks."""
    if statement.startswith("INSERT"):
        return None, []
    return (("value", None, None, None, None, None, None),), [(1,)]


class _Driver:
    """What both colours of driver tell without waiting."""

    def __init__(self, session: Session) -> None:
        self.session = session


class _LikePsycopg(_Driver):
    """What pooldrain may ask psycopg's connections for."""

    @property
    def info(self) -> Any:
        return SimpleNamespace(transaction_status=SimpleNamespace(value=2 if self.session.in_transaction else 0))

    @property
    def lock(self) -> Any:
        return SimpleNamespace(locked=lambda: self.session.wait is not None)

    @property
    def pgconn(self) -> Any:
        return SimpleNamespace(finish=self.session.finish)

    def fileno(self) -> int:
        return self.session.fileno()


class _LikeSqlite(_Driver):
    """What pooldrain may ask sqlite3's connections for."""

    @property
    def in_transaction(self) -> bool:
        return self.session.in_transaction


# --- threads ------------------------------------------------------------------------------------------------

WaitInThread = Callable[[Session | None, str, bool], None]  # waits for the key; raises what it is ended with


class ThreadDriver(_Driver):
    """A DBAPI connection."""

    def __init__(self, session: Session, wait: WaitInThread) -> None:
        super().__init__(session)
        self._wait = wait

    def cursor(self) -> ThreadCursor:
        """A cursor."""
        return ThreadCursor(self)

    def wait(self, key: str, deaf: bool) -> None:
        """Wait until the script lets it go on."""
        self._wait(self.session, key, deaf)

    def commit(self) -> None:
        """Commit."""
        self.session.end_transaction(commit=True)

    def rollback(self) -> None:
        """Roll back."""
        self.session.end_transaction(commit=False)

    def close(self) -> None:
        """Close; this is what may hang."""
        key = self.session.closing()
        try:
            if key is not None:
                self.wait(key, deaf=True)
        finally:
            self.session.finish()

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        """SQLAlchemy adds functions to SQLite."""


class PsycopgThreadDriver(ThreadDriver, _LikePsycopg):
    """As psycopg.Connection."""

    def cancel_safe(self, *, timeout: float) -> None:
        """Cancel the statement that runs."""
        self.session.cancel()


class SqliteThreadDriver(ThreadDriver, _LikeSqlite):
    """As sqlite3.Connection."""

    def interrupt(self) -> None:
        """Cancel the statement that runs."""
        self.session.cancel()


class _Cursor:
    """What both colours of cursor remember."""

    rowcount = 1
    lastrowid = 0
    arraysize = 1

    def __init__(self) -> None:
        self.description: Any = None
        self._rows: list[tuple[Any, ...]] = []

    def _fill(self, statement: str) -> None:
        self.description, self._rows = _result(statement)


class ThreadCursor(_Cursor):
    """A DBAPI cursor."""

    def __init__(self, driver: ThreadDriver) -> None:
        super().__init__()
        self._driver = driver

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement."""
        waits = self._driver.session.execute(statement, parameters)
        if waits is not None:
            self._driver.wait(*waits)
        self._fill(statement)

    def fetchone(self) -> Any:
        """One row."""
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[Any]:
        """All rows."""
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        """Close."""


# --- asyncio ------------------------------------------------------------------------------------------------


class WaitInTask(Protocol):
    """Waits for the key; raises what it is ended with."""

    async def __call__(self, session: Session | None, key: str, deaf: bool) -> None:
        """Wait."""


class TaskDriver(_Driver):
    """What SQLAlchemy's asyncio adapters expect of a driver's connection."""

    def __init__(self, session: Session, wait: WaitInTask) -> None:
        super().__init__(session)
        self._wait = wait

    def cursor(self) -> TaskCursor:
        """A cursor."""
        return TaskCursor(self)

    async def wait(self, key: str, deaf: bool) -> None:
        """Wait until the script lets it go on."""
        await self._wait(self.session, key, deaf)

    async def commit(self) -> None:
        """Commit."""
        self.session.end_transaction(commit=True)

    async def rollback(self) -> None:
        """Roll back."""
        self.session.end_transaction(commit=False)

    async def close(self) -> None:
        """Close; this is what may hang."""
        key = self.session.closing()
        try:
            if key is not None:
                await self.wait(key, deaf=True)
        finally:
            self.session.finish()

    def stop(self) -> None:
        """Close without waiting: aiosqlite's way, after a garbage collection."""
        self.session.finish()


class PsycopgTaskDriver(TaskDriver, _LikePsycopg):
    """As psycopg.AsyncConnection."""

    async def cancel_safe(self, *, timeout: float) -> None:
        """Cancel the statement that runs."""
        self.session.cancel()


class SqliteTaskDriver(TaskDriver, _LikeSqlite):
    """As aiosqlite.Connection."""

    async def interrupt(self) -> None:
        """Cancel the statement that runs."""
        self.session.cancel()


class TaskCursor(_Cursor):
    """A cursor of such a driver."""

    def __init__(self, driver: TaskDriver) -> None:
        super().__init__()
        self._driver = driver

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement."""
        waits = self._driver.session.execute(statement, parameters)
        if waits is not None:
            await self._driver.wait(*waits)
        self._fill(statement)

    async def fetchall(self) -> list[Any]:
        """All rows."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Close."""


class _Adapted(AsyncAdapt_dbapi_connection):
    """SQLAlchemy's adapter as psycopg's dialect has it."""

    __slots__ = ()

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        """SQLAlchemy adds functions to SQLite."""


class _AdaptedTerminating(AsyncAdapt_terminate, _Adapted):
    """The same as aiosqlite's dialect has it, which can end a connection without waiting."""

    __slots__ = ()

    async def _terminate_graceful_close(self) -> None:
        await self._connection.close()

    def _terminate_force_close(self) -> None:
        self._connection.stop()


# --- both ---------------------------------------------------------------------------------------------------


def serve_threads(database: Database, engine: Any, wait: WaitInThread) -> None:
    """Make `engine` connect to `database`."""
    driver = PsycopgThreadDriver if database.driver == "psycopg" else SqliteThreadDriver

    def connect(dialect: Any, record: Any, cargs: Any, cparams: Any) -> Any:
        if database.slow:
            wait(None, OPEN, True)
        return driver(database.connect(), wait)

    event.listen(engine, "do_connect", connect)


def serve_tasks(database: Database, engine: Any, wait: WaitInTask) -> None:
    """Make `engine`, the synchronous one inside an asynchronous one, connect to `database`."""
    like_psycopg = database.driver == "psycopg"
    driver = PsycopgTaskDriver if like_psycopg else SqliteTaskDriver
    adapter = _Adapted if like_psycopg else _AdaptedTerminating

    def connect(dialect: Any, record: Any, cargs: Any, cparams: Any) -> Any:
        if database.slow:
            await_only(wait(None, OPEN, True))
        connection: Any = driver(database.connect(), wait)
        return adapter(dialect.dbapi, connection)

    if like_psycopg:
        engine.dialect.has_terminate = False
        engine.dialect.do_terminate = engine.dialect.do_close
    event.listen(engine, "do_connect", connect)
