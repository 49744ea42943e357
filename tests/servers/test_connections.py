"""Odd connections at a shutdown: each is dealt with in bounded time, and none delays anybody else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pooldrain_compare.harness.servers import Backend
from tests.conftest import PutInFlight
from tests.harness.http import Connection, request
from tests.harness.in_flight import InFlight, Taken
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually

# Seconds that the service may need beyond its last answer: the linger of 0.05 s, and what a slow machine adds.
LINGER = 0.8
# Seconds from the end of the work in the database to the answer at the client, on a slow machine.
DELIVERY = 1.0

ORDER = b'{"id": "%s", "item": "notebook"}'


@dataclass
class Drain:
    """A service with one ordinary request in flight, to see what others do to it."""

    service: Service
    held: InFlight

    def start(self) -> None:
        """Tell the service to end, and wait until it refuses requests."""
        self.service.send_signal()
        self.service.await_drain()

    def finish(self) -> None:
        """Let the ordinary request go: it is answered at once, and the service ends right after that."""
        released = self.held.release()
        [answer] = self.held.answers()
        assert (answer.status, answer.closes) == (201, True)
        assert answer.at - released < DELIVERY
        self.held.connections[0].close()
        ended = self.service.ended()
        assert ended.code == 0
        assert ended.at - answer.at < LINGER
        assert not self.service.complaints


@pytest.fixture
def drain(services: Launcher, in_flight: PutInFlight, backend: Backend) -> Drain:
    service = services.start(backend, "--drain-timeout", "5", "--cancel-timeout", "1", "--dispose-timeout", "1")
    return Drain(service, in_flight(service))


def half_an_order(service: Service, order: str) -> tuple[Connection, bytes]:
    """A request in flight of which the last ten bytes are still to come, and those."""
    wire = request("POST", "/orders", ORDER % order.encode(), [("X-Request-ID", order)])
    connection = service.connect()
    connection.expect("POST")
    connection.send(wire[:-10])
    eventually(lambda: {event.get("request") for event in service.transcript} >= {order}, "it is in flight")
    return connection, wire[-10:]


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
def test_a_connection_without_a_request_delays_nothing_and_is_closed(drain: Drain, oddity: Oddity) -> None:
    connection = oddity(drain.service)
    drain.start()
    drain.finish()
    assert connection.ending() == "closed"


def test_idle_connections_do_not_keep_an_idle_service(services: Launcher, backend: Backend) -> None:
    service = services.start(backend)
    idle = [oddity(service) for oddity in (used_and_idle, silent) for _ in range(10)]
    signalled = service.send_signal()
    ended = service.ended()
    assert ended.code == 0
    assert ended.at - signalled < LINGER
    assert [connection.ending() for connection in idle] == ["closed"] * len(idle)


def test_a_request_completed_during_the_drain_is_refused_with_an_answer(drain: Drain) -> None:
    half, idle, quiet = half_sent_headers(drain.service), used_and_idle(drain.service), silent(drain.service)
    drain.start()
    half.expect("GET")
    half.send(b"alhost\r\n\r\n")
    for answer in (half.answer(), idle.get("/"), quiet.get("/")):
        assert (answer.status, answer.closes) == (503, True)
    assert [half.ending(), idle.ending(), quiet.ending()] == ["closed"] * 3
    drain.finish()


def test_a_pipelined_request_is_answered_or_left_unanswered_but_never_cut_off(
    services: Launcher, postgres: Postgres, taken: Taken, backend: Backend
) -> None:
    service = services.start(backend)
    connection = service.connect().ask("POST", "/orders", taken.order().body).ask("GET", "/db-test")
    postgres.await_blocked(service.pids, 1)
    service.send_signal()
    service.await_drain()
    taken.release()
    first = connection.answer()
    assert first.status == 201
    if not first.closes:  # if it does, the second was not taken: its client may ask elsewhere (RFC 9112 9.3.2)
        second = connection.answer()
        assert (second.status, second.closes) in ((200, True), (503, True))
    assert connection.ending() == "closed"
    ended = service.ended()
    assert ended.code == 0
    assert ended.at - first.at < LINGER


def test_a_body_completed_during_the_drain_is_an_order_stored(drain: Drain, postgres: Postgres) -> None:
    order = f"slow-{uuid.uuid4().hex[:12]}"
    slow, rest = half_an_order(drain.service, order)
    drain.start()
    slow.send(rest)
    answer = slow.answer()
    assert (answer.status, answer.closes) == (201, True)
    assert postgres.orders(order) == [order]
    drain.finish()


def test_a_body_that_never_ends_is_cut_at_the_drain_timeout_and_delays_nobody(
    services: Launcher, in_flight: PutInFlight, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend, "--drain-timeout", "0.8", "--cancel-timeout", "0.4", "--dispose-timeout", "1")
    held = in_flight(service)
    order = f"endless-{uuid.uuid4().hex[:12]}"
    endless, _ = half_an_order(service, order)
    signalled = service.send_signal()
    service.await_drain()
    released = held.release()
    [answer] = held.answers()
    assert (answer.status, answer.closes) == (201, True)
    assert answer.at - released < DELIVERY
    cut = endless.answer()
    assert (cut.status, cut.closes) == (504, True)
    ended = service.ended()
    assert ended.code == 3
    assert ended.at - signalled < 0.8 + LINGER
    assert postgres.orders(order) == []
    postgres.await_no_sessions(service.pids)


def test_a_client_that_leaves_mid_request_leaves_nothing_behind(drain: Drain, postgres: Postgres, taken: Taken) -> None:
    service = drain.service
    polite, rude, uploading = (service.connect() for _ in range(3))
    polite.ask("POST", "/orders", taken.order().body)
    rude.ask("POST", "/orders", taken.order().body)
    uploading.send(request("POST", "/orders", ORDER % b"left")[:-10])
    postgres.await_blocked(service.pids, 3)  # these two, and the ordinary one
    polite.close()
    drain.start()
    rude.reset()
    uploading.close()
    taken.release()
    eventually(lambda: len(postgres.blocked(service.pids)) == 1, "the work of those who left is over")
    drain.finish()
    postgres.await_no_sessions(service.pids)
    assert service.report["outstanding"] == []
    assert service.report["requests"]["cut"] == 0


def test_a_client_that_does_not_close_does_not_hold_the_service(drain: Drain) -> None:
    drain.start()
    drain.held.release()
    [answer] = drain.held.answers()
    ended = drain.service.ended()  # the client has its answer, and keeps its end open
    assert answer.status == 201
    assert ended.at - answer.at < LINGER
    assert drain.held.connections[0].ending() == "closed"


def test_a_client_that_is_refused_before_its_body_is_read_gets_the_answer_whole(drain: Drain) -> None:
    drain.start()
    eager = drain.service.connect().ask("POST", "/orders", b" " * 60_000)  # what is unread must not reset the answer
    answer = eager.answer()
    assert (answer.status, answer.closes) == (503, True)
    assert eager.ending() == "closed"
    drain.finish()


def test_garbage_is_answered_400_and_delays_nothing(drain: Drain) -> None:
    before, after = drain.service.connect(), drain.service.connect()
    before.send(b"\x16\x03\x01\x02\x00\r\n\r\n")
    drain.start()
    after.send(b"NOT HTTP AT ALL\r\n\r\n")
    for connection in (before, after):
        status_line = connection.everything().split(b"\r\n")[0]
        assert status_line.endswith(b"400 Bad Request")
    drain.finish()
    assert drain.service.report["requests"]["cut"] == 0


def test_no_answer_waits_for_its_client_to_acknowledge_the_one_before(services: Launcher, backend: Backend) -> None:
    connection = services.start(backend).connect()

    def seconds() -> float:
        asked = time.monotonic()
        return connection.get("/livez").at - asked

    taken = [seconds() for _ in range(40)]
    # Headers and body in two segments, without TCP_NODELAY: each answer waits 40 ms for a delayed acknowledgement.
    assert min(taken[20:]) < 0.02
