"""Each leak rule tells of a leak by name: in the log, on the status page and in the report."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pooldrain_compare.harness.servers import Backend
from tests.conftest import PutInFlight
from tests.harness.http import Answer
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Record, Service
from tests.harness.waiting import eventually

# The line of the demo that checks a connection out and forgets it, as it is commented there.
THE_LEAK = "# the leak: nobody closes it"
# How soon a leak is told: within the same second.
SOON = 1.0


def line_of_the_leak(backend: Backend) -> str:
    """`file:line in function` of the demo app's leak."""
    spec = importlib.util.find_spec(f"{backend.module}.app")
    assert spec is not None
    assert spec.origin is not None
    lines = Path(spec.origin).read_text("utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if line.endswith(THE_LEAK)]
    return f"{spec.origin}:{number} in Demo.db_test_leak"


def leak(service: Service, request_id: str, query: str = "") -> Answer:
    answer = service.get(f"/db-test-leak{query}", headers=[("X-Request-ID", request_id)])
    assert answer.status == 200
    return answer


def detail(service: Service) -> Record:
    page: Record = service.get("/pool-status?detail=1").json
    return page


def stop(service: Service) -> int:
    service.send_signal()
    return service.ended().code


def expect_holder(holding: Record, backend: Backend, request_id: str, rule: str) -> None:
    assert holding["holder"] == "GET /db-test-leak"
    assert holding["request_id"] == request_id
    assert holding["call_site"] == line_of_the_leak(backend)
    assert holding["statement"] == "SELECT 1 AS test"
    assert holding["rule"] == rule
    assert holding["age"] >= 0


def test_a_connection_that_a_request_did_not_return_is_told_at_once(services: Launcher, backend: Backend) -> None:
    service = services.start(backend)
    answered = leak(service, "leak-1")
    eventually(lambda: service.events("leak"), "the leak in the log", within=SOON)
    [told] = service.events("leak")
    assert (told["level"], told["rule"]) == ("warning", "unreturned")
    expect_holder(told["holding"], backend, "leak-1", "unreturned")
    assert told["message"].startswith("leak (unreturned): connection held by GET /db-test-leak, request leak-1, for ")
    assert f"checked out at {line_of_the_leak(backend)}" in told["message"]
    assert answered.json["pool_status"] == {"pool_size": 10, "checkedout": 1, "overflow": 0, "idle": 9}

    page = detail(service)
    [checkout] = page["checkouts"]
    expect_holder(checkout, backend, "leak-1", "unreturned")
    assert checkout["in_transaction"] is True
    assert page["leaks"] == {"collected": 0, "unreturned": 1, "overdue": 0, "pinned": 0, "threshold": 0}
    assert page["connection_leak"] is False

    assert stop(service) == 0
    [outstanding] = service.report["outstanding"]
    expect_holder(outstanding, backend, "leak-1", "unreturned")
    assert service.report["leaks"]["unreturned"] == 1
    assert service.report["connections"] == {"opened": 10, "closed": 9, "reclaimed": 1, "abandoned": 0}
    not_returned, outstanding_line = service.events("not_returned"), service.events("outstanding")
    assert [record["message"] for record in not_returned] == ["pool: 1 connection was not returned, possible leak:"]
    assert outstanding_line[0]["message"].startswith("pool:   #1 held by GET /db-test-leak, request leak-1, for ")


def test_a_connection_that_the_garbage_collector_found_is_told_and_closed(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend)
    answered = leak(service, "collected-1", "?collect=1")
    assert answered.json["pool_status"]["checkedout"] == 1
    eventually(lambda: service.events("leak"), "the leak in the log", within=SOON)
    [told] = service.events("leak")
    expect_holder(told["holding"], backend, "collected-1", "collected")
    assert told["message"].startswith("leak (collected): connection held by GET /db-test-leak, request collected-1")
    eventually(lambda: len(postgres.sessions(service.pids)) == 9, "the connection is closed, not pooled again")
    page = detail(service)
    assert page["checkouts"] == []
    assert page["leaks"] == {"collected": 1, "unreturned": 0, "overdue": 0, "pinned": 0, "threshold": 0}
    assert page["pool_status"] == {"pool_size": 10, "checkedout": 0, "overflow": 0, "idle": 9}
    assert service.get("/db-test").status == 200
    assert stop(service) == 0
    assert service.report["outstanding"] == []
    assert service.report["leaks"]["collected"] == 1
    postgres.await_no_sessions(service.pids)


def test_a_connection_held_too_long_is_told_and_told_again_when_it_returns(
    services: Launcher, in_flight: PutInFlight, backend: Backend
) -> None:
    service = services.start(backend, "--leak-age", "0.5")
    held = in_flight(service)
    [told] = service.await_event("leak")
    assert (told["rule"], told["holding"]["holder"], told["holding"]["request_id"]) == (
        "overdue",
        "POST /orders",
        *held.ids,
    )
    assert 0.5 <= told["holding"]["age"] < 0.9
    assert detail(service)["checkouts"][0]["rule"] == "overdue"
    held.release()
    assert [answer.status for answer in held.answers()] == [201]
    [returned] = service.await_event("leak_returned")
    assert returned["message"].startswith("leak (overdue): returned after ")
    assert f"held by POST /orders, request {held.ids[0]}" in returned["message"]
    assert service.get("/work?ms=10").status == 200
    assert detail(service)["leaks"] == {"collected": 0, "unreturned": 0, "overdue": 1, "pinned": 0, "threshold": 0}
    assert stop(service) == 0
    assert service.report["outstanding"] == []
    assert len(service.events("leak")) == 1


def test_the_threshold_flags_a_leak_when_it_is_reached_and_logs_it_once(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--leak-threshold", "2")
    leak(service, "one")
    assert service.get("/pool-status").json["connection_leak"] is False
    leak(service, "two")
    assert [service.get("/pool-status").json["connection_leak"] for _ in range(3)] == [True, True, True]
    assert [record["message"] for record in service.events("leak_threshold")] == [
        "leak (threshold): 2 connections checked out, threshold 2"
    ]
    assert stop(service) == 0
    assert service.report["leaks"]["threshold"] == 1


@pytest.mark.parametrize(
    ("target", "code"), [("/db-test-leak", 5), ("/db-test-leak?collect=1", 5), ("/db-test", 0), ("/work?ms=400", 0)]
)
def test_fail_on_leak_makes_the_exit_code_tell(services: Launcher, backend: Backend, target: str, code: int) -> None:
    service = services.start(backend, "--fail-on-leak", "--leak-age", "0.2")
    assert service.get(target).status == 200
    assert stop(service) == code
    assert (service.report["outcome"], service.report["exit_code"]) == ("leaked" if code else "drained", code)


def test_leaks_do_not_keep_the_pool_from_serving_and_from_closing(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend, "--pool-size", "3", "--max-overflow", "3", "--pool-timeout", "0.2")
    for number in range(6):
        leak(service, f"leak-{number}")
    assert service.get("/db-test").status == 503
    page = detail(service)
    assert page["pool_status"] == {"pool_size": 3, "checkedout": 6, "overflow": 3, "idle": 0}
    assert [checkout["request_id"] for checkout in page["checkouts"]] == [f"leak-{number}" for number in range(6)]
    assert len(postgres.sessions(service.pids)) == 6
    assert stop(service) == 0
    assert service.report["connections"] == {"opened": 6, "closed": 0, "reclaimed": 6, "abandoned": 0}
    postgres.await_no_sessions(service.pids)
