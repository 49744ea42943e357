"""The proxy between a service and its database does to connections what it says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pooldrain.sqla.drivers import shut_down_socket
from pooldrain_compare.harness.faults.proxy import Proxy
from tests.harness.postgres import Postgres
from tests.harness.waiting import BOUND, eventually

SILENCE = 0.3  # seconds without an answer that show that none will come; one comes within milliseconds

Connection = psycopg.Connection[Any]


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with Proxy(database_url) as running:
        yield running


@pytest.fixture
def connection(proxy: Proxy, database_url: str) -> Iterator[Connection]:
    with contextlib.closing(connect(proxy, database_url)) as connected:
        yield connected


def connect(proxy: Proxy, database_url: str) -> Connection:
    return psycopg.connect(proxy.through(database_url), autocommit=True, application_name="proxied", connect_timeout=15)


def ask(connection: Connection) -> object:
    row = connection.execute("SELECT 42").fetchone()
    return row and row[0]


def sessions(postgres: Postgres) -> list[tuple[Any, ...]]:
    return postgres.run("SELECT pid, state FROM pg_stat_activity WHERE application_name = 'proxied'")


class Asking:
    """A statement that runs in a thread."""

    def __init__(self, connection: Connection, statement: bytes = b"SELECT pg_sleep(600)") -> None:
        self.ended = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._ask, args=(connection, statement), daemon=True)
        self._thread.start()

    def _ask(self, connection: Connection, statement: bytes) -> None:
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            self.error = error
        self.ended.set()


def test_it_forwards(proxy: Proxy, connection: Connection) -> None:
    assert ask(connection) == 42
    assert proxy.connections == 1
    connection.close()
    eventually(lambda: proxy.connections == 0, "nothing is forwarded any more")


def test_more_than_one_chunk_gets_through_in_both_directions(connection: Connection) -> None:
    text = "x" * 3_000_000
    assert connection.execute("SELECT %s || 'y'", (text,)).fetchone() == (text + "y",)


def test_the_last_words_of_the_server_get_through(postgres: Postgres, connection: Connection) -> None:
    postgres.run("SELECT pg_terminate_backend(%s, 5000)", connection.info.backend_pid)
    with pytest.raises(psycopg.errors.AdminShutdown):
        ask(connection)


def test_the_server_learns_that_the_client_has_left(postgres: Postgres, connection: Connection) -> None:
    connection.close()
    eventually(lambda: not sessions(postgres), "the session ends")


def test_refusing_is_for_new_connections(proxy: Proxy, connection: Connection, database_url: str) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy, database_url)
    assert ask(connection) == 42
    proxy.restore()
    with contextlib.closing(connect(proxy, database_url)) as another:
        assert ask(another) == 42


def test_a_reset_ends_every_connection_in_mid_query(
    proxy: Proxy, connection: Connection, postgres: Postgres, database_url: str
) -> None:
    asking = Asking(connection)
    eventually(lambda: "active" in str(sessions(postgres)), "the query runs")
    proxy.reset()
    assert asking.ended.wait(BOUND)
    assert isinstance(asking.error, psycopg.OperationalError)
    assert connection.closed
    with contextlib.closing(connect(proxy, database_url)) as another:
        assert ask(another) == 42
    postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'proxied'")


def test_into_a_black_hole_everything_goes_and_nothing_comes_back(proxy: Proxy, connection: Connection) -> None:
    proxy.black_hole()
    asking = Asking(connection, b"SELECT 1")
    assert not asking.ended.wait(SILENCE)
    proxy.restore()
    assert asking.ended.wait(BOUND)
    assert asking.error is None


def test_a_black_hole_accepts_connections_and_is_silent(proxy: Proxy) -> None:
    proxy.black_hole()
    with socket.create_connection(proxy.address, BOUND) as client:
        client.sendall(b"anybody there?")
        client.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_what_was_said_into_a_black_hole_by_a_client_that_has_left_is_never_heard(
    proxy: Proxy, connection: Connection, postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE black_hole (id int)")
    proxy.black_hole()
    asking = Asking(connection, b"INSERT INTO black_hole VALUES (1)")
    eventually(lambda: connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE, "it is sent")
    assert shut_down_socket(connection)
    assert asking.ended.wait(BOUND)
    proxy.restore()
    eventually(lambda: not sessions(postgres), "the session ends")
    assert postgres.run("SELECT count(*) FROM black_hole") == [(0,)]
    postgres.run("DROP TABLE black_hole")


def test_answers_can_be_delayed(proxy: Proxy, connection: Connection) -> None:
    proxy.delay(SILENCE)
    asked = time.monotonic()
    assert ask(connection) == 42
    assert time.monotonic() - asked >= SILENCE
    proxy.restore()
    ask(connection)
    assert time.monotonic() - asked < 10 * SILENCE


def test_only_idle_connections_are_cut(proxy: Proxy, database_url: str, postgres: Postgres) -> None:
    idle, in_transaction, busy = (connect(proxy, database_url) for _ in range(3))
    in_transaction.execute("BEGIN")
    asking = Asking(busy, b"SELECT pg_sleep(0.5)")
    eventually(lambda: "active" in str(sessions(postgres)), "the query runs")
    assert proxy.cut_idle() == 1
    with pytest.raises(psycopg.OperationalError):
        ask(idle)
    assert ask(in_transaction) == 42
    assert asking.ended.wait(BOUND)
    assert asking.error is None
    for each in (in_transaction, busy):
        each.close()


def test_new_connections_can_go_to_another_server(proxy: Proxy, connection: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        proxy.switch(f"postgresql://{host}:{port}/name")
        with socket.create_connection(proxy.address, BOUND) as client:
            other.settimeout(BOUND)
            accepted, _ = other.accept()
            with accepted:
                accepted.sendall(b"here")
                assert client.recv(4) == b"here"
    assert ask(connection) == 42


def test_without_a_server_connections_end_at_once(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    proxy.switch(f"postgresql://127.0.0.1:{port}/name")
    with contextlib.suppress(ConnectionResetError), socket.create_connection(proxy.address, BOUND) as client:
        assert client.recv(1) == b""
