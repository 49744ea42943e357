"""Connections that idle, get scarce, or belong to several pools, as the log of real services tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pooldrain_compare.harness.servers import Backend
from tests.conftest import PutInFlight
from tests.harness.service import Launcher, Service
from tests.servers import faulty_app

APP = faulty_app.__name__


def stop(service: Service) -> int:
    service.send_signal()
    return service.ended().code


def test_a_connection_that_idles_while_its_answer_is_sent_is_told_and_told_again_when_it_returns(
    services: Launcher, backend: Backend
) -> None:
    service = services.start_app(backend, APP)
    slow = service.connect().ask("GET", "/stream", headers=[("X-Request-ID", "pinned-1")])
    [told] = service.await_event("leak")
    holding = told["holding"]
    assert (told["rule"], holding["holder"], holding["request_id"]) == ("pinned", "GET /stream", "pinned-1")
    assert holding["in_transaction"] is True
    assert holding["statement"] == "SELECT 42"
    assert slow.answer().status == 200
    [returned] = service.await_event("leak_returned")
    assert returned["rule"] == "pinned"
    assert stop(service) == 0
    assert service.report["leaks"]["pinned"] == 1


def test_who_queries_while_it_streams_is_not_pinned(services: Launcher, backend: Backend) -> None:
    service = services.start_app(backend, APP)
    assert service.get("/export").status == 200
    assert stop(service) == 0
    assert service.events("leak") == []
    assert service.report["leaks"]["pinned"] == 0


def test_an_exhausted_pool_tells_once_a_second_who_holds_it(
    services: Launcher, in_flight: PutInFlight, backend: Backend
) -> None:
    options = ("--pool-size", "1", "--max-overflow", "0", "--pool-timeout", "0.2", "--pool-recycle", "3600")
    service = services.start(backend, *options)
    holder = in_flight(service)
    waiting = [service.connect().ask("GET", "/db-test") for _ in range(4)]
    assert [client.answer().status for client in waiting] == [503] * 4
    [told] = service.events("pool_exhausted")
    assert (told["pool_size"], told["overflow"], told["checkedout"]) == (1, 0, 1)
    [held] = told["held"]
    assert held.startswith("1 by POST /orders, for ")
    assert "app.py" in held
    assert service.complaints == [told["message"]]
    holder.release()
    assert [answer.status for answer in holder.answers()] == [201]
    assert stop(service) == 0


def test_each_of_two_pools_has_its_own_policy(
    services: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    monkeypatch.setenv(faulty_app.SECOND_POOL, str(tmp_path / "second.db"))
    service = services.start_app(backend, APP, "--leak-age", "0.2")
    for number in (1, 2):
        assert service.get("/hold?seconds=0.7").status == 200
        service.await_event("leak", number)
    assert stop(service) == 0
    assert service.report["errors"] == []
    assert service.report["leaks"]["overdue"] == 2
