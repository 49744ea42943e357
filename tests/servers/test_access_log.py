"""The access log: a line for each request, alike on all servers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain.problems import CUT, REFUSED
from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import echo_app

everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)

COMMON = re.compile(
    r'(?P<client>\S+) - - \[[^\]]+\] "(?P<line>[^"]*) HTTP/1\.1" (?P<status>\S+) (?P<sent>\S+) (?P<id>\S+) '
    r"(?P<seconds>[0-9.]+) (?P<outcome>\w+)"
)


def json_lines(service: Service) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.process.log_lines()]
    return [line for line in lines if "outcome" in line and "client" in line]


@everywhere
def test_every_request_has_its_line_with_what_became_of_it(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--access-log", "json", "--drain-timeout", "0.5", "--cancel-timeout", "2")
    answer = service.get("/?secret=1", headers=[("X-Request-ID", "first")])
    assert service.ask("HEAD", "/", headers=[("X-Request-ID", "head")]).status == 200
    assert service.get("/livez").status == 200
    kept, hung = service.connect(), service.connect()
    kept.get("/nowhere")
    hung.ask("GET", "/work?ms=60000", headers=[("X-Request-ID", "hung")])
    service.await_admitted(4)

    service.send_signal()
    eventually(lambda: any('"drain_started"' in line for line in service.process.log_lines()), "the drain has begun")
    assert kept.ask("GET", "/", headers=[("X-Request-ID", "late")]).answer().status == 503
    assert hung.answer().status == 504
    assert service.ended().code == ExitCode.CUT

    lines = json_lines(service)
    told = {line["request_id"]: (line["method"], line["path"], line["status"], line["sent"]) for line in lines}
    of_ids = {request_id: told[request_id] for request_id in ("first", "head", "late", "hung")}
    assert of_ids == {
        "first": ("GET", "/", 200, len(answer.body)),
        "head": ("HEAD", "/", 200, 0),
        "late": ("GET", "/", 503, len(REFUSED.body)),
        "hung": ("GET", "/work", 504, len(CUT.body)),
    }
    assert [line["outcome"] for line in lines] == ["served", "served", "served", "refused", "cut"]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert 0.4 < lines[-1]["seconds"] < 10
    assert "secret" not in "".join(service.process.log_lines())


@everywhere
def test_the_common_form_is_that_of_other_servers(services: Launcher, backend: Backend) -> None:
    service = services.start_app(backend, echo_app.__name__, "--access-log", "common", "--trusted-proxies", "127.0.0.1")
    service.get("/a%22b%0ac", headers=[("X-Forwarded-For", "192.0.2.7"), ("X-Request-ID", "one")])
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED
    [match] = filter(None, map(COMMON.fullmatch, unquoted(service)))
    assert match["client"] == "192.0.2.7"
    assert (match["line"], match["status"], match["id"], match["outcome"]) == (r"GET /a'b\nc", "200", "one", "served")


def unquoted(service: Service) -> list[str]:
    """Its lines, with each escaped quote as a single one."""
    return [line.replace('\\"', "'") for line in service.process.log_lines()]


@everywhere
def test_there_is_none_unless_somebody_asks_for_it(services: Launcher, backend: Backend) -> None:
    service = services.start(backend)
    service.get("/")
    service.send_signal()
    service.ended()
    assert not json_lines(service)
