"""A SQLite file serves both backends as well, with the same answers and the same shutdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.service import Launcher


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'file.db'}"


def test_the_walkthrough_is_the_same_on_sqlite(services: Launcher, backend: Backend, url: str) -> None:
    service = services.start(backend, url=url)
    assert service.get("/").json["pool_status"] == {"pool_size": 10, "checkedout": 0, "overflow": 0, "idle": 10}
    assert service.get("/db-test").json["result"] == 1
    for _ in range(5):
        assert service.get("/db-test-leak").status == 200
    page = service.get("/pool-status").json
    assert page["pool_status"] == {"pool_size": 10, "checkedout": 5, "overflow": 0, "idle": 5}
    assert page["connection_leak"] is True
    service.send_signal()
    assert service.ended().code == 0
    report = service.report
    assert [holding["holder"] for holding in report["outstanding"]] == ["GET /db-test-leak"] * 5
    assert report["connections"] == {"opened": 10, "closed": 5, "reclaimed": 5, "abandoned": 0}


def test_work_in_flight_is_finished_and_work_without_end_is_interrupted(
    services: Launcher, backend: Backend, url: str
) -> None:
    service = services.start(backend, "--drain-timeout", "0.8", url=url)
    short = service.connect().ask("GET", "/work?ms=400")
    endless = service.connect().ask("GET", "/work?ms=60000")
    service.await_admitted(2)
    service.send_signal()
    assert short.answer().status == 200
    assert endless.answer().status == 504
    assert service.ended(within=5).code == 3
    assert [cut["route"] for cut in service.report["cut_requests"]] == ["GET /work"]


def test_an_order_made_on_one_backend_is_found_on_the_others(services: Launcher, url: str) -> None:
    for number, backend in enumerate(SERVERS):
        service = services.start(backend, url=url)
        assert service.get("/orders/count").json["count"] == number
        order = b'{"id": "%s", "item": "notebook"}' % backend.name.encode()
        assert service.ask("POST", "/orders", order).status == 201
        assert service.ask("POST", "/orders", order).status == 200
        service.send_signal()
        assert service.ended().code == 0
        assert not service.complaints
