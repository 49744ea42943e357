"""Clients that misbehave at a shutdown: each has its bound, none delays the others, and whoever can be answered is."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from pathlib import Path

import pytest

from pooldrain.runtime.process.watchdog import END_MARGIN
from pooldrain_compare.harness.load import LoadClient, Mode, Outcome, constant
from pooldrain_compare.harness.servers import EVERY_WAY, GUNICORN, SERVERS, UVICORN, UVICORN_2, WAITRESS, Backend
from pooldrain_compare.parity.app.routes import BIG
from pooldrain_compare.parity.conductor import app_module
from tests.conftest import Measured, PutInFlight
from tests.harness.http import Answer, Connection, request
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import stuck_app

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
threaded = pytest.mark.parametrize("backend", [GUNICORN, WAITRESS], ids=lambda backend: backend.name)

ROOT = Path(__file__).parents[2]

DRAIN, CANCEL, DISPOSE = 1.2, 1.0, 2.0  # seconds, where a test comes to the end of them
NO_TEARDOWN = ("--teardown-timeout", "0.1")  # where there is nothing to tear down, and every second counts
SHORT = (
    "--drain-timeout",
    str(DRAIN),
    "--cancel-timeout",
    str(CANCEL),
    "--dispose-timeout",
    str(DISPOSE),
    *NO_TEARDOWN,
)
# Seconds that the service may need beyond its last step: the linger of 0.05 s, and what a slow machine adds.
LINGER = 0.8
# The same, and their sum, where all of it has to pass.
SHORTER = (
    "--drain-timeout",
    "0.5",
    "--cancel-timeout",
    "0.3",
    "--dispose-timeout",
    "0.4",
    "--linger",
    "0.05",
    *NO_TEARDOWN,
)
SHORTER_GRACE = 1.35
# Seconds beyond its release until an ordinary request is answered, on a slow machine.
DELIVERY = 1.0

PROBLEM = "application/problem+json"
OVERSTAYED = "the service is shutting down and this request overstayed its deadline"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def start(services: Launcher, backend: Backend, *options: str) -> Service:
    """A service with the scenarios' routes: /big and /endless."""
    return services.start(backend, "--app", f"{app_module(backend)}:create_app", *options)


def start_stuck(services: Launcher, backend: Backend, *options: str, factory: str = "create") -> Service:
    """A service with handlers that hang."""
    colour = "sync" if backend.module == "pooldrain_sync" else "async"
    return services.start(backend, "--app", f"{stuck_app.__name__}:{factory}_{colour}", *options)


def upload(service: Service, order: str, target: str = "/orders") -> tuple[Connection, bytes]:
    """An order whose end has not been sent, and that end."""
    body = b'{"id": "%s", "item": "notebook"' % order.encode()
    rest = b" " * 1000 + b"}"
    wire = request("POST", target, body + rest, [("X-Request-ID", order)])
    connection = service.connect()
    connection.expect("POST")
    connection.send(wire[: -len(rest)])
    return connection, rest


def ask_for_all(service: Service, target: str = "/big") -> Connection:
    """A request whose answer has begun to come, and of which nothing is read."""
    connection = service.connect()
    connection.ask("GET", target)
    connection.await_bytes()
    return connection


def some_id() -> str:
    return f"client-{uuid.uuid4().hex[:12]}"


def expect_cut(answer: Answer) -> None:
    assert (answer.status, answer.closes, answer.header("retry-after")) == (504, True, None)
    assert answer.header("content-type") == PROBLEM
    assert answer.json["detail"] == OVERSTAYED


def only_cut(service: Service) -> dict[str, object]:
    """The one request that the reports call cut."""
    [cut] = [cut for report in service.reports for cut in report["cut_requests"]]
    found: dict[str, object] = cut
    return found


# --- bodies that come slowly ------------------------------------------------------------------------------------


