"""The engine's own affairs with its connections, without a service around it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pooldrain import ShutdownPolicy
from pooldrain.policy import HttpPolicy
from pooldrain.runtime.listener import has_arrived
from pooldrain.runtime.output.events import EventLog
from pooldrain_sync.engine.engine import Engine
from pooldrain_sync.middleware import GateMiddleware
from pooldrain_sync.runner import Runner
from tests.harness.http import Connection
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One whose threads have not been started: its connections are looked after by the test."""
    runner = Runner(None, ShutdownPolicy(), events=EventLog(None, time.monotonic), lock=threading.RLock())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Engine(
            GateMiddleware(application, runner),
            runner,
            listener,
            threads=1,
            slots=1,
            several=False,
            served=lambda: None,
            http=HttpPolicy(),
        )
        yield made
        made.close_all()


def connect(engine: Engine) -> Connection:
    client = Connection(engine.listener.getsockname())
    while not engine.connected:
        engine.accept_now()
    return client


def test_an_idle_connection_on_which_something_has_just_come_is_served(engine: Engine) -> None:
    arriving = connect(engine)
    [conn] = engine.waiting
    engine.waiting[conn] = 0.0
    arriving.ask("GET", "/")
    eventually(lambda: has_arrived(conn.fd), "the request has come")
    engine.close_idle()
    assert not engine.lingering
    assert list(engine.waiting) == [conn]
    engine.start()
    assert arriving.answer().status == 200
    arriving.close()


def test_an_idle_connection_is_half_closed_first(engine: Engine) -> None:
    idle = connect(engine)
    [conn] = engine.waiting
    engine.waiting[conn] = 0.0
    engine.close_idle()
    assert list(engine.lingering) == [conn]
    assert idle.ending() == "closed"
    idle.close()
