"""The ledger knows who holds which connection, and calls it a leak by the strongest rule that applies."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from pooldrain.in_flight import CURRENT_REQUEST, Checkout, InFlightRequest
from pooldrain.leak_rules import LeakRule
from pooldrain.ledger import (
    CURRENT_HOLDER,
    HOLDERS_SHOWN,
    STATEMENT_SHOWN,
    CheckoutLedger,
    Holding,
    Leak,
    describe,
    hold_as,
    who_holds,
)
from pooldrain.policy import LeakPolicy
from pooldrain.stacks import StackWalker


@contextmanager
def serving(path: str = "/work", given_id: str | None = "abc") -> Generator[InFlightRequest]:
    """The code inside serves this request."""
    request = InFlightRequest("GET", path, given_id, 0.0)
    token = CURRENT_REQUEST.set(request)
    try:
        yield request
    finally:
        CURRENT_REQUEST.reset(token)


def check_out(ledger: CheckoutLedger, key: object = "record", now: float = 0.0, worker: object = None) -> Checkout:
    return ledger.check_out(key, now, (), worker, object)


def rules(leaks: list[Leak]) -> list[LeakRule]:
    return [leak.rule for leak in leaks]


@pytest.fixture(name="ledger")
def _ledger() -> CheckoutLedger:
    return CheckoutLedger(LeakPolicy(leak_age=10.0))


# -- who holds it


def test_a_checkout_belongs_to_the_request_that_runs(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = check_out(ledger)
    assert (checkout.request, checkout.holder, checkout.request_id) == (request, "GET /work", "abc")
    assert list(request.checkouts) == [checkout]
    assert list(ledger.outstanding.values()) == [checkout]


def test_a_checkout_outside_a_request_says_so(ledger: CheckoutLedger) -> None:
    checkout = check_out(ledger)
    assert (checkout.request, checkout.holder, checkout.request_id) == (None, "outside a request", None)


def test_a_checkout_that_came_back_is_out_of_the_books(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = check_out(ledger)
    assert ledger.check_in("record") is checkout
    assert ledger.outstanding == {}
    assert request.checkouts == {}
    assert ledger.request_ended(request, 1.0) == []


def test_what_was_never_checked_out_cannot_come_back(ledger: CheckoutLedger) -> None:
    assert ledger.check_in("record") is None


def test_one_request_may_hold_several_connections(ledger: CheckoutLedger) -> None:
    with serving() as request:
        first, second = check_out(ledger, "one"), check_out(ledger, "two")
        ledger.check_in("one")
    assert list(request.checkouts) == [second]
    assert [leak.checkout for leak in ledger.request_ended(request, 1.0)] == [second]
    assert first.rule is None


def test_hold_as_names_another_holder_than_the_request(ledger: CheckoutLedger) -> None:
    with serving() as request, hold_as("report mailer"):
        checkout = check_out(ledger)
    assert (checkout.request, checkout.holder, checkout.request_id) == (None, "report mailer", None)
    assert ledger.request_ended(request, 1.0) == []


def test_hold_as_ends_with_its_block_and_nests(ledger: CheckoutLedger) -> None:
    with hold_as("outer"):
        with pytest.raises(ZeroDivisionError), hold_as("inner"):
            raise ZeroDivisionError
        assert check_out(ledger).holder == "outer"
    assert CURRENT_HOLDER.get() is None


def test_a_task_of_an_ended_request_holds_for_itself(ledger: CheckoutLedger) -> None:
    with serving() as request:
        request.ended = True
        checkout = check_out(ledger)
    assert (checkout.request, checkout.holder) == (None, "a background task of GET /work")
    assert request.checkouts == {}


def test_a_forked_child_forgets_its_parents_checkouts_without_judging(ledger: CheckoutLedger) -> None:
    check_out(ledger)
    ledger.forget()
    assert ledger.outstanding == {}
    assert not ledger.leaked


# -- the rule: unreturned


def test_what_a_request_holds_at_its_end_is_a_leak_at_once(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = check_out(ledger, now=2.0)
    assert ledger.request_ended(request, 2.5) == [Leak(LeakRule.UNRETURNED, checkout, 0.5)]
    assert checkout.rule is LeakRule.UNRETURNED
    assert checkout.holder == "GET /work", "it keeps its name"
    assert ledger.counts[LeakRule.UNRETURNED] == 1
    assert ledger.leaked


def test_of_several_pools_each_ledger_judges_its_own_checkouts(ledger: CheckoutLedger) -> None:
    other = CheckoutLedger(LeakPolicy())
    with serving() as request:
        mine, theirs = check_out(ledger, "one"), check_out(other, "two")
    assert [leak.checkout for leak in ledger.request_ended(request, 1.0)] == [mine]
    assert [leak.checkout for leak in other.request_ended(request, 1.0)] == [theirs]


def test_work_that_outlives_its_request_takes_its_connection_over(ledger: CheckoutLedger) -> None:
    task = object()
    with serving() as request:
        kept, leaked = check_out(ledger, "one", worker=task), check_out(ledger, "two")
    leaks = ledger.request_ended(request, 1.0, outlives=lambda checkout: checkout.worker is task)
    assert [leak.checkout for leak in leaks] == [leaked]
    assert (kept.request, kept.holder, kept.rule) == (None, "a background task of GET /work", None)
    assert list(request.checkouts) == [leaked]
    assert ledger.check_in("one") is kept, "it may come back as if nothing had happened"


def test_what_a_background_task_holds_at_its_end_is_a_leak(ledger: CheckoutLedger) -> None:
    task, other = object(), object()
    mine, _ = check_out(ledger, "one", worker=task), check_out(ledger, "two", worker=other)
    assert ledger.worker_ended(task, 3.0) == [Leak(LeakRule.UNRETURNED, mine, 3.0)]
    assert ledger.worker_ended(task, 4.0) == [], "and is told once"


def test_a_background_task_that_returned_what_it_took_leaks_nothing(ledger: CheckoutLedger) -> None:
    task = object()
    check_out(ledger, worker=task)
    ledger.check_in("record")
    assert ledger.worker_ended(task, 3.0) == []
    assert not ledger.leaked


# -- the rule: collected


def test_what_the_garbage_collector_found_is_a_leak(ledger: CheckoutLedger) -> None:
    checkout = check_out(ledger, now=1.0)
    ledger.check_in("record")
    assert ledger.collected(checkout, 4.0) == Leak(LeakRule.COLLECTED, checkout, 3.0)
    assert ledger.counts[LeakRule.COLLECTED] == 1
    assert ledger.leaked


# -- the rule: overdue


@pytest.mark.parametrize(("now", "late"), [(9.999, False), (10.0, True), (11.0, True)])
def test_a_checkout_is_overdue_from_leak_age_on(ledger: CheckoutLedger, now: float, late: bool) -> None:
    check_out(ledger)
    assert rules(ledger.overdue(now)) == ([LeakRule.OVERDUE] if late else [])


def test_an_overdue_checkout_is_told_once(ledger: CheckoutLedger) -> None:
    check_out(ledger)
    assert len(ledger.overdue(10.0)) == 1
    assert ledger.overdue(20.0) == []
    assert ledger.counts[LeakRule.OVERDUE] == 1


def test_an_overdue_checkout_may_come_back_and_is_no_leak_for_certain(ledger: CheckoutLedger) -> None:
    check_out(ledger)
    ledger.overdue(10.0)
    assert not ledger.leaked


def test_the_next_overdue_is_that_of_the_oldest_checkout_not_yet_told(ledger: CheckoutLedger) -> None:
    assert ledger.next_overdue() is None
    check_out(ledger, "young", now=5.0)
    check_out(ledger, "old", now=1.0)
    assert ledger.next_overdue() == 11.0
    ledger.overdue(11.0)
    assert ledger.next_overdue() == 15.0
    ledger.check_in("young")
    assert ledger.next_overdue() is None


def test_without_a_leak_age_nothing_is_ever_overdue() -> None:
    ledger = CheckoutLedger(LeakPolicy())
    check_out(ledger)
    assert ledger.overdue(1e9) == []
    assert ledger.next_overdue() is None


# -- the rule: pinned


def answering(ledger: CheckoutLedger) -> Checkout:
    """A checkout of a request whose answer has begun."""
    with serving() as request:
        checkout = check_out(ledger)
        request.status = 200
    return checkout


def test_a_connection_that_idles_in_a_transaction_while_its_answer_is_sent_is_pinned(ledger: CheckoutLedger) -> None:
    checkout = answering(ledger)
    assert ledger.pinned({checkout}, 1.0) == []
    assert rules(ledger.pinned({checkout}, 2.0)) == [LeakRule.PINNED]
    assert ledger.pinned({checkout}, 3.0) == []
    assert ledger.counts[LeakRule.PINNED] == 1
    assert not ledger.leaked


def test_before_its_answer_has_begun_a_request_may_hold_its_connection(ledger: CheckoutLedger) -> None:
    with serving():
        check_out(ledger)
    assert ledger.answering() == []


def test_who_runs_a_statement_between_two_looks_is_not_pinned(ledger: CheckoutLedger) -> None:
    checkout = answering(ledger)
    for now in (1.0, 2.0, 3.0):
        assert ledger.pinned({checkout}, now) == []
        checkout.runs += 1


def test_who_is_seen_at_work_at_one_of_two_looks_is_not_pinned(ledger: CheckoutLedger) -> None:
    checkout = answering(ledger)
    for now, idle in ((1.0, {checkout}), (2.0, set[Checkout]()), (3.0, {checkout})):
        assert ledger.pinned(idle, now) == []


def test_who_reads_rows_from_the_server_while_it_streams_is_not_pinned(ledger: CheckoutLedger) -> None:
    checkout = answering(ledger)
    checkout.streams = True
    assert [ledger.pinned({checkout}, now) for now in (1.0, 2.0, 3.0)] == [[], [], []]


@pytest.mark.parametrize("leak_age", [10.0])
def test_a_pinned_connection_can_still_become_overdue(leak_age: float) -> None:
    ledger = CheckoutLedger(LeakPolicy(leak_age=leak_age))
    checkout = answering(ledger)
    ledger.pinned({checkout}, 1.0)
    ledger.pinned({checkout}, 2.0)
    assert ledger.next_overdue() == checkout.since + leak_age
    assert rules(ledger.overdue(checkout.since + leak_age)) == [LeakRule.OVERDUE]
    assert checkout.rule is LeakRule.OVERDUE


# -- who holds what


def test_holders_are_told_together_when_alike_the_largest_group_first(ledger: CheckoutLedger) -> None:
    with serving("/few"):
        check_out(ledger, 1, now=1.0)
    with serving("/many"):
        for key in (2, 3):
            check_out(ledger, key, now=float(key))
    told = who_holds(ledger.outstanding.values(), 12.0)
    assert told == ("2 by GET /many, for 10.000 s at most", "1 by GET /few, for 11.000 s at most")


def test_of_many_holders_the_first_are_named(ledger: CheckoutLedger) -> None:
    for number in range(HOLDERS_SHOWN + 2):
        with serving(f"/{number}"):
            check_out(ledger, number)
    told = who_holds(ledger.outstanding.values(), 1.0)
    assert len(told) == HOLDERS_SHOWN + 1
    assert told[-1] == "2 by others"


# -- the rule: threshold


@pytest.mark.parametrize(("checkedout", "flag"), [(0, False), (4, False), (5, True), (6, True)])
def test_the_threshold_itself_is_a_leak_as_the_tutorial_prints_it(checkedout: int, flag: bool) -> None:
    assert CheckoutLedger(LeakPolicy(leak_threshold=5)).at_threshold(checkedout) is flag


def test_the_threshold_is_told_each_time_it_is_reached_anew() -> None:
    ledger = CheckoutLedger(LeakPolicy(leak_threshold=2, leak_age=1.0))
    told = []
    for key, comes in ((1, True), (2, True), (3, True), (3, False), (2, False), (1, False), (1, True), (2, True)):
        if comes:
            ledger.check_out(key, 0.0, (), None, object)
            ledger.overdue(5.0)
        else:
            ledger.check_in(key)
        told.append(ledger.threshold_crossed() is not None)
    assert told == [False, True, False, False, False, False, False, True]
    assert ledger.counts[LeakRule.THRESHOLD] == 2


def test_the_threshold_blames_nobody_and_fails_no_exit() -> None:
    ledger = CheckoutLedger(LeakPolicy(leak_threshold=1, leak_age=1.0))
    ledger.check_out(1, 0.0, (), None, object)
    assert ledger.threshold_crossed() is None, "merely busy"
    ledger.overdue(5.0)
    assert ledger.threshold_crossed() == Leak(LeakRule.THRESHOLD, None, 0.0)
    assert not ledger.leaked


# -- the strongest rule


def test_each_rule_has_a_counter_and_all_begin_at_zero(ledger: CheckoutLedger) -> None:
    assert {rule.value: count for rule, count in ledger.counts.items()} == {
        "collected": 0,
        "unreturned": 0,
        "overdue": 0,
        "pinned": 0,
        "threshold": 0,
    }


def test_a_stronger_rule_replaces_a_weaker_one(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = check_out(ledger)
    seen = [checkout.rule]
    ledger.overdue(10.0)
    seen.append(checkout.rule)
    ledger.request_ended(request, 11.0)
    seen.append(checkout.rule)
    ledger.collected(checkout, 12.0)
    seen.append(checkout.rule)
    assert seen == [None, LeakRule.OVERDUE, LeakRule.UNRETURNED, LeakRule.COLLECTED]
    assert [ledger.counts[rule] for rule in LeakRule] == [1, 1, 1, 0, 0]


def test_a_weaker_rule_does_not_replace_a_stronger_one(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = check_out(ledger)
    ledger.collected(checkout, 1.0)
    ledger.request_ended(request, 2.0)
    assert checkout.rule is LeakRule.COLLECTED


def test_a_leak_by_a_stronger_rule_never_becomes_overdue(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = check_out(ledger)
    ledger.request_ended(request, 1.0)
    assert ledger.overdue(100.0) == []
    assert ledger.next_overdue() is None
    assert checkout.rule is LeakRule.UNRETURNED


def test_an_overdue_checkout_of_a_background_task_becomes_unreturned_at_its_end(ledger: CheckoutLedger) -> None:
    task = object()
    checkout = check_out(ledger, worker=task)
    ledger.overdue(10.0)
    assert rules(ledger.worker_ended(task, 11.0)) == [LeakRule.UNRETURNED]
    assert checkout.rule is LeakRule.UNRETURNED


# -- in words


def outer(ledger: CheckoutLedger) -> Checkout:
    return inner(ledger)


def inner(ledger: CheckoutLedger) -> Checkout:
    stack = StackWalker((), depth=2).capture(sys._getframe())
    return ledger.check_out("record", 1.0, stack, None, object)


def test_a_checkout_is_described_by_who_where_since_when_and_what(ledger: CheckoutLedger) -> None:
    with serving() as request:
        checkout = outer(ledger)
    checkout.statement = "SELECT 1"
    ledger.request_ended(request, 1.5)
    holding = describe(checkout, 2.23456, in_transaction=True)
    line = inner.__code__.co_firstlineno + 1
    assert holding == Holding(
        holder="GET /work",
        request_id="abc",
        age=1.235,
        call_site=f"{__file__}:{line} in inner",
        callers=(f"{__file__}:{outer.__code__.co_firstlineno + 1} in outer",),
        statement="SELECT 1",
        in_transaction=True,
        rule="unreturned",
    )
    assert str(holding) == (
        "held by GET /work, request abc, for 1.235 s, in transaction, "
        f"checked out at {__file__}:{line} in inner, last statement: SELECT 1"
    )


def test_what_is_not_known_is_left_out(ledger: CheckoutLedger) -> None:
    holding = describe(check_out(ledger), 0.5)
    assert str(holding) == "held by outside a request, for 0.500 s"
    assert holding.as_dict() == {
        "holder": "outside a request",
        "request_id": None,
        "age": 0.5,
        "call_site": "",
        "callers": (),
        "statement": None,
        "in_transaction": None,
        "rule": None,
        "pool": "main",
    }
    json.dumps(holding.as_dict())


def test_a_statement_of_several_lines_is_described_in_one(ledger: CheckoutLedger) -> None:
    checkout = check_out(ledger)
    checkout.statement = "\nSELECT 1\n  FROM orders\n"
    assert str(describe(checkout, 0.5)).splitlines() == [
        "held by outside a request, for 0.500 s, last statement: SELECT 1 FROM orders"
    ]


def test_of_a_long_statement_the_beginning_is_shown(ledger: CheckoutLedger) -> None:
    checkout = check_out(ledger)
    checkout.statement = "SELECT " + "x" * 1000
    assert describe(checkout, 0.5).statement == ("SELECT " + "x" * 1000)[:STATEMENT_SHOWN]
