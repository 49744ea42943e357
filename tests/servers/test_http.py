"""What HTTP means: the same on all servers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pooldrain.gate import BODILESS
from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND
from tests.servers import echo_app
from tests.servers.http_corpus import CORPUS, NEXT, Case, chunked, head, post, table

assert len(CORPUS) >= 100


class Reader:
    """Reads answers from a connection, whatever their framing."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, BOUND)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, method: str) -> tuple[int, bytes]:
        """The status and the body of the next answer, but for interim ones."""
        status, headers = self._head()
        while status < 200:
            status, headers = self._head()
        if method == "HEAD" or status in BODILESS:
            return status, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._file.readline(), 16):
                body += self._file.read(size)
                assert self._file.readline() == b"\r\n"
            assert self._file.readline() == b"\r\n"
            return status, body
        return status, self._file.read(int(headers.get("content-length", -1)))

    def _head(self) -> tuple[int, dict[str, str]]:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1."), f"no answer: {line!r}"
        headers = {}
        while (each := self._file.readline()) != b"\r\n":
            name, _, value = each.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def ending(self) -> bytes:
        """All that comes to the end; raises OSError if that is a reset."""
        return self._file.read()


@contextmanager
def reading(service: Service) -> Generator[Reader]:
    reader = Reader(service.address)
    try:
        yield reader
    finally:
        reader.close()


@pytest.fixture(scope="module", params=SERVERS, ids=lambda backend: backend.name)
def service(request: pytest.FixtureRequest, shared_services: Launcher) -> Service:
    """One service on each server that tells what it has seen."""
    backend: Backend = request.param
    return shared_services.start_app(backend, echo_app.__name__)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_request_means_the_same_on_every_server(service: Service, case: Case) -> None:
    with reading(service) as reader:
        reader.send(case.sent)
        answers = [reader.answer(method) for method in case.methods]
        assert tuple(status for status, _ in answers) == case.statuses
        if case.kept:
            reader.send(NEXT)
            assert reader.answer("GET")[0] == 200, "the connection is kept"
        else:
            assert reader.ending() == b"", "the connection is closed, and not reset"
    if case.seen and answers[-1][1]:
        seen: dict[str, Any] = json.loads(answers[-1][1])
        assert {name: seen[name] for name in case.seen} == dict(case.seen)


def test_the_documentation_shows_the_corpus() -> None:
    docs = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
    assert docs.read_text("utf-8").endswith(table()), "print(table()) gives the table to paste"


# --- limits, proxies: of a service that has been told about them -----------------------------------------------

OPTIONS = (
    "--limit-request-head",
    "9000",
    "--limit-request-body",
    "10",
    "--keep-alive",
    "0.5",
    "--trusted-proxies",
    "127.0.0.0/8",
    "--root-path",
    "/base/",
)


@pytest.fixture(scope="module", params=SERVERS, ids=lambda backend: backend.name)
def strict(request: pytest.FixtureRequest, shared_services: Launcher) -> Service:
    """One service on each server with small limits, behind a proxy."""
    backend: Backend = request.param
    return shared_services.start_app(backend, echo_app.__name__, *OPTIONS)


def seen_by(service: Service, *headers: str) -> dict[str, Any]:
    with reading(service) as reader:
        reader.send(head("GET /a HTTP/1.1", "Host: x", *headers))
        status, body = reader.answer("GET")
        assert status == 200
        seen: dict[str, Any] = json.loads(body)
        return seen


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(head("GET / HTTP/1.1", "Host: x", "X-T: " + "a" * 8_000), 200, id="a head within the limit"),
        pytest.param(head("GET / HTTP/1.1", "Host: x", "X-T: " + "a" * 9_000), 431, id="a head beyond it"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-T: " + b"a" * 9_000, 431, id="a head beyond it that goes on"),
        pytest.param(b"GET /" + b"a" * 9_100, 414, id="a target beyond it that goes on"),
        pytest.param(post("Content-Length: 10", body="0123456789"), 200, id="a body within the limit"),
        pytest.param(post("Content-Length: 11", body="0123456789a"), 413, id="a body beyond it"),
        pytest.param(post("Content-Length: 11"), 413, id="a body that would be"),
        pytest.param(post("Expect: 100-continue", "Content-Length: 11"), 413, id="a body that is not asked for"),
        pytest.param(chunked("a\r\n0123456789\r\n0\r\n\r\n"), 200, id="chunks within the limit"),
        pytest.param(chunked("a\r\n0123456789\r\n1\r\na\r\n"), 413, id="chunks beyond it"),
    ],
)
def test_no_more_of_a_request_is_read_than_allowed(strict: Service, sent: bytes, status: int) -> None:
    with reading(strict) as reader:
        reader.send(sent)
        assert reader.answer("POST")[0] == status
        if status != 200:
            assert reader.ending() == b""


def test_an_idle_connection_is_kept_for_as_long_as_it_was_asked_for(strict: Service) -> None:
    with reading(strict) as reader:
        reader.send(NEXT)
        assert reader.answer("GET")[0] == 200
        answered = time.monotonic()
        assert reader.ending() == b""
        assert time.monotonic() - answered >= 0.4


def test_what_a_trusted_proxy_says_is_what_the_application_sees(strict: Service) -> None:
    seen = seen_by(
        strict,
        "X-Forwarded-For: 203.0.113.9, 192.0.2.1, 127.0.0.9",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: shop.example",
        "X-Forwarded-Prefix: /shop",
    )
    told = {"client": "192.0.2.1", "scheme": "https", "host": "shop.example", "root": "/shop", "path": "/a"}
    assert {name: seen[name] for name in told} == told


def test_what_a_trusted_proxy_does_not_say_is_as_without_it(strict: Service) -> None:
    seen = seen_by(strict, "X-Forwarded-For: nonsense", "X-Forwarded-Proto: gopher")
    told = {"client": "127.0.0.1", "scheme": "http", "host": "x", "root": "/base", "path": "/a"}
    assert {name: seen[name] for name in told} == told


def test_nobody_is_believed_who_was_not_named(service: Service) -> None:
    seen = seen_by(service, "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: y")
    told = {"client": "127.0.0.1", "scheme": "http", "host": "x", "root": ""}
    assert {name: seen[name] for name in told} == told
