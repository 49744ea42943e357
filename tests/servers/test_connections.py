"""Odd connections at a shutdown: each is dealt with in bounded time, and none delays anybody else."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pooldrain_compare.backends import Backend
from tests.harness.http import Connection, request
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service

# Seconds that the service may need beyond its last answer: the linger of 0.05 s, and what a slow machine adds.
LINGER = 0.4
# Seconds between a request's end in the database and its answer at the client.
DELIVERY = 0.3
WORK_MS = 600

ORDER = b'{"id": "%s", "item": "notebook"}'


def begin(services: Launcher, postgres: Postgres, backend: Backend, *options: str) -> tuple[Service, Connection, float]:
    """A service with one ordinary request in flight; when that was begun."""
    service = services.start(backend, *options)
    ordinary = service.connect().ask("GET", f"/work?ms={WORK_MS}")
    began = time.monotonic()
    postgres.await_working(service.pids)
    return service, ordinary, began


def expect_on_time(service: Service, ordinary: Connection, began: float) -> None:
    """The ordinary request is answered when its work is done, and the service ends right after that."""
    answer = ordinary.answer()
    assert (answer.status, answer.closes) == (200, True)
    assert answer.at - began < WORK_MS / 1000 + DELIVERY
    ordinary.close()
    ended = service.ended()
    assert ended.code == 0
    assert ended.at - answer.at < LINGER
    assert not [
        line for line in service.complaints if not line.startswith("Invalid")
    ]  # servers tell of invalid requests


Oddity = Callable[[Service], Connection]


def used_and_idle(service: Service) -> Connection:
    connection = service.connect()
    assert connection.get("/livez").status == 200
    return connection


def silent(service: Service) -> Connection:
    return service.connect()


def half_sent_headers(service: Service) -> Connection:
    connection = service.connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: loc")
    return connection


def half_sent_headers_on_a_used_connection(service: Service) -> Connection:
    connection = used_and_idle(service)
    connection.send(b"GET / HT")
    return connection


ODDITIES = (used_and_idle, silent, half_sent_headers, half_sent_headers_on_a_used_connection)


@pytest.mark.parametrize("oddity", ODDITIES, ids=lambda oddity: oddity.__name__)
def test_a_connection_without_a_request_delays_nothing_and_is_closed(
    services: Launcher, postgres: Postgres, backend: Backend, oddity: Oddity
) -> None:
    service, ordinary, began = begin(services, postgres, backend)
    connection = oddity(service)
    service.send_signal()
    expect_on_time(service, ordinary, began)
    assert connection.ending() == "closed"


def test_idle_connections_do_not_keep_an_idle_service(services: Launcher, backend: Backend) -> None:
    service = services.start(backend)
    idle = [oddity(service) for oddity in (used_and_idle, silent) for _ in range(10)]
    signalled = service.send_signal()
    ended = service.ended()
    assert ended.code == 0
    assert ended.at - signalled < LINGER
    assert [connection.ending() for connection in idle] == ["closed"] * len(idle)


def test_a_request_completed_during_the_drain_is_refused_with_an_answer(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service, ordinary, began = begin(services, postgres, backend)
    half, idle, quiet = half_sent_headers(service), used_and_idle(service), silent(service)
    service.send_signal()
    service.await_drain()
    half.expect("GET")
    half.send(b"alhost\r\n\r\n")
    for answer in (half.answer(), idle.get("/"), quiet.get("/")):
        assert (answer.status, answer.closes) == (503, True)
    assert [half.ending(), idle.ending(), quiet.ending()] == ["closed"] * 3
    expect_on_time(service, ordinary, began)


def test_a_pipelined_request_is_answered_or_left_unanswered_but_never_cut_off(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend)
    connection = service.connect()
    began = time.monotonic()
    connection.ask("GET", f"/work?ms={WORK_MS}").ask("GET", "/db-test")
    postgres.await_working(service.pids)
    service.send_signal()
    first = connection.answer()
    assert first.status == 200
    assert first.at - began < WORK_MS / 1000 + DELIVERY
    if first.closes:  # then the second one was not taken, and its client may ask again elsewhere (RFC 9112 9.3.2)
        assert connection.ending() == "closed"
    else:
        second = connection.answer()
        assert (second.status, second.closes) in ((200, True), (503, True))
        assert connection.ending() == "closed"
    ended = service.ended()
    assert ended.code == 0
    assert ended.at - first.at < LINGER


def test_a_body_that_comes_in_time_is_an_order_accepted(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service, ordinary, began = begin(services, postgres, backend)
    order = ORDER % f"in-time-{backend.name}".encode()
    wire = request("POST", "/orders", order)
    slow = service.connect()
    slow.expect("POST")
    slow.send(wire[:-10])
    service.send_signal()
    service.await_drain()
    slow.send(wire[-10:])
    answer = slow.answer()
    stored = postgres.orders(f"in-time-{backend.name}")
    assert answer.closes
    assert (answer.status, len(stored)) in ((201, 1), (503, 0))
    expect_on_time(service, ordinary, began)


def test_a_body_that_never_ends_is_cut_at_the_drain_timeout_and_delays_nobody(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service, ordinary, began = begin(
        services, postgres, backend, "--drain-timeout", "1", "--cancel-timeout", "0.5", "--dispose-timeout", "1"
    )
    endless = service.connect()
    endless.expect("POST")
    endless.send(request("POST", "/orders", ORDER % b"never")[:-10])
    signalled = service.send_signal()
    answer = ordinary.answer()
    assert (answer.status, answer.closes) == (200, True)
    assert answer.at - began < WORK_MS / 1000 + DELIVERY
    ended = service.ended()
    assert ended.code in (0, 3)
    assert ended.at - signalled < 1 + 0.5 + LINGER
    assert postgres.orders("never") == []


def test_a_client_that_leaves_mid_request_leaves_nothing_behind(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service, ordinary, began = begin(services, postgres, backend)
    polite, rude, uploading = (service.connect() for _ in range(3))
    polite.ask("GET", "/work?ms=300").close()
    rude.ask("GET", "/work?ms=300")
    uploading.send(request("POST", "/orders", ORDER % b"left")[:-10])
    postgres.await_working(service.pids, 3)
    service.send_signal()
    service.await_drain()
    rude.reset()
    uploading.close()
    expect_on_time(service, ordinary, began)
    postgres.await_no_sessions(service.pids)
    assert service.report["outstanding"] == []
    assert service.report["requests"]["cut"] == 0


def test_a_client_that_does_not_close_does_not_hold_the_service(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service, ordinary, _ = begin(services, postgres, backend)
    service.send_signal()
    answer = ordinary.answer()
    ended = service.ended()  # the client has its answer, and keeps its end open
    assert answer.status == 200
    assert ended.at - answer.at < LINGER
    assert ordinary.ending() == "closed"


def test_a_client_that_goes_on_sending_after_its_answer_gets_that_answer_whole(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service, ordinary, began = begin(services, postgres, backend)
    service.send_signal()
    service.await_drain()
    eager = service.connect()
    eager.ask("POST", "/orders", b" " * 60_000)  # refused before it is read; what is unread must not reset the answer
    answer = eager.answer()
    assert (answer.status, answer.closes) == (503, True)
    expect_on_time(service, ordinary, began)


def test_garbage_is_answered_400_and_delays_nothing(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service, ordinary, began = begin(services, postgres, backend)
    before = service.connect()
    before.send(b"\x16\x03\x01\x02\x00\r\n\r\n")
    service.send_signal()
    service.await_drain()
    after = service.connect()
    after.send(b"NOT HTTP AT ALL\r\n\r\n")
    assert before.everything().split(b"\r\n")[0].endswith(b"400 Bad Request")
    assert after.everything().split(b"\r\n")[0].endswith(b"400 Bad Request")
    expect_on_time(service, ordinary, began)
    assert service.report["requests"]["cut"] == 0
