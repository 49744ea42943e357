"""WebSockets at a shutdown: in flight as requests are, and sent away with 1012 when the drain begins. Asyncio only."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.servers import UVICORN, UVICORN_2, Backend
from tests.harness.http import request
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND, eventually
from tests.servers import stream_app

DRAIN = 1.0  # seconds; what a drain must not take where nothing holds it
PATIENT = ("--drain-timeout", "20")
HASTY = ("--drain-timeout", f"{DRAIN}", "--cancel-timeout", "1")

Open = Callable[[Service, str], ClientConnection]

HANDSHAKE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


def mute(service: Service) -> socket.socket:
    """A client that says nothing once it is accepted, not even when it is told to leave."""
    client = socket.create_connection(service.address, BOUND)
    client.sendall(request("GET", "/echo", headers=HANDSHAKE))
    assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    return client


@pytest.fixture
def opened() -> Iterator[Open]:
    with ExitStack() as clients:

        def opened(service: Service, path: str) -> ClientConnection:
            host, port = service.address
            url = f"ws://{host}:{port}{path}"
            return clients.enter_context(connect(url, close_timeout=0.1, open_timeout=BOUND))

        yield opened


def test_a_websocket_is_served_and_counts_as_in_flight(services: Launcher, opened: Open) -> None:
    service = services.start_app(UVICORN, stream_app.__name__)
    client = opened(service, "/echo")
    client.send("hello")
    assert client.recv(BOUND) == "hello"
    service.await_admitted(1)
    client.close()
    eventually(lambda: [e for e in service.transcript if e["event"] == "request_finished"], "it has ended")


@pytest.mark.parametrize("backend", [UVICORN, UVICORN_2], ids=lambda backend: backend.name)
def test_websockets_are_told_that_the_service_restarts_when_the_drain_begins(
    services: Launcher, backend: Backend, opened: Open
) -> None:
    service = services.start_app(backend, stream_app.__name__, *PATIENT)
    clients = [opened(service, "/echo") for _ in range(5)]
    for client in clients:
        client.send("hello")
        assert client.recv(BOUND) == "hello"

    signalled = service.send_signal()
    for client in clients:
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(BOUND)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012

    ended = service.ended()
    assert ended.code == ExitCode.DRAINED
    assert ended.at - signalled < DRAIN
    assert service.report["requests"] | {"finished": 5, "cut": 0} == service.report["requests"]
    assert not service.complaints


def test_a_websocket_that_does_not_answer_the_close_is_cut_when_the_drain_is_over(services: Launcher) -> None:
    service = services.start_app(UVICORN, stream_app.__name__, *HASTY)
    with mute(service):
        service.send_signal()

        assert service.ended().code == ExitCode.CUT
    assert service.report["requests"]["cut"] == 1


def test_a_websocket_that_sends_on_and_reads_nothing_is_cut_when_the_drain_is_over(services: Launcher) -> None:
    service = services.start_app(UVICORN, stream_app.__name__, *HASTY)
    message = b"\x81\xfe\x10\x00\x00\x00\x00\x00" + b"x" * 4096  # masked with zeros
    with mute(service) as client:
        client.settimeout(0.5)
        with suppress(TimeoutError):  # until neither side can send any more
            while True:
                client.sendall(message)

        signalled = service.send_signal()
        ended = service.ended()

    assert ended.code == ExitCode.CUT
    assert ended.at - signalled >= DRAIN
    assert service.report["requests"]["cut"] == 1


def test_an_application_that_does_not_listen_to_the_close_is_cut_when_the_drain_is_over(
    services: Launcher, opened: Open
) -> None:
    service = services.start_app(UVICORN, stream_app.__name__, *HASTY)
    client = opened(service, "/stubborn")
    assert client.recv(BOUND) == "hello"

    signalled = service.send_signal()

    ended = service.ended()
    assert ended.code == ExitCode.CUT
    assert ended.at - signalled >= DRAIN
    assert service.report["requests"]["cut"] == 1


def test_a_websocket_has_the_time_of_the_drain_if_that_is_wanted(services: Launcher, opened: Open) -> None:
    service = services.start_app(UVICORN, stream_app.__name__, *PATIENT, "--streams", "finish")
    client = opened(service, "/echo")

    service.send_signal()
    service.await_drain()
    client.send("still here")
    assert client.recv(BOUND) == "still here"
    client.close()

    assert service.ended().code == ExitCode.DRAINED


def test_a_websocket_that_comes_during_the_drain_is_refused(services: Launcher, opened: Open) -> None:
    service = services.start_app(UVICORN, stream_app.__name__, *PATIENT, "--streams", "finish")
    held = opened(service, "/echo")

    service.send_signal()
    service.await_drain()
    with pytest.raises(InvalidStatus) as refused:
        opened(service, "/echo")
    assert refused.value.response.status_code == 503
    held.close()

    assert service.ended().code == ExitCode.DRAINED
    assert service.report["requests"]["refused"] == 1
