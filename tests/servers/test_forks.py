"""Forks: no two processes ever use one connection, and a child leaves its parent as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pooldrain_compare.checker import check
from pooldrain_compare.harness.load import LoadClient, constant
from pooldrain_compare.harness.servers import GUNICORN, GUNICORN_2, UVICORN_2, WAITRESS, Backend
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import forking_app

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def start(services: Launcher, backend: Backend, *options: str) -> Service:
    colour = "sync" if backend.module == "pooldrain_sync" else "async"
    return services.start(backend, "--app", f"{forking_app.__name__}:create_{colour}", *options)


def finish(service: Service, postgres: Postgres) -> None:
    """End it in order; its story is its own."""
    service.send_signal()
    ended = service.ended()
    assert ended.code == 0
    assert check(service.transcript, service.report, ended.code) == []
    assert {event["pid"] for event in service.transcript} == set(service.pids)
    assert not service.complaints
    postgres.await_no_sessions(service.pids)


EMPTY = {"outstanding": 0, "opened": 0, "pool_size": 10, "checkedout": 0, "overflow": 0, "idle": 0}


def test_a_forked_child_starts_with_an_empty_pool_and_leaves_its_parents_connections_alone(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start(services, backend)
    sessions = {session.backend for session in postgres.sessions(service.pids)}
    for _ in range(3):
        said = service.get("/fork").json
        child = said["child"]
        assert "error" not in child, child["error"]
        assert child["books"] == EMPTY
        assert child["pid"] not in service.pids
        assert said["before"] == said["after"], "the parent's transaction goes on, on the same connection"
        assert child["backend"] not in sessions
        assert "belongs to the parent process" in child["refused"]
        postgres.await_no_sessions([child["pid"]])
    assert {session.backend for session in postgres.sessions(service.pids)} == sessions, "none was lost"
    assert {service.get("/backend").json["backend"] for _ in range(10)} <= sessions
    finish(service, postgres)


def test_multiprocessing_does_no_harm_either(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service = start(services, backend)
    sessions = {session.backend for session in postgres.sessions(service.pids)}
    children = [service.get("/multiprocessing").json for _ in range(3)]
    assert {child["pid"] for child in children}.isdisjoint(service.pids)
    assert {child["backend"] for child in children}.isdisjoint(sessions)
    assert all(child["books"] == EMPTY for child in children)
    assert {session.backend for session in postgres.sessions(service.pids)} == sessions
    finish(service, postgres)


def test_a_child_ends_at_a_signal_as_any_process_does(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service = start(services, backend)
    assert service.get("/terminate").json == {"code": -15}
    assert service.get("/backend").status == 200
    finish(service, postgres)


def test_a_child_that_outlives_its_service_does_not_keep_the_address(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start(services, backend)
    child = service.get("/outlive").json["pid"]
    try:
        finish(service, postgres)
        with pytest.raises(ConnectionRefusedError):
            service.connect()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_busy_service_may_fork_at_any_moment(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service = start(services, backend)
    load = LoadClient(service.address, constant("/backend"), clients=16).start()
    try:
        for _ in range(10):
            child = service.get("/fork").json["child"]
            assert child["books"] == EMPTY
        load.stop()
        result = load.join(10)
    finally:
        load.stop()
    assert set(result.statuses) == {200}
    assert result.lost == []
    finish(service, postgres)


@pytest.mark.parametrize("backend", [GUNICORN, GUNICORN_2, UVICORN_2], ids=lambda backend: backend.name)
def test_workers_share_no_session_with_a_master_that_has_used_the_engine(
    services: Launcher, postgres: Postgres, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(forking_app.USED_BEFORE, "1")
    service = start(services, backend, "--preload")
    [before] = service.events("used_before")
    assert before["pid"] == service.process.pid, "the application is made once, in the master"

    first = service.pids
    service.send_signal(signal.SIGHUP)
    eventually(lambda: len(service.pids) == 2 * len(first), "new workers", 60)
    postgres.await_no_sessions(first)
    for _ in range(20):
        said = service.get("/backend").json
        assert said["pid"] in service.pids[len(first) :]
        assert said["backend"] in {session.backend for session in postgres.sessions([said["pid"]])}
    assert [session.backend for session in postgres.sessions([before["pid"]])] == [before["backend"]]
    finish(service, postgres)
    assert {report["connections"]["opened"] for report in service.reports} == {10}
    postgres.await_no_sessions([before["pid"]])


def test_waitress_forks_nothing_that_could_be_preloaded(services: Launcher) -> None:
    service = services.begin(WAITRESS, "--preload")
    assert service.ended().code == 2
    assert "--preload: waitress serves one process" in service.process.log_lines()[-1]
