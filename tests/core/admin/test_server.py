"""The admin listener's HTTP alone: what it refuses, and how little it repeats. Real sockets, a made-up status."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from pooldrain.admin.collector import Collector
from pooldrain.admin.gathering import Gathering
from pooldrain.admin.news import News
from pooldrain.admin.server import MOST_CLIENTS, AdminServer
from pooldrain.snapshot import ServiceStatus
from tests.harness.http import Address, Answer, ask


class Known:
    """A collector that knows of nothing."""

    def __init__(self) -> None:
        self.news = News()
        self.news.tell(self.fresh())

    def fresh(self) -> ServiceStatus:
        return Gathering("pooldrain-sync", "1.0").document(0.0)


class Ahead(Known):
    """One that learns more when it is asked than it has told yet, and tells it as the last."""

    def fresh(self) -> ServiceStatus:
        status = super().fresh()
        status["totals"]["finished"] = 9
        threading.Timer(0.05, self.news.tell, (status,), {"last": True}).start()
        return status

    def __init__(self) -> None:
        self.news = News()
        self.news.tell(super().fresh())


@contextmanager
def serving(known: Known) -> Generator[Address]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = AdminServer(listener, cast("Collector", known), frozenset({"localhost", "127.0.0.1", "::1"}), None)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield listener.getsockname()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(name="address")
def _address() -> Iterator[Address]:
    with serving(Known()) as address:
        yield address


def raw(address: Address, request: bytes) -> bytes:
    with socket.create_connection(address, 10.0) as client, client.makefile("rb") as answer:
        try:
            client.sendall(request)
            return answer.read()
        except ConnectionError:  # turned away before it was read
            return b""


def get(address: Address, target: str) -> Answer:
    return ask(address, "GET", target)


def test_without_prometheus_client_it_says_what_to_install(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "pooldrain.admin.exposition", raising=False)
    answer = get(address, "/metrics")
    assert answer.status == 501
    assert answer.body == b"/metrics needs prometheus-client: pip install 'pooldrain[metrics]'\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"<script>alert(1)</script>\r\n\r\n", b"400"),
        (b"GET /<script> HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"505"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
        (b"<SCRIPT> / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nHost: <script>\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\n\r\n", b"403"),
    ],
)
def test_what_it_refuses_it_does_not_repeat(address: Address, request_: bytes, status: bytes) -> None:
    answer = raw(address, request_)
    assert answer.startswith(b"HTTP/1.0 " + status)
    assert b"script" not in answer.lower()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8001", "[::1]:8001"])
def test_it_answers_to_its_own_names(address: Address, host: str) -> None:
    assert raw(address, f"GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).startswith(b"HTTP/1.0 200")


def test_nothing_is_cached_and_nothing_sniffed(address: Address) -> None:
    for page in ("/", "/status", "/livez", "/nothing"):
        answer = get(address, page)
        assert (answer.header("cache-control"), answer.header("x-content-type-options")) == ("no-store", "nosniff")


def test_one_client_too_many_is_turned_away_and_the_next_is_served(address: Address) -> None:
    crowd = [socket.create_connection(address, 10.0) for _ in range(MOST_CLIENTS)]
    for client in crowd:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.0 200"
    assert raw(address, b"GET /livez HTTP/1.1\r\n\r\n") == b""
    while crowd:
        crowd.pop().close()
    answers: Any = None
    for _ in range(200):  # a reader is missed when something is to be told to it
        answers = raw(address, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if answers:
            break
        threading.Event().wait(0.05)
    assert answers.startswith(b"HTTP/1.0 200")


def test_a_reader_is_shown_nothing_older_than_what_it_has_seen() -> None:
    with serving(Ahead()) as address:
        answer = raw(address, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    shown = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: ")]
    finished = [status["totals"]["finished"] for status in shown]
    assert finished == sorted(finished)
    assert finished[-1] == 9
