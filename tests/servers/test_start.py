"""SIGTERM at exact points of the start: it is remembered, the start goes on to its end, and ends in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pooldrain.runtime.process.watchdog import END_MARGIN
from pooldrain_compare.harness.servers import EVERY_WAY, GUNICORN, GUNICORN_2, UVICORN_2
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually

# Runs when Python starts: signals the process itself when it comes to a point, told by an audit event.
AT_POINT = """
import os, signal, sys

point, passed = os.environ["SIGNAL_AT"], []

def hook(event, arguments):
    if not passed and point in (event, f"{event} {arguments[0]}" if arguments else ""):
        passed.append(event)
        os.kill(os.getpid(), signal.SIGTERM)

sys.addaudithook(hook)
"""

# The demo; its process, or the master of it, is signalled when the pool opens its third connection.
AT_THIRD_CONNECTION = """
import os, signal
from sqlalchemy import event

opened = []

def opening(connection, record):
    opened.append(connection)
    if len(opened) == 3:
        os.kill(os.getpgrp(), signal.SIGTERM)  # each service is a group of its own, led by its first process

def create_sync(runner):
    from pooldrain_sync.app import create_app
    event.listen(runner.pool.engine, "connect", opening)
    return create_app(runner)

def create_async(runner):
    from pooldrain_async.app import create_app
    event.listen(runner.pool.engine.sync_engine, "connect", opening)
    return create_app(runner)
"""

# A start that hangs for ever once it has said that it begins.
HANGS = """
import asyncio, sys, threading

def create_sync(runner):
    def hang():
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()
    runner.on_open(hang)
    return lambda environ, start_response: []

def create_async(runner):
    async def hang():
        print("hanging", file=sys.stderr, flush=True)
        await asyncio.Event().wait()
    runner.on_open(hang)
    return lambda scope, receive, send: None
"""

# What comes right after the handlers stand; what reads the options; before the listener is bound; before a worker is.
POINTS = (
    "import pooldrain.runtime.process.exit",
    "import pooldrain.runtime.options.settings",
    "import pooldrain.runtime.startup",
    "socket.bind",
    "os.fork",
)


def expect_an_end_in_order(every: list[Service], postgres: Postgres) -> None:
    for service in every:
        assert service.ended(within=60).code == 0, service.process.log_tail()
        assert [record["signal"] for record in service.events("signal")] == ["SIGTERM"] * len(service.pids)
        assert {report["outcome"] for report in service.reports} == {"drained"}
        assert not service.complaints
        postgres.await_no_sessions(service.pids)


@pytest.mark.parametrize("point", POINTS)
def test_a_signal_at_any_point_of_the_start_is_remembered(
    services: Launcher, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_POINT, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SIGNAL_AT", point)
    backends = (GUNICORN, GUNICORN_2, UVICORN_2) if point == "os.fork" else EVERY_WAY
    every = [services.begin(backend) for backend in backends]
    expect_an_end_in_order(every, postgres)


def test_a_signal_while_the_pool_is_filled_is_remembered(
    services: Launcher, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_connection.py").write_text(AT_THIRD_CONNECTION, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    every = []
    for backend in EVERY_WAY:
        colour = "sync" if backend.module == "pooldrain_sync" else "async"
        every.append(services.begin(backend, "--app", f"third_connection:create_{colour}"))
    expect_an_end_in_order(every, postgres)


def test_a_start_that_hangs_ends_within_the_grace_period_once_it_is_told_to(
    services: Launcher, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging_start.py").write_text(HANGS, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    timeouts: tuple[str, ...] = (
        "--drain-timeout",
        "0.5",
        "--cancel-timeout",
        "0.2",
        "--dispose-timeout",
        "0.3",
        "--linger",
        "0",
    )
    timeouts = (*timeouts, "--teardown-timeout", "0.1")
    grace_period = 1.1
    every = []
    for backend in EVERY_WAY:
        colour = "sync" if backend.module == "pooldrain_sync" else "async"
        every.append(services.begin(backend, "--app", f"hanging_start:create_{colour}", *timeouts))

    def hanging() -> bool:
        return all("hanging" in service.process.log_tail() for service in every)

    eventually(hanging, "every start hangs")
    for service in every:  # one after the other: the margin is one service's, and not that of five which end at once
        at = service.send_signal()
        ended = service.ended()
        assert ended.code == 1
        assert ended.at - at < grace_period + END_MARGIN
        assert "not ended within the grace period" in service.process.log_tail()
    postgres.await_nobody()
