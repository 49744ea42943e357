"""A server without descriptors, and one whose loop breaks: nothing in flight is lost, and the end is in order."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pooldrain_compare.harness.processes import limit_descriptors
from pooldrain_compare.harness.servers import EVERY_WAY, GUNICORN, Backend
from tests.conftest import PutInFlight
from tests.harness.http import Connection
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.servers import faulty_app

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)

ROOM = 4  # connections that a process still has room for
CROWD = 60  # more than all of them have room for
PATIENT = 3.0  # seconds; a fifth of what a second for every ROOM of the crowd would take
EXHAUSTED = "cannot accept connections: Too many open files; they wait, and it is tried again every second"


@every_way
def test_without_descriptors_it_serves_on_and_accepts_again_when_there_are_some(
    services: Launcher, in_flight: PutInFlight, backend: Backend
) -> None:
    service = services.start(backend)
    held = in_flight(service, 2)
    limit_descriptors(service.pids, ROOM)
    crowd = [service.connect() for _ in range(CROWD)]
    service.await_event("accept_paused", len(service.pids))
    held.release()
    assert [answer.status for answer in held.answers()] == [201] * len(held)
    for connection in crowd:
        connection.close()
    left = time.monotonic()
    answer = service.get("/")
    assert answer.status == 200
    assert answer.at - left < PATIENT, "it waited for all of the crowd, and not for a second each time a few had gone"
    service.send_signal()
    assert service.ended().code == 0
    assert service.complaints == [EXHAUSTED] * len(service.pids), "one line each, however often it was tried"


@every_way
def test_without_descriptors_it_drains_disposes_and_reports_and_refuses_who_waits(
    services: Launcher, postgres: Postgres, in_flight: PutInFlight, backend: Backend
) -> None:
    service = services.start(backend)
    held = in_flight(service, 2)
    limit_descriptors(service.pids, ROOM)
    crowd = [service.connect() for _ in range(CROWD)]
    service.await_event("accept_paused", len(service.pids))
    late = service.connect().ask("GET", "/")
    service.send_signal()
    service.await_drain()
    held.release()
    assert [answer.status for answer in held.answers()] == [201] * len(held)
    assert late.answer().status == 503
    assert service.ended().code == 0
    for connection in crowd:
        connection.close()
    assert {report["outcome"] for report in service.reports} == {"drained"}
    postgres.await_no_sessions(service.pids)


@every_way
def test_a_loop_that_breaks_is_told_and_what_it_served_is_drained_and_disposed_of(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    # uvloop calls a handler of the application outside of its turns, so that nothing of it breaks the loop.
    loop = ("--loop", "asyncio") if backend.module == "pooldrain_async" else ()
    service = services.start_app(backend, faulty_app.__name__, *loop)
    first = service.pids[0]
    requests = [hold(service) for _ in range(4)]
    postgres.await_working(service.pids, len(requests))  # so that the loops do nothing but wait
    os.kill(first, signal.SIGUSR1)
    [told] = service.await_event("background_failed")
    assert (told["what"], told["error"]) == ("the server's loop", f"RuntimeError: {faulty_app.BROKEN}")
    assert [request.answer().status for request in requests] == [200] * len(requests)
    if backend is GUNICORN or backend.workers > 1:  # its master replaces it
        service.await_event("listening", backend.workers + 1)
        service.await_event("shutdown_complete")
        assert service.get("/ok").status == 200
        service.send_signal()
    assert service.ended().code == 4
    errors = [report["errors"] for report in service.reports if report["errors"]]
    assert errors == [[f"the server's loop: RuntimeError: {faulty_app.BROKEN}"]]
    assert service.complaints == [told["message"]]
    postgres.await_no_sessions(service.pids)


def hold(service: Service) -> Connection:
    """Begin a request that takes its time."""
    return service.connect().ask("GET", "/hold?seconds=1", headers=[("Connection", "close")])
