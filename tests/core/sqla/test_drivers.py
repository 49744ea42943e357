"""Drivers are asked in one place, which never raises, whatever they answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pooldrain.sqla.drivers import in_transaction, is_busy, is_executing, shut_down_socket


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
    assert is_busy(driver) is False
    assert shut_down_socket(driver) is False
