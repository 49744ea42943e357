"""The admin listener of real services: it answers in every phase, whatever threads and loop do, until the very end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

import pooldrain
from pooldrain.admin.exposition import METRICS
from pooldrain_compare.harness.processes import look_inside
from pooldrain_compare.harness.servers import EVERY_WAY, GUNICORN, GUNICORN_2, UVICORN, UVICORN_2, WAITRESS, Backend
from tests.conftest import Measured, PutInFlight
from tests.harness.http import Answer, ask
from tests.harness.service import Launcher, Record, Service
from tests.harness.waiting import BOUND, eventually

INSIDE = "tests.servers.inside_app"
ON = ("--admin", "127.0.0.1:0")
TOKEN = "a-token-that-nobody-guesses"

_SCHEMA = Draft202012Validator(json.loads((files(pooldrain) / "status.schema.json").read_text("utf-8")))

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
several = pytest.mark.parametrize("backend", [GUNICORN_2, UVICORN_2], ids=lambda backend: backend.name)


def status_of(service: Service) -> Record:
    shown = look_inside(service.process.admin)
    _SCHEMA.validate(shown)
    return shown


def address_of(service: Service) -> tuple[str, int]:
    host, _, port = service.process.admin.removeprefix("http://").partition(":")
    return host, int(port)


def admin(service: Service, target: str, method: str = "GET", **headers: str) -> Answer:
    return ask(address_of(service), method, target, headers=headers.items())


def metrics_of(service: Service) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and the values of its labels, in the order of the labels."""
    text = admin(service, "/metrics").body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in samples}


Frames = Iterator[tuple[str, Record]]  # the event's name and its data


@contextlib.contextmanager
def stream_of(service: Service) -> Generator[Frames]:
    """What comes from `/events`, to its end."""
    with socket.create_connection(address_of(service), BOUND) as client, client.makefile("rb") as lines:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in lines.readline()
        yield frames_in(lines)


def frames_in(lines: BinaryIO) -> Frames:
    name = "message"
    for line in lines:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])
            name = "message"


@every_way
def test_it_names_who_holds_which_connection(services: Launcher, backend: Backend, in_flight: PutInFlight) -> None:
    service = services.start(backend, *ON)
    held = in_flight(service)
    assert service.get("/db-test-leak", headers=[("X-Request-ID", "leak-1")]).status == 200
    eventually(lambda: _finished(service) == 1, "it is over, not only answered")
    status = status_of(service)
    assert len(status["workers"]) == backend.workers
    assert {worker["pid"] for worker in status["workers"]} == set(service.pids)
    flying = [request for worker in status["workers"] for request in worker["requests"]]
    assert [request["route"] for request in flying] == ["POST /orders"] * len(held)
    checkouts = [c for worker in status["workers"] for engine in worker["engines"] for c in engine["checkouts"]]
    [leaked] = [checkout for checkout in checkouts if checkout["rule"] == "unreturned"]
    assert (leaked["holder"], leaked["request_id"]) == ("GET /db-test-leak", "leak-1")
    assert "app.py:" in leaked["call_site"]
    assert leaked["statement"] == "SELECT 1 AS test"
    busy = [checkout for checkout in checkouts if checkout["rule"] is None]
    assert {checkout["holder"] for checkout in busy} == {"POST /orders"}
    assert all(checkout["in_transaction"] for checkout in busy)
    numbers = metrics_of(service)
    assert numbers["pooldrain_pool_connections", ("main", "used")] == len(checkouts)
    assert numbers["pooldrain_leaks_total", ("main", "unreturned")] == 1
    assert numbers["pooldrain_requests_in_flight", ()] == len(held)
    held.release()
    service.send_signal()
    assert service.ended().code == 0


@every_way
def test_a_reader_sees_the_drain_to_its_last_frame(
    services: Launcher, backend: Backend, in_flight: PutInFlight
) -> None:
    service = services.start(backend, *ON)
    held = in_flight(service)
    with stream_of(service) as frames:
        assert next(frames)[1]["phase"] == "READY"
        service.send_signal()
        for _, status in frames:
            if status["phase"] == "DRAINING":
                break
        assert admin(service, "/readyz").status == 503
        assert admin(service, "/livez").status == 200
        held.release()
        told = list(frames)
    names = [name for name, _ in told]
    assert names == ["message"] * (len(told) - 1) + ["last"]
    last = told[-1][1]
    _SCHEMA.validate(last)
    assert last["phase"] == "CLOSED"
    assert last["last_shutdown"]["outcome"] == "drained"
    assert last["totals"]["finished"] == service_finished(service)
    phases = [each["phase"] for each in last["workers"][0]["phases"]]
    assert phases[-4:] == ["RECLAIMING", "DISPOSING", "STOPPING", "CLOSED"]
    assert service.ended().code == 0


