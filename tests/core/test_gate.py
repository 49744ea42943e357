"""The gate promises: what is in flight is known, what is refused is counted, and a closed gate stays closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from pooldrain.gate import RequestGate, Reservation
from pooldrain.in_flight import LONGEST_ID, InFlightRequest, route_label


def admitted(gate: RequestGate, path: str = "/work", given_id: str | None = None, now: float = 0.0) -> InFlightRequest:
    request = gate.admit("GET", path, given_id, now)
    assert request is not None
    return request


def answered(gate: RequestGate, request: InFlightRequest, status: int | None) -> None:
    request.status = status
    gate.finish(request)


# -- in flight


def test_a_request_is_in_flight_from_its_admission_to_its_end() -> None:
    gate = RequestGate()
    assert gate.idle
    request = admitted(gate, now=7.5)
    assert (gate.active, gate.idle, request.started) == (1, False, 7.5)
    answered(gate, request, 200)
    assert (gate.active, gate.idle, gate.finished) == (0, True, 1)
    assert request.ended


def test_what_runs_a_request_is_kept_as_it_was_given() -> None:
    task = object()
    request = RequestGate().admit("GET", "/", None, 0.0, worker=task)
    assert request is not None
    assert request.worker is task


def test_a_closed_gate_refuses_counts_and_stays_closed() -> None:
    gate = RequestGate()
    gate.close()
    gate.close()
    assert gate.admit("GET", "/", None, 0.0) is None
    assert gate.reserve() is None
    assert (gate.accepting, gate.refused, gate.idle) == (False, 1, True)
    assert not gate.keep_alive, "nobody comes back to a service that ends"


def test_a_gate_that_keeps_no_connections_admits_as_before() -> None:
    gate = RequestGate()
    gate.keep_alive = False
    answered(gate, admitted(gate), 200)
    assert (gate.accepting, gate.finished, gate.refused) == (True, 1, 0)


def test_what_is_in_flight_when_the_gate_closes_finishes_as_ever() -> None:
    gate = RequestGate()
    request = admitted(gate)
    gate.close()
    assert not gate.idle
    answered(gate, request, 200)
    assert gate.idle
    assert (gate.finished, gate.refused, gate.cut) == (1, 0, [])


def test_a_request_whose_last_bytes_are_on_their_way_is_in_flight_but_no_longer_unanswered() -> None:
    gate = RequestGate()
    request = admitted(gate)
    admitted(gate)
    gate.reserve()
    request.answered = True
    assert (gate.active, gate.unanswered, gate.idle) == (3, 2, False)


# -- reservations


def test_a_reservation_counts_as_in_flight_until_its_request_comes() -> None:
    gate = RequestGate()
    reservation = gate.reserve()
    assert reservation is not None
    assert (gate.active, gate.idle) == (1, False)
    assert gate.admit("GET", "/", None, 0.0, reservation) is not None
    assert (gate.active, gate.waiting) == (1, 0)


def test_a_promised_request_is_admitted_after_the_gate_closed() -> None:
    gate = RequestGate()
    reservation = gate.reserve()
    gate.close()
    assert not gate.idle
    request = gate.admit("GET", "/", None, 0.0, reservation)
    assert request is not None
    answered(gate, request, 200)
    assert (gate.idle, gate.finished, gate.refused) == (True, 1, 0)


def test_a_promise_is_good_for_one_request() -> None:
    gate = RequestGate()
    reservation = gate.reserve()
    gate.close()
    assert gate.admit("GET", "/", None, 0.0, reservation) is not None
    assert gate.admit("GET", "/", None, 0.0, reservation) is None
    assert (gate.refused, gate.waiting) == (1, 0)


def test_a_promise_taken_back_admits_nobody_and_is_taken_back_once() -> None:
    gate = RequestGate()
    reservation = gate.reserve()
    assert reservation is not None
    gate.close()
    gate.release(reservation)
    gate.release(reservation)
    assert (gate.waiting, gate.idle) == (0, True)
    assert gate.admit("GET", "/", None, 0.0, reservation) is None


def test_taking_back_a_claimed_promise_changes_nothing() -> None:
    gate = RequestGate()
    reservation = gate.reserve()
    assert reservation is not None
    gate.admit("GET", "/", None, 0.0, reservation)
    gate.release(reservation)
    assert (gate.waiting, gate.active) == (0, 1)


# -- cut


def test_cancelling_marks_everything_in_flight_oldest_first() -> None:
    gate = RequestGate()
    requests = [admitted(gate, f"/{number}") for number in range(3)]
    assert gate.cancel() == requests
    assert all(request.cancelled for request in requests)
    assert not gate.idle, "a cancelled request still has to unwind"


@pytest.mark.parametrize(
    ("status", "cut"), [(None, True), (500, True), (503, True), (200, False), (201, False), (404, False), (499, False)]
)
def test_a_cancelled_request_was_cut_unless_it_answered_for_itself(status: int | None, cut: bool) -> None:
    gate = RequestGate()
    request = admitted(gate)
    gate.cancel()
    answered(gate, request, status)
    assert request.was_cut is cut
    assert (gate.finished, gate.cut) == ((0, [request]) if cut else (1, []))


class Interrupted:
    """A client that the server has stopped waiting for."""

    interrupted = True

    def when_sent(self, done: Callable[[], None]) -> None:
        done()

    def answer_instead(self, response: bytes) -> bool:
        return False


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_request_whose_client_was_not_waited_for_was_cut_whatever_it_answered(cancelled: bool) -> None:
    gate = RequestGate()
    request = admitted(gate)
    request.client = Interrupted()
    if cancelled:
        gate.cancel()
    answered(gate, request, 200)
    assert (gate.cut, gate.finished) == (([request], 0) if cancelled else ([], 1))


@pytest.mark.parametrize("cancelled", [True, False])
def test_an_answer_broken_off_is_no_answer_once_the_request_was_cancelled(cancelled: bool) -> None:
    gate = RequestGate()
    request = admitted(gate)
    if cancelled:
        gate.cancel()
    request.broken = True
    answered(gate, request, 200)
    assert (gate.cut, gate.finished) == (([request], 0) if cancelled else ([], 1))


def test_work_that_unwound_behind_an_answer_was_cut_though_its_client_has_that_answer() -> None:
    gate = RequestGate()
    request = admitted(gate)
    gate.cancel()
    request.unwound = True
    answered(gate, request, 200)
    assert (gate.cut, gate.finished, request.status) == ([request], 0, 200)


def test_a_request_that_failed_by_itself_was_not_cut() -> None:
    gate = RequestGate()
    answered(gate, admitted(gate), 500)
    answered(gate, admitted(gate), None)
    assert (gate.finished, gate.cut) == (2, [])


def test_a_request_given_up_is_cut_once_whatever_becomes_of_it() -> None:
    gate = RequestGate()
    request = admitted(gate)
    gate.cancel()
    assert gate.give_up() == [request]
    assert gate.cut == [request]
    answered(gate, request, 200)
    assert (gate.cut, gate.finished, gate.idle) == ([request], 0, True)


def test_a_promised_request_that_came_after_the_cancellation_and_overstays_is_counted_once() -> None:
    gate = RequestGate()
    reservation = gate.reserve()
    gate.close()
    gate.cancel()
    request = gate.admit("GET", "/work", None, 0.0, reservation)
    assert request is not None
    gate.give_up()
    answered(gate, request, 200)
    assert (gate.cut, gate.finished) == ([request], 0)


def test_giving_up_with_nothing_in_flight_cuts_nobody() -> None:
    gate = RequestGate()
    answered(gate, admitted(gate), 200)
    assert gate.cancel() == []
    assert gate.give_up() == []
    assert gate.cut == []


# -- names that are fit to be printed

HOSTILE = [
    "x\n2026-11-23 05:03:01 INFO  shutdown complete",
    "x\r\nSet-Cookie: a=b",
    "x\x1b[31mred",
    "x\x00",
    "x\x85y",  # next line
    "x\u2028y",  # line separator
    "x\u202etxt.exe",  # turns the rest of the line around
    "x\ud800",  # half a surrogate pair: no encoder takes it
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_request_id_is_replaced_by_a_number_of_our_own(text: str) -> None:
    request = admitted(RequestGate(), given_id=text)
    assert request.request_id == f"r{request.serial}"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_path_is_escaped(text: str) -> None:
    route = admitted(RequestGate(), path=f"/{text}").route
    assert route.isascii()
    assert route.isprintable()
    assert route.startswith("GET /x\\")


@given(st.text(st.characters()), st.text(st.characters()))
def test_nothing_a_client_sends_can_break_a_log_line(method: str, text: str) -> None:
    request = InFlightRequest(method, text, text, 0.0)
    for shown in (request.request_id, request.route):
        assert shown.isprintable()
        assert len(shown.splitlines()) == 1
        shown.encode()


def test_a_request_id_fit_to_be_printed_is_kept() -> None:
    assert LONGEST_ID == 64  # what people read in a line of a log
    longest = "a" * LONGEST_ID
    for given_id in ("trace-1/2:3 {4}", longest):
        assert admitted(RequestGate(), given_id=given_id).request_id == given_id


@pytest.mark.parametrize(
    ("headers", "shown"),
    [
        ([(b"accept", b"*/*"), (b"x-request-id", b"abc"), (b"x-request-id", b"second")], "abc"),
        ([(b"x-request-id", b"a\nb")], None),
        ([(b"x-request-id", "é".encode())], None),
        ([(b"x-request-id", b"")], None),
        ([], None),
    ],
)
def test_an_asgi_requests_id_is_looked_for_in_its_headers(
    headers: list[tuple[bytes, bytes]], shown: str | None
) -> None:
    request = RequestGate().admit("GET", "/", headers, 0.0)
    assert request is not None
    assert request.request_id == (shown or f"r{request.serial}")


@pytest.mark.parametrize("given_id", [None, "", "a" * (LONGEST_ID + 1), "é"])
def test_a_request_without_an_id_or_with_an_unfit_one_gets_a_number(given_id: str | None) -> None:
    gate = RequestGate()
    first, second = admitted(gate, given_id=given_id), admitted(gate, given_id=given_id)
    assert first.request_id == f"r{first.serial}"
    assert first.request_id != second.request_id


def test_a_route_is_shown_as_it_is_where_that_is_safe() -> None:
    assert route_label("GET", "/订单/1") == "GET /订单/1"


# -- whatever happens, in whatever order


class AnyTraffic(RuleBasedStateMachine):
    """Requests and promises come and go in any order; the gate's books are compared with ours."""

    requests: Bundle[InFlightRequest] = Bundle("requests")
    reservations: Bundle[Reservation] = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.gate = RequestGate()
        self.alive: set[InFlightRequest] = set()
        self.promised: set[Reservation] = set()
        self.seen = 0

    @rule(target=requests)
    def arrives(self) -> Any:
        request = self.gate.admit("GET", "/", None, 0.0)
        assert (request is None) == (not self.gate.accepting)
        return self._entered(request)

    @rule(target=reservations)
    def waits(self) -> Any:
        reservation = self.gate.reserve()
        assert (reservation is None) == (not self.gate.accepting)
        if reservation is None:
            return multiple()
        self.promised.add(reservation)
        return reservation

    @rule(target=requests, reservation=reservations)
    def claims(self, reservation: Reservation) -> Any:
        promised = reservation in self.promised
        request = self.gate.admit("GET", "/", None, 0.0, reservation)
        assert (request is None) == (not promised and not self.gate.accepting)
        self.promised.discard(reservation)
        return self._entered(request)

    @rule(reservation=reservations)
    def leaves(self, reservation: Reservation) -> None:
        self.promised.discard(reservation)
        self.gate.release(reservation)

    @rule(request=consumes(requests), status=st.sampled_from([None, 200, 404, 500, 503]))
    def ends(self, request: InFlightRequest, status: int | None) -> None:
        self.alive.remove(request)
        answered(self.gate, request, status)

    @rule()
    def closes(self) -> None:
        self.gate.close()

    @rule()
    def is_cancelled(self) -> None:
        assert set(self.gate.cancel()) == self.alive

    @precondition(lambda self: not self.gate.cut)
    @rule()
    def is_given_up(self) -> None:
        assert set(self.gate.give_up()) == self.alive

    @invariant()
    def the_books_are_true(self) -> None:
        gate = self.gate
        assert set(gate.in_flight) == self.alive
        assert gate.active == len(self.alive) + len(self.promised)
        assert gate.idle == (gate.active == 0)
        assert len(gate.cut) == len(set(gate.cut))
        assert len(self.alive - set(gate.cut)) + gate.finished + gate.refused + len(gate.cut) == self.seen

    def _entered(self, request: InFlightRequest | None) -> Any:
        self.seen += 1
        if request is None:
            return multiple()
        self.alive.add(request)
        return request


TestAnyTraffic = AnyTraffic.TestCase
