"""Work that follows an answer: it belongs to its request, and is told if it is cut, whether or not its client knows."""

from __future__ import annotations

import pytest

from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, UVICORN, Backend
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.servers import faulty_app

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)

LONG = 60  # seconds
SHORT = ("--drain-timeout", "0.3", "--cancel-timeout", "0.8")


def cut(service: Service) -> list[dict[str, object]]:
    return [cut for report in service.reports for cut in report["cut_requests"]]


def answered(service: Service, target: str) -> None:
    """A request whose answer has come, and whose work goes on."""
    answer = service.connect().ask("GET", target, headers=[("X-Request-ID", "after-1")]).answer()
    assert (answer.status, answer.body) == (200, b"done")


@every_way
@pytest.mark.parametrize("target", ["/after", "/after-last"])
def test_a_statement_after_the_answer_that_overstays_is_cut_and_named_without_a_traceback(
    services: Launcher, postgres: Postgres, backend: Backend, target: str
) -> None:
    service = services.start_app(backend, faulty_app.__name__, *SHORT)
    answered(service, f"{target}?seconds={LONG}")
    postgres.await_working(service.pids)
    service.send_signal()
    assert service.ended().code == 3
    [told] = cut(service)
    assert (told["request_id"], told["route"], told["status"]) == ("after-1", f"GET {target}", 200)
    assert "faulty_app.py" in str(told["call_site"])
    assert "pg_sleep" in str(told["statement"])
    [line] = service.complaints
    assert line.startswith(f"cancel: GET {target}, request after-1, cut after ")
    assert not [record for record in service.log if "traceback" in record]
    postgres.await_no_sessions(service.pids)


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)
def test_work_after_the_answer_that_heeds_nothing_is_cut(services: Launcher, backend: Backend) -> None:
    service = services.start_app(backend, faulty_app.__name__, *SHORT)
    answered(service, f"/after-stuck?seconds={LONG}")
    service.send_signal()
    assert service.ended().code == 3
    [told] = cut(service)
    assert (told["request_id"], told["status"]) == ("after-1", 200)
    assert not [record for record in service.log if "traceback" in record]


def test_a_task_after_the_answer_that_holds_no_connection_is_cut_as_well(services: Launcher) -> None:
    service = services.start_app(UVICORN, faulty_app.__name__, *SHORT)
    answered(service, f"/after-idle?seconds={LONG}")
    service.send_signal()
    assert service.ended().code == 3
    [told] = cut(service)
    assert (told["route"], told["status"], told["call_site"]) == ("GET /after-idle", 200, "")
    assert len(service.complaints) == 1


@every_way
def test_work_after_the_answer_that_ends_in_time_is_waited_for(services: Launcher, backend: Backend) -> None:
    service = services.start_app(backend, faulty_app.__name__)
    answered(service, "/after?seconds=0.5")
    service.send_signal()
    assert service.ended().code == 0
    assert cut(service) == []
    assert sum(report["requests"]["finished"] for report in service.reports) == 1
    assert not service.complaints
