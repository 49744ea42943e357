"""Drivers are asked in one place, which never raises, whatever they answer."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from pooldrain.sqla.drivers import (
    cancellation,
    has_news,
    in_transaction,
    is_busy,
    is_executing,
    is_usable_here,
    limits,
    shut_down_socket,
)


class Refusing:
    """A driver's connection that raises whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: the connection is closed")


def psycopg3(status: int) -> Any:
    return SimpleNamespace(info=SimpleNamespace(transaction_status=SimpleNamespace(value=status)))


def psycopg2(status: int) -> Any:
    return SimpleNamespace(info=SimpleNamespace(transaction_status=status))


@pytest.mark.parametrize("driver", [psycopg3, psycopg2])
@pytest.mark.parametrize(
    ("status", "transaction", "executing"),
    [(0, False, False), (1, True, True), (2, True, False), (3, True, False), (4, None, None)],
)
def test_libpqs_status_tells_of_the_transaction_as_an_enumeration_and_as_a_number(
    driver: Callable[[int], Any], status: int, transaction: bool | None, executing: bool | None
) -> None:
    assert in_transaction(driver(status)) is transaction
    assert is_executing(driver(status)) is executing


def test_sqlite_tells_of_its_transaction_and_cannot_tell_whether_it_runs_something() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        assert in_transaction(connection) is False
        connection.execute("BEGIN")
        assert in_transaction(connection) is True
        assert is_executing(connection) is None
    finally:
        connection.close()


UNABLE: dict[str, Any] = {
    "no connection": None,
    "knows nothing": object(),
    "raises": Refusing(),
    "its info raises": SimpleNamespace(info=Refusing()),
    "a status of words": SimpleNamespace(info=SimpleNamespace(transaction_status="idle")),
    "an answer of another kind": SimpleNamespace(in_transaction=3),
}


@pytest.mark.parametrize("name", UNABLE)
def test_a_driver_that_cannot_answer_breaks_nothing(name: str) -> None:
    driver = UNABLE[name]
    assert in_transaction(driver) is None
    assert is_executing(driver) is None
    assert is_busy(driver) is None
    assert shut_down_socket(driver) is False


# -- what is done to them


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "pysqlite", "aiosqlite"])
def test_nothing_has_to_be_said_of_a_driver_that_we_know(driver: str) -> None:
    assert limits(driver) == ""


def test_of_another_it_is_said_what_may_not_be_possible() -> None:
    assert "may not be cancelled" in limits("pymysql")


@pytest.mark.parametrize("method", ["cancel_safe", "interrupt", "cancel"])
def test_a_driver_that_we_do_not_know_is_cancelled_in_one_of_the_usual_ways(method: str) -> None:
    called: list[str] = []

    def cancelling(**given: object) -> None:
        called.append(method)

    assert cancellation(SimpleNamespace(**{method: cancelling}), 1.0) is None
    assert called == [method]


def test_a_statement_of_sqlite_is_interrupted_from_another_thread() -> None:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    with closing(connection), ThreadPoolExecutor(1) as thread:
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        running = thread.submit(connection.execute, endless)
        while not running.done():
            cancellation(connection, 1.0)
        assert isinstance(running.exception(), sqlite3.OperationalError)


def test_a_connection_of_sqlite_may_belong_to_one_thread() -> None:
    with ThreadPoolExecutor(1) as thread:
        theirs = thread.submit(sqlite3.connect, ":memory:").result()
        assert not is_usable_here(theirs)
        thread.submit(theirs.close).result()
    with closing(sqlite3.connect(":memory:")) as ours:
        assert is_usable_here(ours)
    assert is_usable_here(object())


def test_what_has_come_on_its_socket_is_news_and_so_is_its_end() -> None:
    ours, theirs = socket.socketpair()
    driver = SimpleNamespace(fileno=ours.fileno)
    with ours, theirs:
        assert not has_news(driver)
        theirs.send(b"the server shuts down")
        assert has_news(driver)
        ours.recv(100)
        assert not has_news(driver)
        theirs.close()
        assert has_news(driver)


def test_a_connection_that_cannot_tell_of_its_end_has_news_and_one_without_a_socket_never() -> None:
    assert has_news(Refusing())
    with closing(sqlite3.connect(":memory:")) as connection:
        assert not has_news(connection)
