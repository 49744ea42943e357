"""The report and the transcript: their shape, and that they, the log and the exit code agree."""

from __future__ import annotations

from collections import Counter

import pytest

from pooldrain_compare.harness.servers import EVERY_WAY, GUNICORN_2, UVICORN_2, Backend
from tests.conftest import PutInFlight
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Record

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)

PHASES = ["ANNOUNCING", "DRAINING", "CANCELLING", "TEARDOWN", "RECLAIMING", "DISPOSING", "STOPPING"]
KEYS = [
    *("outcome", "exit_code", "signal", "signals", "hurried", "seconds", "phases", "requests", "cut_requests"),
    *("cut_work", "outstanding", "leaks", "connections", "pools", "errors"),
]
HOLDING = ["holder", "request_id", "age", "call_site", "callers", "statement", "in_transaction", "rule", "pool"]
CUT = ["request_id", "route", "age", "status", "call_site", "statement"]


def expect_shape(report: Record) -> None:
    assert list(report) == KEYS
    assert [phase["phase"] for phase in report["phases"]] == PHASES
    assert all(phase["seconds"] >= 0 for phase in report["phases"])
    assert report["seconds"] == pytest.approx(sum(phase["seconds"] for phase in report["phases"]), abs=0.001)
    requests, connections = report["requests"], report["connections"]
    assert list(requests) == ["in_flight_at_signal", "finished", "refused", "cut", "seen"]
    assert requests["seen"] == requests["finished"] + requests["refused"] + requests["cut"]
    assert len(report["cut_requests"]) == requests["cut"]
    assert list(connections) == ["opened", "closed", "reclaimed", "abandoned"]
    assert connections["opened"] == connections["closed"] + connections["reclaimed"] + connections["abandoned"]
    assert list(report["leaks"]) == ["collected", "unreturned", "overdue", "pinned", "threshold"]
    assert all(list(holding) == HOLDING for holding in report["outstanding"])
    assert all(list(cut) == CUT for cut in report["cut_requests"])
    assert report["errors"] == []


def expect_agreement(report: Record, transcript: list[Record], log: list[Record]) -> None:
    """One process's report, its transcript, and its records in the log tell the same."""
    counts = Counter(event["event"] for event in transcript)
    requests = report["requests"]
    assert counts["request_finished"] == requests["finished"] + requests["cut"]
    assert counts["request_admitted"] == requests["finished"] + requests["cut"]
    assert counts["request_refused"] == requests["refused"]
    assert counts["request_cut"] == requests["cut"]
    assert counts["connection_opened"] == report["connections"]["opened"]
    assert counts["connection_closed"] == report["connections"]["closed"] + report["connections"]["reclaimed"]
    assert counts["connection_reclaimed"] == report["connections"]["reclaimed"]
    assert counts["signal"] == report["signals"]
    assert counts["checkout"] == counts["checkin"]
    phases = [event["phase"] for event in transcript if event["event"] == "phase"]
    assert phases == ["STARTING", "READY", *PHASES, "CLOSED"]
    outstanding = [event["holding"] for event in transcript if event["event"] == "outstanding"]
    assert outstanding == report["outstanding"]
    [complete] = [event for event in transcript if event["event"] == "shutdown_complete"]
    assert (complete["outcome"], complete["exit_code"]) == (report["outcome"], report["exit_code"])
    assert (complete["finished"], complete["cut"]) == (requests["finished"], requests["cut"])
    moments = [event["t"] for event in transcript]
    assert moments == sorted(moments)
    told = [record for record in log if record["event"] == "shutdown_complete"]
    assert {(r["outcome"], r["exit_code"], r["finished"]) for r in told} >= {
        (report["outcome"], report["exit_code"], requests["finished"])
    }


@every_way
@pytest.mark.parametrize("cut", [False, True], ids=["drained", "cut"])
def test_report_transcript_log_and_exit_code_agree(
    services: Launcher, in_flight: PutInFlight, backend: Backend, *, cut: bool
) -> None:
    service = services.start(backend, "--drain-timeout", "0.5" if cut else "30")
    service.get("/db-test-leak")
    service.get("/nowhere")
    service.ask("POST", "/orders", b"{")
    held = in_flight(service)
    service.send_signal()
    service.await_drain()
    service.get("/")
    if not cut:
        held.release()
    assert {answer.status for answer in held.answers()} == {504 if cut else 201}
    code = service.ended().code
    assert code == (3 if cut else 0)

    report, reports = service.report, service.reports
    assert list(report) == [*KEYS, "refused_by_master", "workers"]
    assert report["exit_code"] == code
    for counts in ("requests", "leaks", "connections"):
        late = report["refused_by_master"] if counts == "requests" else 0
        for name, number in report[counts].items():
            assert number == sum(one[counts][name] for one in reports) + (late if name in ("refused", "seen") else 0)
    assert len(reports) == backend.workers
    by_pid: dict[int, list[Record]] = {}
    for event in service.transcript:
        by_pid.setdefault(event["pid"], []).append(event)
    assert sorted(by_pid) == sorted(service.pids)
    finished = {pid: sum(event["event"] == "request_finished" for event in seen) for pid, seen in by_pid.items()}
    for one in reports:
        expect_shape(one)
        seen = one["requests"]["finished"] + one["requests"]["cut"]
        [pid] = [pid for pid, number in finished.items() if number == seen][:1]
        expect_agreement(one, by_pid.pop(pid), service.log)
        finished.pop(pid)
    assert sum(one["requests"]["finished"] for one in reports) == 3 + (0 if cut else len(held))
    assert sum(one["requests"]["cut"] for one in reports) == (len(held) if cut else 0)
    assert service.refused == 1
    assert sum(len(one["outstanding"]) for one in reports) == 1


@pytest.mark.parametrize("backend", [GUNICORN_2, UVICORN_2], ids=lambda backend: backend.name)
def test_the_report_of_two_workers_is_one_file_with_the_worst_exit_code(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend, "--drain-timeout", "0.3")
    endless = service.connect().ask("GET", "/work?ms=60000")
    postgres.await_working(service.pids)
    service.send_signal()
    assert endless.answer().status == 504
    assert service.ended().code == 3
    assert (service.report["exit_code"], service.report["outcome"]) == (3, "cut")
    assert sorted(report["exit_code"] for report in service.reports) == [0, 3]
    written = sorted(path.name for path in service.directory.iterdir())
    assert written == [f"{backend.name}.{kind}" for kind in ("log", "report.json", "transcript.jsonl")]
