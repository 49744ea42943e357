"""What is done to a connection of an application's own, behind a pooler and elsewhere; the rest needs a real one."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from pooldrain.policy import PoolerMode
from pooldrain.sqla.pooler import Pooler
from pooldrain.sqla.refusals import refuses_more


class Connection:
    """One of psycopg's, as far as it is looked at."""

    def __init__(self, *, told: int, own: int | None, threshold: int | None = 5) -> None:
        self.info = SimpleNamespace(backend_pid=told)
        self.prepare_threshold = threshold
        self.rolled_back = 0
        self._own = own

    def cursor(self) -> Any:
        return SimpleNamespace(execute=self._execute, fetchone=lambda: (self._own,), close=lambda: None)

    def _execute(self, statement: str) -> None:
        if self._own is None:
            raise RuntimeError("no such function")

    def rollback(self) -> None:
        self.rolled_back += 1


def looked_at(connection: Connection, mode: PoolerMode = "auto") -> Pooler:
    pooler = Pooler(mode, "shop", 1.0)
    pooler.look_at(connection)
    return pooler


def test_behind_a_pooler_nothing_is_prepared() -> None:
    connection = Connection(told=1, own=2)
    assert looked_at(connection).found is True
    assert connection.prepare_threshold is None
    assert connection.rolled_back == 1, "as it was before"


def test_elsewhere_a_connection_stays_as_it_is() -> None:
    connection = Connection(told=1, own=1)
    assert looked_at(connection).found is False
    assert connection.prepare_threshold == 5


@pytest.mark.parametrize("threshold", [0, 1, None])
def test_what_the_application_has_chosen_stays(threshold: int | None) -> None:
    connection = Connection(told=1, own=2, threshold=threshold)
    looked_at(connection)
    assert connection.prepare_threshold == threshold


def test_a_database_that_cannot_tell_is_not_asked_again_and_its_application_does_not_notice() -> None:
    connection = Connection(told=1, own=None)
    assert looked_at(connection).found is False
    assert connection.rolled_back == 1


@pytest.mark.parametrize(("mode", "threshold"), [("on", None), ("off", 5)])
def test_who_says_so_need_not_be_asked(mode: PoolerMode, threshold: int | None) -> None:
    connection = Connection(told=1, own=2)
    looked_at(connection, mode)
    assert connection.prepare_threshold == threshold
    assert connection.rolled_back == 0


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ('FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute"', True),
        ("FATAL: sorry, too many clients already", True),
        ('FATAL: too many connections for role "shop"', True),
        ("FATAL: no more connections allowed (max_client_conn)", True),
        ("FATAL: password authentication failed", False),
    ],
)
def test_a_server_that_has_no_room_is_known_by_its_words(text: str, refuses: bool) -> None:
    assert refuses_more(RuntimeError(text)) is refuses


def test_or_by_its_state() -> None:
    error = RuntimeError("zu viele Verbindungen")
    assert not refuses_more(error)
    error.sqlstate = "53300"  # type: ignore[attr-defined]  # as asyncpg's errors have it
    assert refuses_more(error)


def test_an_answer_that_comes_as_the_time_is_up_is_none() -> None:
    ours, theirs = socket.socketpair()

    class Late(Connection):
        """Its first statement is over in the moment in which its socket is ended."""

        closed = False

        def fileno(self) -> int:
            return ours.fileno()

        def rollback(self) -> None:
            assert ours.recv(1) == b"", "it is ended from outside"

        def close(self) -> None:
            self.closed = True

    connection = Late(told=1, own=2)

    def connect(**options: object) -> Late:
        return connection

    driver = SimpleNamespace(OperationalError=RuntimeError)
    dialect = SimpleNamespace(loaded_dbapi=driver, connect=connect)
    with ours, theirs, pytest.raises(RuntimeError, match="gave it no server connection"):
        Pooler("on", "shop", 0.01).connect(dialect, (), {}, None)
    assert connection.closed, "nobody is given it"
