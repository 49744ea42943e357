"""Where one message ends and the next begins: what breaks it costs its own connection, and nobody else's answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pooldrain_compare.harness.servers import GUNICORN, SERVERS, UVICORN, WAITRESS, Backend
from pooldrain_sync.engine.request import BODY_KEPT
from pooldrain_sync.servers.waitress import DrainServer
from pooldrain_sync.servers.waitress_loop import PolledMap
from tests.harness.http import request
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import faulty_app

threaded = pytest.mark.parametrize("backend", [GUNICORN, WAITRESS], ids=lambda backend: backend.name)


@pytest.fixture(scope="module", params=SERVERS, ids=lambda backend: backend.name)
def service(request: pytest.FixtureRequest, shared_services: Launcher) -> Service:
    """One service on each server, for all tests that break nothing but a connection."""
    backend: Backend = request.param
    return shared_services.start_app(backend, faulty_app.__name__)


@pytest.fixture
def complaints(service: Service) -> Callable[[], list[str]]:
    """What it has complained of since the test began."""
    before = len(service.complaints)
    return lambda: service.complaints[before:]


def raw(service: Service, *requests: bytes) -> bytes:
    """All that comes on one connection, to its end, when these are sent at once."""
    with socket.create_connection(service.address, timeout=5) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while data := connection.recv(65536):
            received += data
    return received


# --- responses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "body"), [("short", "shorter"), ("long", "longer"), ("long-at-once", "longer")])
def test_a_response_of_another_length_than_it_says_ends_its_connection_and_is_told_in_one_line(
    service: Service, complaints: Callable[[], list[str]], kind: str, body: str
) -> None:
    seen = len(service.events("response_broken"))
    received = raw(service, request("GET", f"/framing/{kind}"), request("GET", "/ok"))
    assert received.count(b"HTTP/1.1 ") <= 1, "the next answer never follows it"
    assert b"more" not in received, "nothing is sent beyond what was announced"
    route = f"GET /framing/{kind}"
    told = service.await_event("response_broken", seen + 1)[-1]
    assert (told["route"], told["body"]) == (route, body)
    assert complaints() == [told["message"]]
    assert service.get("/ok").status == 200


def test_a_response_that_is_broken_off_ends_its_connection(
    service: Service, complaints: Callable[[], list[str]]
) -> None:
    received = raw(service, request("GET", "/broken"), request("GET", "/ok"))
    assert received.count(b"HTTP/1.1 ") <= 1
    eventually(complaints, "the application's error in the log")
    assert len(complaints()) == 1, "once"


def test_what_has_no_body_breaks_nothing(service: Service, complaints: Callable[[], list[str]]) -> None:
    connection = service.connect()
    answers = [
        connection.ask(method, target).answer()
        for method, target in (("HEAD", "/head"), ("GET", "/bodiless/204"), ("GET", "/bodiless/304"), ("GET", "/ok"))
    ]
    assert [(answer.status, answer.closes) for answer in answers] == [
        (200, False),
        (204, False),
        (304, False),
        (200, False),
    ]
    assert answers[0].header("content-length") == "10"
    assert complaints() == []


EVENTS = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        if scope["path"] == "/late":
            while (await receive())["type"] != "http.disconnect":
                pass
        await send({"type": "http.response.body", "body": b"event"})
"""


def test_a_head_goes_out_with_its_body_or_alone_if_that_is_late(services: Launcher, tmp_path: Path) -> None:
    (tmp_path / "events.py").write_text(EVENTS, "utf-8")
    service = services.start_users(UVICORN, "events:app", tmp_path)
    with socket.create_connection(service.address, timeout=5) as client:
        client.sendall(request("GET", "/at-once"))
        assert client.recv(1000).endswith(b"\r\n\r\nevent"), "as a whole"
        client.sendall(request("GET", "/late"))
        assert client.recv(1000).endswith(b"\r\n\r\n")


@threaded
@pytest.mark.parametrize(("written", "told"), [(4, ["shorter"]), (10, []), (12, ["longer"])])
def test_what_is_written_by_the_older_way_is_counted_too(
    services: Launcher, backend: Backend, written: int, told: list[str]
) -> None:
    service = services.start(backend, "--app", f"{faulty_app.__name__}:create_writing")
    received = raw(service, request("GET", f"/{written}", headers=[("Connection", "close")]))
    assert received.endswith(b"\r\n\r\n" + b"x" * min(written, 10))
    assert [event["body"] for event in service.events("response_broken")] == told
    service.send_signal()
    assert service.ended().code == 0


# --- requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, BODY_KEPT, BODY_KEPT + 1, 5_000_000])
def test_a_body_that_nobody_reads_is_read_off_or_the_end_of_its_connection_announced(
    service: Service, complaints: Callable[[], list[str]], size: int
) -> None:
    connection = service.connect()
    answer = connection.ask("POST", "/unread", b"x" * size).answer()
    assert answer.status == 200
    if answer.closes:
        assert connection.ending() == "closed", "in order: no reset has swallowed the answer"
    else:
        assert connection.ask("GET", "/ok").answer().status == 200
    assert complaints() == []


# --- connections that have idled for too long -----------------------------------------------------------------


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    return ours, theirs


class IdleChannel:
    will_close = False
    last_activity = 0.0

    def __init__(self, polled: PolledMap, connection: socket.socket) -> None:
        self.requests: list[object] = []
        self.socket = connection
        self.descriptor = connection.fileno()
        polled[self.descriptor] = self
        polled.arm(self.descriptor)

    def readable(self) -> bool:
        return not self.will_close

    def writable(self) -> bool:
        return self.will_close


def test_waitress_looks_once_more_before_it_closes_an_idle_connection() -> None:
    arriving, sender = pair()
    idle, waiting = pair()
    sender.sendall(b"GET")
    polled = PolledMap()
    server: Any = SimpleNamespace(keep_alive=75.0, map=polled, _retired_at=0.0)
    server.channels = channels = [IdleChannel(polled, each) for each in (arriving, idle)]
    DrainServer.maintenance(server, 76.0)
    assert [channel.will_close for channel in channels] == [False, True]
    for each in (arriving, sender, idle, waiting):
        each.close()
