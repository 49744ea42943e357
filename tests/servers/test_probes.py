"""Probes: answered at once, whatever the threads do, in every phase, alike on all servers."""

from __future__ import annotations

import pytest

from pooldrain_compare.harness.servers import GUNICORN, SERVERS, WAITRESS, Backend
from tests.conftest import PutInFlight
from tests.harness.http import Connection
from tests.harness.service import Launcher, Service
from tests.servers import stuck_app

all_servers = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)
threaded = pytest.mark.parametrize("backend", [GUNICORN, WAITRESS], ids=lambda backend: backend.name)

THREADS = 4
PROBES = ("/livez", "/readyz", "/pool-status")


def options(backend: Backend) -> tuple[str, ...]:
    return ("--threads", str(THREADS)) if backend.module == "pooldrain_sync" else ()


def statuses(service: Service) -> list[int]:
    """What the probes are answered, each on a connection of its own."""
    return [service.get(probe).status for probe in PROBES]


@all_servers
@pytest.mark.parametrize("announces", [False, True], ids=["draining", "announcing"])
def test_probes_are_answered_while_every_thread_is_busy_in_every_phase(
    services: Launcher, in_flight: PutInFlight, backend: Backend, announces: bool
) -> None:
    service = services.start(backend, *options(backend), "--announce-period", "60" if announces else "0")
    held = in_flight(service, THREADS)
    waiting = [service.connect().ask("GET", "/db-test") for _ in range(2)]  # on threads, for one of them
    assert statuses(service) == [200, 200, 200]
    kept = service.connect()
    assert [kept.ask("GET", probe).answer().status for probe in PROBES] == [200, 200, 200]
    service.send_signal()
    if announces:
        service.await_announcing()
    else:
        service.await_drain()
    assert statuses(service) == [200, 503, 200]
    held.release()
    assert [answer.status for answer in held.answers()] == [201] * THREADS
    assert [connection.answer().status for connection in waiting] == [200, 200]
    if announces:
        service.send_signal()
    assert service.ended().code == 0


@all_servers
def test_probes_are_answered_while_what_heeds_nothing_is_cancelled(services: Launcher, backend: Backend) -> None:
    timeouts = ("--drain-timeout", "0.2", "--cancel-timeout", "20")
    service = services.start_app(backend, stuck_app.__name__, *options(backend), *timeouts)
    stuck = [service.connect().ask("GET", "/stuck") for _ in range(THREADS)]
    service.await_admitted(THREADS)
    service.send_signal()
    service.await_event("drain_ended")
    assert service.get("/livez").status == 200
    service.process.kill()
    for connection in stuck:
        connection.close()


@threaded
def test_a_probe_whose_body_does_not_come_keeps_no_other_probe(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, *options(backend))
    stalled: list[Connection] = []
    for method in ("GET", "POST"):
        connection = service.connect()
        connection.send(f"{method} /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".encode())
        stalled.append(connection)
    assert statuses(service) == [200, 200, 200]
    for connection in stalled:
        connection.close()
    service.send_signal()
    assert service.ended().code == 0
