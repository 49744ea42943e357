"""SIGTERM in the middle of real load: nothing is lost, on any server, in either connection mode."""

from __future__ import annotations

import gc
import uuid
from collections import Counter
from pathlib import Path

import pytest

from pooldrain_compare.harness.load import LoadClient, LoadResult, Mode, Outcome, mixed
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, Backend
from tests.conftest import Measured
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import garbage_app

CLIENTS = 40  # 20 keep connections alive, 20 open one for each request
ANSWERS = 1000  # before the signal: a second or two of load
LEAKS = 3
KEPT = 20
REQUESTS = 100
LONGEST_WORK = 0.3  # seconds, of the workload's slowest request


def expect_nothing_lost(load: LoadResult, signalled: float) -> None:
    assert load.lost == []
    assert set(load.statuses) == {200, 201, 503}
    # Every client learned of the end by a refusal to connect: no connection was taken and dropped unread.
    assert set(load.reasons) <= {"not_sent: refused"}
    assert load.unsolicited == 0
    for mode in Mode:
        assert load.count(Outcome.ANSWERED, mode) > 100
        assert load.count(Outcome.LOST, mode) == 0
    early = [exchange for exchange in load.exchanges if exchange.ended_at < signalled]
    assert {exchange.outcome for exchange in early} == {Outcome.ANSWERED}


def expect_those_in_flight_answered(load: LoadResult, service: Service, signalled: float) -> None:
    """What the service had in flight, by its own count, it answered 2xx after the signal."""
    in_flight = sum(report["requests"]["in_flight_at_signal"] for report in service.reports)
    assert in_flight > 0
    answered_late = [e for e in load.exchanges if e.ended_at > signalled and e.status in (200, 201)]
    assert len(answered_late) >= in_flight
    for pid in service.pids:
        story = [event for event in service.transcript if event["pid"] == pid]
        names = [event["event"] for event in story]
        assert "request_refused" not in names[: names.index("signal")]
        assert {event["status"] for event in story if event["event"] == "request_finished"} == {200, 201}


def expect_refusals_to_say_when_to_come_again(load: LoadResult) -> None:
    assert load.count(Outcome.REFUSED) > 0
    bodies = {refusal.body for refusal in load.refusals}
    assert len(bodies) == 1
    for refusal in load.refusals:
        headers = dict(refusal.headers)
        assert headers["connection"].lower() == "close"
        assert headers["retry-after"] == "1"
        assert headers["content-type"] == "application/problem+json"


def expect_every_acknowledged_order_once(load: LoadResult, table: list[str]) -> None:
    acknowledged = load.orders(Outcome.ANSWERED)
    assert len(acknowledged) > 50
    assert Counter(table) == Counter(acknowledged)


@pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
def test_nothing_is_lost_at_sigterm_under_load(
    services: Launcher, postgres: Postgres, backend: Backend, measured: Measured
) -> None:
    service = services.start(backend)
    for _ in range(LEAKS):
        assert service.get("/db-test-leak").status == 200
    prefix = uuid.uuid4().hex[:12]
    load = LoadClient(service.address, mixed(prefix), clients=CLIENTS).start()
    try:
        eventually(lambda: load.answered >= ANSWERS and load.in_flight >= CLIENTS / 4, "load, and requests in flight")
        signalled = service.send_signal()
        ended = service.ended()
        result = load.join(10)
    finally:
        load.stop()

    assert ended.code == 0
    expect_nothing_lost(result, signalled)
    expect_those_in_flight_answered(result, service, signalled)
    expect_refusals_to_say_when_to_come_again(result)
    expect_every_acknowledged_order_once(result, postgres.orders(prefix))
    postgres.await_no_sessions(service.pids)

    finished = sum(report["requests"]["finished"] for report in service.reports)
    assert finished == result.count(Outcome.ANSWERED) + LEAKS
    assert service.refused == result.count(Outcome.REFUSED)
    assert sum(len(report["outstanding"]) for report in service.reports) == LEAKS
    assert not [line for line in service.complaints if not line.startswith(("leak (", "pool: "))]
    assert result.last_answer is not None
    measured(f"under load, last answer to exit, {backend.name}", ended.at - max(result.last_answer, signalled))
    assert ended.at - signalled < LONGEST_WORK + 5.0  # so it was no timeout that ended it


@pytest.fixture(params=SERVERS, ids=lambda backend: backend.name)
def frugal(request: pytest.FixtureRequest, services: Launcher, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that can say what its requests left behind."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    backend: Backend = request.param
    colour = "sync" if backend.module == "pooldrain_sync" else "async"
    return services.start(backend, "--app", f"{garbage_app.__name__}:create_{colour}")


def test_requests_leave_nothing_to_the_garbage_collector(frugal: Service) -> None:
    connection = frugal.connect()
    for path in ("/", "/livez"):  # one that is counted and one that is not
        connection.get("/garbage")
        for _ in range(REQUESTS):
            assert connection.get(path).status == 200
        assert int(connection.get("/garbage").body) < REQUESTS, "not even one object a request"


def test_a_kept_connection_does_not_keep_its_last_request_in_memory(frugal: Service) -> None:
    connections = [frugal.connect() for _ in range(KEPT)]
    for connection in connections:
        assert connection.get("/").status == 200
    assert int(frugal.connect().get("/requests").body) < KEPT, "this one, and at most those that end just now"


def test_what_was_made_at_the_start_is_no_work_for_the_garbage_collector(frugal: Service) -> None:
    here = len(gc.get_objects())  # a process of the same modules, of which nothing is left out
    assert int(frugal.connect().get("/watched").body) < here / 4