def service_finished(service: Service) -> int:
    service.ended()
    finished: int = service.report["requests"]["finished"]
    return finished


def test_a_reader_that_does_not_read_does_not_delay_the_end(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, *ON)
    with contextlib.ExitStack() as readers:
        for _ in range(8):
            readers.enter_context(stream_of(service))
        sent = service.send_signal()
        ended = service.ended()
    assert ended.code == 0
    assert ended.at - sent < 5.0, "it would wait for its readers' timeout otherwise"


def test_forty_requests_that_hang_in_the_database_are_named_at_once(
    services: Launcher, backend: Backend, measured: Measured
) -> None:
    threads = ("--threads", "40") if backend.module == "pooldrain_sync" else ()
    service = services.start_app(
        backend, INSIDE, *ON, *threads, "--pool-size", "40", "--max-overflow", "0", "--drain-timeout", "0",
        "--cancel-timeout", "5",
    )  # fmt: skip
    connections = [service.connect().ask("GET", "/hang") for _ in range(40)]
    eventually(lambda: status_of(service)["workers"][0]["engines"][0]["used"] == 40, "forty of them hang")
    times, status = timed(service)
    measured(f"/status beside 40 hung requests on {backend.name}, median of {len(times)}", statistics.median(times))
    assert statistics.median(times) < 0.25
    [engine] = status["workers"][0]["engines"]
    assert {checkout["statement"] for checkout in engine["checkouts"]} == {"SELECT pg_sleep(60)"}
    assert all("inside_app.py:" in checkout["call_site"] for checkout in engine["checkouts"])
    assert status["workers"][0]["seen"] < 1.0
    service.send_signal()
    assert service.ended().code == 3
    for connection in connections:
        connection.close()


def timed(service: Service, times: int = 9) -> tuple[list[float], Record]:
    """How long `/status` takes, in seconds, each time; and what it says at last."""
    taken: list[float] = []
    status: Record = {}
    for _ in range(times):
        began = time.monotonic()
        status = status_of(service)
        taken.append(time.monotonic() - began)
    return taken, status


@pytest.mark.parametrize("backend", [WAITRESS, UVICORN], ids=lambda backend: backend.name)
def test_it_answers_beside_forty_threads_that_compute(services: Launcher, backend: Backend, measured: Measured) -> None:
    service = services.start_app(backend, INSIDE, *ON)
    assert service.get("/spin?seconds=6").status == 200
    times, status = timed(service, 5)
    assert status["workers"][0]["seen"] < 4.0, "it has answered meanwhile"
    measured(f"/status beside 40 computing threads on {backend.name}, most of {len(times)}", max(times))
    assert statistics.median(times) < 0.5
    service.process.kill()


def test_it_answers_beside_a_loop_that_is_blocked(services: Launcher) -> None:
    service = services.start_app(UVICORN, INSIDE, *ON)
    blocked = service.connect().ask("GET", "/block?seconds=4")
    eventually(lambda: status_of(service)["workers"][0]["in_flight"] == 1, "the loop is blocked")
    times, status = timed(service)
    assert statistics.median(times) < 0.5
    [request] = status["workers"][0]["requests"]
    assert request["route"] == "GET /block"
    assert blocked.answer().status == 200


@several
def test_page_and_totals_survive_a_worker_that_is_killed_and_one_that_is_replaced(
    services: Launcher, backend: Backend
) -> None:
    service = services.start(backend, *ON)
    for _ in range(20):
        assert service.get("/db-test").status == 200
    eventually(lambda: _finished(service) >= 20, "all are counted")
    before = status_of(service)
    first = before["workers"][0]["pid"]
    # The listener looks once a second: a killed process has said what it had counted.
    eventually(lambda: any(w["seen"] < 0.5 and w["pid"] == first for w in status_of(service)["workers"]), "a look")
    os.kill(first, signal.SIGKILL)

    def replaced() -> Record | None:
        status = status_of(service)
        pids = [worker["pid"] for worker in status["workers"]]
        whole = len(pids) == backend.workers and first not in pids and status["phase"] == "READY"
        return status if whole else None

    after = eventually(replaced, "a successor serves", within=60.0)
    assert after is not None
    assert after["ended"] >= 1
    assert after["totals"]["finished"] >= before["totals"]["finished"]
    assert admin(service, "/").status == 200
    service.send_signal(signal.SIGHUP)
    again = eventually(lambda: _replaced_all(service, after), "all are replaced", within=60.0)
    assert again is not None
    assert again["totals"]["finished"] >= after["totals"]["finished"]
    assert again["last_shutdown"]["outcome"] == "drained"
    service.send_signal()
    assert service.ended().code == 0