@every_way
def test_a_body_that_comes_byte_by_byte_is_cut_at_the_drain_timeout_and_answered(
    services: Launcher, in_flight: PutInFlight, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend, *SHORT)
    held = in_flight(service)
    order = some_id()
    connection, rest = upload(service, order)
    over = threading.Event()

    def drip() -> None:
        for byte in rest:
            if over.wait(0.05):
                return
            connection.send(bytes([byte]))

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        service.await_admitted(len(held) + 1)
        signalled = service.send_signal()
        service.await_drain()
        released = held.release()
        assert {answer.status for answer in held.answers()} == {201}
        assert time.monotonic() - released < DELIVERY
        answer = connection.answer()
    finally:
        over.set()
        dripping.join()
    expect_cut(answer)
    assert DRAIN <= answer.at - signalled < DRAIN + LINGER
    assert connection.ending() == "closed"
    ended = service.ended()
    assert ended.code == 3
    assert ended.at - signalled < DRAIN + LINGER, "the cancel timeout was not needed"
    assert only_cut(service)["request_id"] == order
    assert postgres.orders(order) == []
    postgres.await_no_sessions(service.pids)


def test_a_second_signal_ends_the_wait_for_a_body_at_once(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--drain-timeout", "20")
    connection, _ = upload(service, some_id())
    service.await_admitted(1)
    service.send_signal()
    service.await_drain()
    hurried = service.send_signal()
    expect_cut(connection.answer())
    assert connection.ending() == "closed"
    ended = service.ended()
    assert (ended.code, ended.at - hurried < LINGER) == (3, True)


def test_a_body_that_stalls_is_answered_504_whatever_the_application_makes_of_it(
    services: Launcher, backend: Backend
) -> None:
    service = start_stuck(services, backend, *SHORT, factory="create_plain")
    whole, rest = upload(service, some_id(), "/")
    whole.send(rest)
    assert whole.answer().status == 200
    stalled, _ = upload(service, some_id(), "/")
    service.await_admitted(2)
    service.send_signal()
    expect_cut(stalled.answer())
    assert service.ended().code == 3


def test_chunks_that_are_no_chunks_are_the_clients_mistake(services: Launcher, backend: Backend) -> None:
    service = services.start(backend)
    connection = service.connect()
    connection.expect("POST")
    connection.send(b"POST /orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
    answer = connection.answer()
    assert (answer.status, answer.closes, answer.header("content-type")) == (400, True, PROBLEM)
    service.send_signal()
    assert service.ended().code == 0
    assert not service.complaints


# --- answers that are not taken ---------------------------------------------------------------------------------


@every_way
def test_an_answer_that_is_taken_slowly_comes_whole(services: Launcher, backend: Backend) -> None:
    service = start(services, backend, "--drain-timeout", "20")
    connection = ask_for_all(service)
    signalled = service.send_signal()
    service.await_drain()
    answer = connection.answer(pace=BIG / 2.5)  # slower than any limit that is not the drain timeout
    assert (answer.status, len(answer.body)) == (200, BIG)
    assert answer.at - signalled > 2
    ended = service.ended()
    assert (ended.code, ended.at - answer.at < LINGER) == (0, True)
    assert sum(report["requests"]["in_flight_at_signal"] for report in service.reports) == 1
    assert sum(report["requests"]["finished"] for report in service.reports) == 1


def test_an_answer_that_is_never_taken_is_cut_at_the_drain_timeout(services: Launcher, backend: Backend) -> None:
    service = start(services, backend, *SHORT)
    connection = ask_for_all(service)
    signalled = service.send_signal()
    ended = service.ended()
    assert ended.code == 3
    assert DRAIN <= ended.at - signalled < DRAIN + LINGER, "the cancel timeout was not needed"
    cut = only_cut(service)
    assert (cut["route"], cut["status"]) == ("GET /big", 200)
    received = connection.everything()
    assert 0 < len(received) < BIG, "what the kernel held is still delivered"


def test_a_client_that_leaves_its_answer_behind_is_not_waited_for(services: Launcher, backend: Backend) -> None:
    service = start(services, backend, "--drain-timeout", "20")
    connection = ask_for_all(service)
    service.send_signal()
    service.await_drain()
    left = time.monotonic()
    connection.reset()
    ended = service.ended()
    assert (ended.code, ended.at - left < LINGER) == (0, True)
    assert service.report["requests"]["cut"] == 0
    assert not service.complaints


def test_a_stream_without_end_is_broken_off_at_the_drain_timeout(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start(services, backend, *SHORT)
    connection = ask_for_all(service, "/endless")
    signalled = service.send_signal()
    received = connection.everything()
    assert not received.endswith(b"0\r\n\r\n"), "a stream that was broken off must not look complete"
    ended = service.ended()
    assert (ended.code, ended.at - signalled < DRAIN + LINGER) == (3, True)
    assert only_cut(service)["route"] == "GET /endless"
    assert service.report["outstanding"] == [], "the generator was closed, and has returned its connection"
    assert len(service.complaints) == 1
    postgres.await_no_sessions(service.pids)


# --- many of them -----------------------------------------------------------------------------------------------


@every_way
def test_a_crowd_of_them_delays_nobody(services: Launcher, in_flight: PutInFlight, backend: Backend) -> None:
    service = start(services, backend, *SHORT)
    held = in_flight(service)
    rude = [ask_for_all(service) for _ in range(6)]
    stalled = [upload(service, some_id())[0] for _ in range(6)]
    silent = [service.connect() for _ in range(6)]
    half = [service.connect() for _ in range(6)]
    for connection in half:
        connection.send(b"GET / HTT")
    service.await_admitted(len(held) + len(rude) + len(stalled))
    signalled = service.send_signal()
    service.await_drain()
    asked = time.monotonic()
    assert (service.get("/livez").status, service.get("/db-test").status) == (200, 503)
    assert time.monotonic() - asked < DELIVERY
    released = held.release()
    assert {answer.status for answer in held.answers()} == {201}
    assert time.monotonic() - released < DELIVERY
    for connection in stalled:
        expect_cut(connection.answer())
    assert [connection.ending() for connection in (*stalled, *silent, *half)] == ["closed"] * 18
    ended = service.ended()
    assert (ended.code, ended.at - signalled < DRAIN + LINGER) == (3, True)
    assert sum(report["requests"]["cut"] for report in service.reports) == len(rude) + len(stalled)


@threaded
def test_who_waits_for_a_thread_that_never_comes_is_refused(services: Launcher, backend: Backend) -> None:
    service = start_stuck(services, backend, "--threads", "1", *SHORT)
    stuck = service.connect().ask("GET", "/stuck")
    service.await_admitted(1)
    # The announce period gives the server time to take note of what arrived; no page could be asked: it would wait too.
    waiting = [service.connect().ask("GET", "/stuck") for _ in range(3)]
    body, rest = upload(service, some_id(), "/stuck")
    service.await_admitted(1 if backend is GUNICORN else 2)
    body.send(rest)
    signalled = service.send_signal()
    service.await_drain()
    answers = [connection.answer() for connection in (*waiting, body)]
    assert [(answer.status, answer.closes) for answer in answers] == [(503, True)] * 4
    assert all(DRAIN <= answer.at - signalled < DRAIN + LINGER for answer in answers)
    expect_cut(stuck.answer())
    assert service.ended().code == 3


# --- requests that nobody can end -------------------------------------------------------------------------------


@every_way
def test_a_request_that_heeds_nothing_is_answered_for_and_cut(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start_stuck(services, backend, *SHORT)
    stuck = service.connect().ask("GET", "/stuck", headers=[("X-Request-ID", "stuck-1")])
    eventually(lambda: any("'stuck'" in session.query for session in postgres.sessions(service.pids)), "it is stuck")
    signalled = service.send_signal()
    expect_cut(stuck.answer())
    assert stuck.ending() == "closed"
    ended = service.ended()
    assert ended.code == 3
    assert DRAIN + CANCEL <= ended.at - signalled < DRAIN + CANCEL + LINGER
    cut = only_cut(service)
    assert (cut["request_id"], cut["route"], cut["status"]) == ("stuck-1", "GET /stuck", 504)
    [holding] = [holding for report in service.reports for holding in report["outstanding"]]
    assert (holding["holder"], holding["in_transaction"]) == ("GET /stuck", True)
    postgres.await_no_sessions(service.pids)
    line = next(line for line in service.complaints if line.startswith("cancel: "))
    assert line.startswith("cancel: GET /stuck, request stuck-1, cut after ")


@pytest.mark.parametrize("backend", [UVICORN, UVICORN_2], ids=lambda backend: backend.name)
def test_a_handler_that_blocks_the_event_loop_does_not_keep_the_process(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start_stuck(services, backend, *SHORTER)
    blocking = service.connect().ask("GET", "/block")
    service.await_admitted(1)
    signalled = service.send_signal()
    ended = service.ended()
    assert ended.at - signalled < SHORTER_GRACE + END_MARGIN
    [line] = service.complaints
    if backend is UVICORN:
        assert ended.code == 4
        assert f"{stuck_app.__file__}:" in line
        assert "in block" in line
    else:
        assert ended.code == 128 + signal.SIGKILL
        assert line == "1 workers outlived the grace period and are killed"
    assert blocking.ending() == "closed"
    postgres.await_no_sessions(service.pids)


# --- what is not HTTP -------------------------------------------------------------------------------------------

NOT_HTTP = {
    "tls": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "words": b"NOT HTTP AT ALL\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    "a space in a header's name": b"GET / HTTP/1.1\r\nHost: x\r\nbad name: x\r\n\r\n",
    "a length that is no number": b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    "a negative length": b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a chunk without a size": b"POST /orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.fixture(scope="module")
def every(shared_services: Launcher) -> list[Service]:
    return shared_services.start_all(SERVERS)


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_is_answered_alike_by_all_servers(every: list[Service], data: bytes) -> None:
    answers = []
    for service in every:
        connection = service.connect()
        connection.expect("GET")
        connection.send(data)
        answers.append(connection.answer())
        assert connection.ending() == "closed"
    assert len({answer.comparable for answer in answers}) == 1, answers
    assert (answers[0].status, answers[0].header("content-type")) == (400, PROBLEM)
    assert answers[0].json["detail"] == "the request is not valid HTTP"
    assert all(answer.closes for answer in answers)


def test_empty_lines_before_a_request_are_skipped(every: list[Service]) -> None:
    for service in every:
        connection = service.connect()
        connection.expect("GET")
        connection.send(b"\r\n\r\n" + request("GET", "/livez"))
        assert connection.answer().status == 200


# --- a hung request costs the others nothing --------------------------------------------------------------------

SAMPLES = 400  # of each kind
ROUNDS = 3
FACTOR = 2.0
FLOOR = 0.05  # seconds: what a turn of a busy machine's scheduler costs is no delay of ours
HUNG = 8  # requests, and threads to serve with: all of them


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


def latencies(service: Service, outcome: Outcome) -> list[float]:
    """How long requests of others take that are answered, or refused."""
    load = LoadClient(service.address, constant("/db-test"), clients=4, modes=(Mode.NEW,)).start()
    try:
        eventually(lambda: load.answered + load.refused >= SAMPLES, f"{SAMPLES} answers")
    finally:
        load.stop()
    result = load.join(10)
    assert {exchange.outcome for exchange in result.exchanges} == {outcome}
    return [exchange.ended_at - exchange.sent_at for exchange in result.exchanges if exchange.sent_at is not None]


def test_hung_requests_cost_the_others_nothing(
    services: Launcher, postgres: Postgres, backend: Backend, measured: Measured
) -> None:
    threads = ("--threads", str(HUNG)) if backend in (GUNICORN, WAITRESS) else ()

    def hang(service: Service, number: int) -> None:
        for _ in range(number):
            service.connect().ask("GET", "/work?ms=600000")
        postgres.await_working(service.pids, number)

    def before_and_announcing() -> tuple[float, float]:
        service = services.start(backend, "--announce-period", "60", *threads)
        before = p99(latencies(service, Outcome.ANSWERED))
        hang(service, 1)
        service.send_signal()
        service.await_announcing()
        announcing = p99(latencies(service, Outcome.ANSWERED))
        service.process.kill()
        return before, announcing

    def draining() -> float:
        service = services.start(backend, "--drain-timeout", "60", *threads)
        hang(service, HUNG)
        service.send_signal()
        service.await_drain()
        refused = p99(latencies(service, Outcome.REFUSED))
        service.process.kill()
        return refused

    def within_bounds() -> bool:
        before, beside_one = before_and_announcing()
        beside_all = draining()
        measured(f"p99 of others, {backend.name}, before the signal", before)
        measured(f"p99 of others, {backend.name}, announcing, 1 hung request", beside_one)
        measured(f"p99 of others, {backend.name}, draining, {HUNG} hung requests", beside_all)
        return max(beside_one, beside_all) <= max(FACTOR * before, FLOOR)

    # A machine that is busy elsewhere delays a round, and not each; what waits for a hung request is late each time.
    assert any(within_bounds() for _ in range(ROUNDS))
