"""The tutorial's walkthrough: its printed answers literally, and the story that its log tells on SIGTERM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pooldrain_compare.harness.processes import Ended, ServerProcess, free_port, python_module
from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.http import Answer, get
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND, eventually

ROOT = """\
{
  "message": "数据库连接池优雅关闭示例",
  "pool_status": {
    "pool_size": 10,
    "checkedout": 0,
    "overflow": 0,
    "idle": 10
  }
}
"""
DB_TEST = """\
{
  "status": "success",
  "result": 1,
  "pool_status": {
    "pool_size": 10,
    "checkedout": 0,
    "overflow": 0,
    "idle": 10
  }
}
"""
FIFTH_LEAK = """\
{
  "status": "success",
  "result": 1,
  "pool_status": {
    "pool_size": 10,
    "checkedout": 5,
    "overflow": 0,
    "idle": 5
  },
  "warning": "这个端点会导致连接泄漏！"
}
"""
POOL_STATUS = """\
{
  "pool_status": {
    "pool_size": 10,
    "checkedout": 5,
    "overflow": 0,
    "idle": 5
  },
  "connection_leak": true,
  "requests": {
    "accepting": true,
    "active": 0
  }
}
"""
LEAKS = 5
REQUESTS = ("/", "/db-test", *["/db-test-leak"] * LEAKS, "/pool-status")


class Walk:
    """The walkthrough on one backend, from start to exit."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answers: list[Answer] = []
        for path in REQUESTS:
            self.answers.append(service.get(path))
            eventually(self._leaks_are_told, "the leak is in the log")
        service.send_signal()
        self.ended: Ended = service.ended()

    def _leaks_are_told(self) -> bool:
        """An answer may arrive before its request has ended, which is when its leak is found."""
        told = [record for record in self.service.log if record["event"] == "leak"]
        return len(told) == REQUESTS[: len(self.answers)].count("/db-test-leak")


@pytest.fixture(scope="module")
def walks(shared_services: Launcher) -> dict[str, Walk]:
    return {service.backend.name: Walk(service) for service in shared_services.start_all(SERVERS)}


@pytest.fixture
def walk(walks: dict[str, Walk], backend: Backend) -> Walk:
    return walks[backend.name]


def test_the_answers_are_what_the_tutorial_prints(walk: Walk) -> None:
    printed = {0: ROOT, 1: DB_TEST, 6: FIFTH_LEAK, 7: POOL_STATUS}
    for number, text in printed.items():
        answer = walk.answers[number]
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert answer.body.decode() == text


def test_each_leak_takes_a_connection_away(walk: Walk) -> None:
    statuses = [answer.json["pool_status"] for answer in walk.answers[2:7]]
    assert [(s["checkedout"], s["idle"]) for s in statuses] == [(1, 9), (2, 8), (3, 7), (4, 6), (5, 5)]


def test_the_answers_are_the_same_bytes_on_every_server(walks: dict[str, Walk]) -> None:
    first, *others = walks.values()
    for other in others:
        assert [answer.comparable for answer in other.answers] == [answer.comparable for answer in first.answers]


def test_the_log_tells_the_tutorials_story_in_order(walk: Walk) -> None:
    story = [record["message"] for record in walk.service.log]
    while story and not story[0].startswith("SIGTERM"):
        story.pop(0)
    holder = r"held by GET /db-test-leak, request r\d+, for \d+\.\d{3} s, in transaction, checked out at .*app\.py:\d+"
    told = (
        r"SIGTERM received: shutting down",
        r"drain: refusing new requests, 0 in flight",
        r"drain: complete after \d\.\d{3} s, 0 refused",
        r"pool: before closing: pool_size 10, checked out 5, overflow 0, idle 5",
        r"pool: 5 connections were not returned, possible leak:",
        *(rf"pool:   #{number} {holder} .*" for number in range(1, LEAKS + 1)),
        r"pool: closed in \d\.\d{3} s, 5 idle connections closed",
        r"shutdown complete in \d\.\d{3} s: drained, 7 requests finished, .*, 5 connections not returned, exit code 0",
    )
    assert len(story) == len(told), story
    for line, pattern in zip(story, told, strict=True):
        assert re.fullmatch(pattern, line)


def test_the_start_is_told_too(walk: Walk) -> None:
    pool, listening, *_ = walk.service.log
    assert re.match(
        r"pool: database connection test succeeded, 10 connections opened in \d\.\d{3} s "
        r"\(pool_size 10, max_overflow 20, 30 in all\) to postgresql://",
        pool["message"],
    )
    assert re.fullmatch(r"listening on http://127\.0\.0\.1:\d+ \((\w+), pid \d+\)", listening["message"])
    assert listening["server"] == walk.service.backend.name


def test_nothing_but_the_leaks_is_complained_of(walk: Walk) -> None:
    expected = ["leak"] * LEAKS + ["leak_threshold", "not_returned"] + ["outstanding"] * LEAKS
    warned = [record["event"] for record in walk.service.log if record["level"] != "info"]
    assert warned == expected
    assert not [line for line in walk.service.complaints if "Traceback" in line]


def test_it_ends_with_exit_code_0_and_leaves_no_session(walk: Walk, postgres: Postgres) -> None:
    assert walk.ended.code == 0
    postgres.await_no_sessions(walk.service.pids)


def test_the_report_says_what_the_log_says(walk: Walk) -> None:
    report = walk.service.report
    assert (report["outcome"], report["exit_code"], report["signal"]) == ("drained", 0, "SIGTERM")
    assert report["requests"] == {"in_flight_at_signal": 0, "finished": 7, "refused": 0, "cut": 0, "seen": 7}
    assert [holding["holder"] for holding in report["outstanding"]] == ["GET /db-test-leak"] * LEAKS
    assert report["connections"] == {"opened": 10, "closed": 5, "reclaimed": 5, "abandoned": 0}
    assert report["leaks"] == {"collected": 0, "unreturned": LEAKS, "overdue": 0, "pinned": 0, "threshold": 1}


def test_the_console_shows_the_same_story_without_a_stray_line(
    database_url: str, tmp_path: Path, backend: Backend
) -> None:
    address = ("127.0.0.1", free_port())
    command = python_module(backend.module, *backend.options, "--bind", f"{address[0]}:{address[1]}")
    log = tmp_path / "log"
    with ServerProcess(command, log=log, address=address, environment={"DATABASE_URL": database_url}) as process:
        get(address, "/db-test-leak")
        eventually(lambda: "leak (unreturned)" in log.read_text(), "the leak is told, a moment after the answer")
        process.signal()
        assert process.wait(BOUND).code == 0
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    told = (
        "INFO  pool: database connection test succeeded, ",
        "INFO  admin: http://127.0.0.1:",
        "INFO  listening on ",
        "WARN  leak (unreturned): connection held by GET /db-test-leak",
        "INFO  SIGTERM received: shutting down",
        "INFO  drain: refusing new requests, 0 in flight",
        "INFO  drain: complete",
        "INFO  pool: before closing: pool_size 10, checked out 1, overflow 0, idle 9",
        "WARN  pool: 1 connection was not returned, possible leak:",
        "WARN  pool:   #1 held by GET /db-test-leak",
        "INFO  pool: closed in ",
        "INFO  shutdown complete in ",
    )
    lines = log.read_text().splitlines()
    assert len(lines) == len(told), lines
    for line, beginning in zip(lines, told, strict=True):
        assert re.match(rf"{stamp} {re.escape(beginning)}", line)
