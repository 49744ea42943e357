"""Streams at a shutdown: those of events are ended at once, for their clients to come again elsewhere."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.servers import GUNICORN_2, SERVERS, UVICORN, UVICORN_2, Backend
from tests.harness.http import request
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND
from tests.servers import stream_app
from tests.servers.stream_app import PLAIN

DRAIN = 1.0  # seconds; what a drain must not take where nothing holds it
PATIENT = ("--drain-timeout", "20")
HASTY = ("--drain-timeout", f"{DRAIN}", "--cancel-timeout", "1")

everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)


class Stream:
    """A client of a stream."""

    def __init__(self, service: Service, path: str) -> None:
        self._socket = socket.create_connection(service.address, BOUND)
        self._socket.sendall(request("GET", path))
        self._data = b""

    def await_parts(self, part: bytes, number: int) -> None:
        """Read until so many have come."""
        while self._data.count(part) < number:
            received = self._socket.recv(65536)
            assert received, f"ended: {self._data!r}"
            self._data += received

    def everything(self) -> bytes:
        """All of it, to its end; raises OSError if that is a reset."""
        while received := self._socket.recv(1 << 20):
            self._data += received
        return self._data

    def close(self) -> None:
        self._socket.close()


def body_of(answer: bytes) -> bytes:
    """The body of a whole answer that came in chunks."""
    _, _, left = answer.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, left = left.partition(b"\r\n")
        length = int(size, 16)
        body, end, left = body + left[:length], left[length : length + 2], left[length + 2 :]
        assert end == b"\r\n"
        if not length:
            assert not left
            return body


Connect = Callable[[Service, str], Stream]


@pytest.fixture
def connect() -> Iterator[Connect]:
    streams: list[Stream] = []

    def connect(service: Service, path: str) -> Stream:
        streams.append(Stream(service, path))
        return streams[-1]

    yield connect
    for stream in streams:
        stream.close()


@everywhere
@pytest.mark.parametrize("path", ["/ticks", "/halves"])
def test_an_event_stream_is_ended_between_two_events_when_the_drain_begins(
    services: Launcher, backend: Backend, connect: Connect, path: str
) -> None:
    service = services.start_app(backend, stream_app.__name__, *PATIENT)
    streams = [connect(service, path) for _ in range(5)]
    for stream in streams:
        stream.await_parts(b"data", 2)

    signalled = service.send_signal()
    for stream in streams:
        assert body_of(stream.everything()).endswith(b"\n\n"), "the last event is whole"

    ended = service.ended()
    assert ended.code == ExitCode.DRAINED
    assert ended.at - signalled < DRAIN
    assert service.report["requests"] | {"finished": 5, "cut": 0} == service.report["requests"]
    assert not service.complaints


@everywhere
def test_an_event_source_that_comes_during_the_drain_is_not_sent_away_for_ever(
    services: Launcher, backend: Backend, connect: Connect
) -> None:
    service = services.start_app(backend, stream_app.__name__, *PATIENT)
    kept = service.connect()
    kept.get("/closed")
    held = connect(service, "/plain")
    held.await_parts(b"part", 1)

    service.send_signal()
    service.await_drain()
    answer = kept.ask("GET", "/ticks", headers=[("Accept", "text/event-stream")]).answer()

    assert (answer.status, answer.header("content-type")) == (200, "text/event-stream"), "any other status is for ever"
    assert answer.closes
    assert b"data" not in answer.body
    held.everything()
    assert service.ended().code == ExitCode.DRAINED
    assert service.refused == 1


def test_a_stream_that_says_nothing_is_ended_on_asyncio(services: Launcher, connect: Connect) -> None:
    service = services.start_app(UVICORN, stream_app.__name__, *PATIENT)
    stream = connect(service, "/idle")
    stream.await_parts(b"\n\n", 1)

    signalled = service.send_signal()
    assert stream.everything().endswith(b"\r\n0\r\n\r\n")

    ended = service.ended()
    assert ended.code == ExitCode.DRAINED
    assert ended.at - signalled < DRAIN
    assert not service.complaints


@everywhere
def test_a_stream_of_another_kind_has_the_time_of_the_drain(
    services: Launcher, backend: Backend, connect: Connect
) -> None:
    service = services.start_app(backend, stream_app.__name__, *PATIENT)
    stream = connect(service, "/plain")
    stream.await_parts(b"part", 1)

    service.send_signal()
    assert stream.everything().count(b"part") == PLAIN
    assert service.ended().code == ExitCode.DRAINED


@everywhere
def test_an_event_stream_has_the_time_of_the_drain_if_that_is_wanted(
    services: Launcher, backend: Backend, connect: Connect
) -> None:
    service = services.start_app(backend, stream_app.__name__, *HASTY, "--streams", "finish")
    stream = connect(service, "/ticks")
    stream.await_parts(b"\n\n", 2)

    signalled = service.send_signal()
    assert not stream.everything().endswith(b"\r\n0\r\n\r\n"), "it is broken off"

    ended = service.ended()
    assert ended.code == ExitCode.CUT
    assert ended.at - signalled >= DRAIN
    assert service.report["requests"]["cut"] == 1


@everywhere
def test_a_client_that_does_not_take_its_events_is_cut_when_the_drain_is_over(
    services: Launcher, backend: Backend, connect: Connect
) -> None:
    service = services.start_app(backend, stream_app.__name__, *HASTY)
    stream = connect(service, "/flood")
    stream.await_parts(b"data", 1)

    service.send_signal()

    assert service.ended().code == ExitCode.CUT
    assert service.report["requests"]["cut"] == 1


@pytest.mark.parametrize("backend", [GUNICORN_2, UVICORN_2], ids=lambda backend: backend.name)
def test_a_worker_that_is_replaced_ends_its_event_streams(
    services: Launcher, backend: Backend, connect: Connect
) -> None:
    service = services.start_app(backend, stream_app.__name__, *PATIENT)
    stream = connect(service, "/ticks")
    stream.await_parts(b"\n\n", 2)

    service.send_signal(signal.SIGHUP)
    assert stream.everything().endswith(b"\n\n\r\n0\r\n\r\n")

    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED
