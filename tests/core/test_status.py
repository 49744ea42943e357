"""What both backends answer, byte by byte: the tutorial's JSON, and problem documents for what went wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooldrain.answers import Answer, answer, livez, readyz, to_json
from pooldrain.in_flight import InFlightRequest
from pooldrain.leak_rules import LeakRule
from pooldrain.ledger import Holding
from pooldrain.phases import Phase
from pooldrain.problems import (
    CUT,
    DATABASE_UNAVAILABLE,
    INTERNAL_ERROR,
    POOL_CLOSED,
    POOL_EXHAUSTED,
    REFUSED,
    Failure,
    method_not_allowed,
    not_found,
    problem,
)
from pooldrain.status import PoolStatus, pool_status_detail, pool_status_page

# -- JSON


def test_the_status_page_has_exactly_the_tutorials_bytes() -> None:
    page = pool_status_page(PoolStatus(10, 5, 0, 5), connection_leak=True, accepting=True, active=0)
    assert (
        to_json(page).decode()
        == """\
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
    )


def test_the_detail_adds_phase_holders_and_counters() -> None:
    holding = Holding("GET /work", "abc", 1.5, "app.py:7 in work", ("app.py:9 in view",), None, None, None)
    detail = pool_status_detail([holding], {LeakRule.COLLECTED: 0, LeakRule.UNRETURNED: 5}, Phase.DRAINING)
    assert json.loads(to_json(detail)) == {
        "phase": "DRAINING",
        "checkouts": [
            {
                "holder": "GET /work",
                "request_id": "abc",
                "age": 1.5,
                "call_site": "app.py:7 in work",
                "callers": ["app.py:9 in view"],
                "statement": None,
                "in_transaction": None,
                "rule": None,
                "pool": "main",
            }
        ],
        "leaks": {"collected": 0, "unreturned": 5},
    }


def test_json_is_utf8_as_people_read_it_and_ends_its_line() -> None:
    assert to_json({"消息": "é"}) == '{\n  "消息": "é"\n}\n'.encode()


def test_an_answer_knows_its_status_line_and_its_length_in_bytes() -> None:
    made = answer({"a": "é"}, 201)
    assert made.status_line == "201 Created"
    assert made.headers == [("content-type", "application/json"), ("content-length", str(len(made.body)))]
    assert not made.close


# -- problem documents


def test_a_problem_is_a_problem_document_of_rfc_9457() -> None:
    made = problem(404, "there is no order 7", [("x-a", "b")])
    assert made.status_line == "404 Not Found"
    assert made.headers == [
        ("content-type", "application/problem+json"),
        ("content-length", str(len(made.body))),
        ("x-a", "b"),
    ]
    assert (
        made.body.decode()
        == """\
{
  "type": "about:blank",
  "title": "Not Found",
  "status": 404,
  "detail": "there is no order 7"
}
"""
    )


def test_a_refusal_says_when_to_come_again_and_closes() -> None:
    assert REFUSED.status_line == "503 Service Unavailable"
    assert REFUSED.close
    assert ("retry-after", "1") in REFUSED.headers
    assert (
        REFUSED.body.decode()
        == """\
{
  "type": "about:blank",
  "title": "Service Unavailable",
  "status": 503,
  "detail": "the service is shutting down and takes no new requests"
}
"""
    )


@pytest.mark.parametrize("made", [REFUSED, POOL_CLOSED.before], ids=["refused", "pool closed"])
def test_what_the_shutdown_turns_away_may_come_again_on_another_connection(made: Answer) -> None:
    assert (made.status, made.close) == (503, True)
    assert ("retry-after", "1") in made.headers


FAILURES = {"pool closed": POOL_CLOSED, "exhausted": POOL_EXHAUSTED, "unavailable": DATABASE_UNAVAILABLE}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_fails_before_the_first_connection_was_not_executed_and_later_that_is_not_known(failure: Failure) -> None:
    request = InFlightRequest("POST", "/orders", None, 0.0)
    early = failure.answer(request)
    request.connected = True
    late = failure.answer(request)
    assert (early.status, "retry-after" in dict(early.headers)) == (503, True)
    assert (late.status, "retry-after" in dict(late.headers)) == (504, False)
    assert failure.answer(None) == early


def test_a_request_that_was_cut_may_have_been_executed_and_nobody_is_asked_to_send_it_again() -> None:
    assert (CUT.status, CUT.close, "retry-after" in dict(CUT.headers)) == (504, True, False)


@pytest.mark.parametrize("made", [POOL_EXHAUSTED.before, DATABASE_UNAVAILABLE.before], ids=["exhausted", "unavailable"])
def test_what_a_running_service_cannot_do_now_may_come_again_on_the_same_connection(made: Answer) -> None:
    assert (made.status, made.close) == (503, False)
    assert ("retry-after", "1") in made.headers


def test_an_internal_error_gives_nothing_away() -> None:
    assert json.loads(INTERNAL_ERROR.body)["detail"] == "the request failed; the log says why"
    assert "retry-after" not in dict(INTERNAL_ERROR.headers)


def test_a_wrong_method_is_told_the_right_ones() -> None:
    made = method_not_allowed("DELETE", "/work", ["HEAD", "GET"])
    assert (made.status_line, dict(made.headers)["allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    assert json.loads(made.body)["detail"] == "/work takes GET, HEAD, not DELETE"


@given(st.text())
def test_whatever_path_was_asked_for_the_problem_names_it(path: str) -> None:
    made = not_found(path)
    assert json.loads(made.body)["detail"] == f"there is no route {path}"
    assert made.body.count(b"\n") == 6, "a line break in the path is escaped"


# -- probes


def test_a_process_that_answers_is_alive() -> None:
    assert (livez().status, livez().body) == (200, b'{\n  "status": "alive"\n}\n')


@pytest.mark.parametrize("phase", Phase)
def test_only_a_ready_service_says_that_it_is_ready(phase: Phase) -> None:
    made = readyz(phase)
    assert made.status == (200 if phase is Phase.READY else 503)
    word = "ready" if phase is Phase.READY else "not ready"
    assert json.loads(made.body) == {"status": word, "phase": phase.name}