def _finished(service: Service) -> int:
    finished: int = status_of(service)["totals"]["finished"]
    return finished


def _replaced_all(service: Service, before: Record) -> Record | None:
    status = status_of(service)
    old = {worker["pid"] for worker in before["workers"]}
    living = {worker["pid"] for worker in status["workers"]}
    whole = not (old & living) and len(living) == len(old) and status["phase"] == "READY"
    return status if whole else None


def test_nothing_is_left_of_it_when_the_service_is_killed(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, *ON)
    host, port = address_of(service)
    service.send_signal(signal.SIGKILL)

    def refused() -> bool:
        try:
            socket.create_connection((host, port), 1.0).close()
        except OSError:
            return True
        return False

    eventually(refused, "its listener has gone")


def test_the_service_goes_on_when_the_listener_is_killed(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, *ON)
    own = {worker["pid"] for worker in status_of(service)["workers"]} | {service.process.pid}
    [listener] = [child for child in psutil.Process(service.process.pid).children() if child.pid not in own]
    listener.kill()
    assert service.get("/db-test").status == 200
    service.send_signal()
    ended = service.ended()
    assert ended.code == 0
    assert service.report["requests"]["finished"] == 1


def test_it_refuses_what_it_does_not_serve_and_whoever_calls_it_by_another_name(services: Launcher) -> None:
    service = services.start(WAITRESS, *ON)
    assert (admin(service, "/", "POST").status, admin(service, "/", "POST").header("allow")) == (405, "GET, HEAD")
    assert admin(service, "/", "DELETE").status == 405
    assert admin(service, "/etc/passwd").status == 404
    request = urllib.request.Request(service.process.admin + "/status", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    refused.value.close()
    head = admin(service, "/", "HEAD")
    assert (head.status, head.body) == (200, b"")
    page = admin(service, "/")
    assert "default-src 'none'" in (page.header("content-security-policy") or "")


def test_others_than_this_machine_need_the_token(services: Launcher, backend: Backend) -> None:
    service = services.prepare(backend, "--admin", "0.0.0.0:0")
    service.process.environment["POOLDRAIN_ADMIN_TOKEN"] = TOKEN
    services.enter(service)
    bearer, basic = f"Bearer {TOKEN}", "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()
    port = int(service.process.admin.rpartition(":")[2])

    def status(path: str, authorization: str | None = None) -> int:
        headers = [] if authorization is None else [("Authorization", authorization)]
        return ask(("127.0.0.1", port), "GET", path, headers=headers).status

    assert [status(path) for path in ("/livez", "/readyz")] == [200, 200], "probes have no token"
    assert [status(path) for path in ("/", "/status", "/metrics", "/events")] == [401] * 4
    assert [status("/status", bearer), status("/status", basic)] == [200, 200]
    assert [status("/status", bearer + "x"), status("/status", "Basic !!"), status("/status", "Bearer ")] == [401] * 3
    service.send_signal()
    assert service.ended().code == 0
    assert TOKEN not in service.process.log.read_text("utf-8")


def test_a_unix_socket_is_its_users_own_and_goes_with_the_service(
    services: Launcher, backend: Backend, tmp_path: Path
) -> None:
    path = tmp_path / "a.sock"
    service = services.start(backend, "--admin", f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert b"200 OK" in client.recv(100)
    service.send_signal()
    assert service.ended().code == 0
    assert not path.exists()


def test_the_last_shutdown_is_told_to_who_looks_at_the_next_run(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, *ON)
    assert service.get("/db-test-leak").status == 200
    service.send_signal()
    assert service.ended().code == 0
    report = service.directory / f"{backend.name}.report.json"
    again = services.start(backend, *ON, "--report", str(report))
    last = status_of(again)["last_shutdown"]
    assert (last["outcome"], last["finished"], last["reclaimed"]) == ("drained", 1, 1)
    numbers = metrics_of(again)
    assert numbers["pooldrain_last_shutdown_exit_code", ()] == 0
    assert numbers["pooldrain_last_shutdown_connections", ("reclaimed",)] == 1


def test_every_metric_is_documented_as_it_is_rendered(services: Launcher) -> None:
    service = services.start(GUNICORN, *ON)
    assert service.get("/db-test").status == 200
    text = admin(service, "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    without_last = {name for name in METRICS if not name.startswith("pooldrain_last_shutdown_")}
    assert set(families) == without_last
    for name, family in families.items():
        kind, meaning, labels = METRICS[name]
        assert (family.type, family.documentation) == (kind, meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), name


def test_an_address_that_is_taken_is_told_in_one_line(services: Launcher, backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = services.begin(backend, "--admin", f"127.0.0.1:{port}")
        assert service.ended().code == 1
        [line] = service.complaints
        assert line == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another address with --admin HOST:PORT"
        )
