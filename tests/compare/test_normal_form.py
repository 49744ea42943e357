"""The normal form: blind to what may differ between two backends that do the same, and to nothing else."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pooldrain import transcript
from pooldrain.ledger import Holding
from pooldrain.transcript import Event
from pooldrain_compare.normal_form import FIELDS, LIFECYCLE, ORDER, WORKERS, as_lines, normal_form

Events = list[dict[str, Any]]


def event(name: str, **given: Any) -> dict[str, Any]:
    return {"event": name, **given, "t": 1.0, "pid": 7}


def phase(name: str) -> dict[str, Any]:
    return event("phase", phase=name)


def request(number: int, status: int = 200, path: str = "/work") -> Events:
    """All events of one request with one connection."""
    route, own = f"GET {path}", f"r{number}"
    return [
        event("request_admitted", request=own, route=route, waited=False),
        event("checkout", holder=route, request=own, call_site=f"/srv/app.py:{number} in Demo.work"),
        event("checkin", holder=route, request=own, seconds=0.1),
        event("request_finished", request=own, route=route, status=status, seconds=0.2),
    ]


def leak(number: int) -> Events:
    """A request that leaks its connection."""
    admitted, checkout, _, finished = request(number, path="/leak")
    return [admitted, checkout, event("leak", rule="unreturned", holding=holding(number)), finished]


def holding(number: int) -> dict[str, Any]:
    return {
        "holder": "GET /leak",
        "request_id": f"r{number}",
        "age": 0.5,
        "call_site": f"/srv/app.py:{number} in Demo.leak",
        "callers": ["/srv/flask.py:7 in dispatch"],
        "statement": "SELECT 1",
        "in_transaction": True,
        "rule": "unreturned",
    }


def service(*requests: Events, leaks: int = 0, refused: tuple[str, ...] = ()) -> Events:
    """A service's whole life, its requests one after the other."""
    leaked = [leak(100 + number) for number in range(leaks)]
    return [
        phase("STARTING"),
        event("connection_opened"),
        event("connection_opened"),
        event("pool_opened", database="sqlite:///a.db", pool_size=2, max_overflow=0, connected=2, seconds=0.1),
        phase("READY"),
        event("listening", host="127.0.0.1", port=8000, server="waitress"),
        *[record for each in (*requests, *leaked) for record in each],
        event("signal", signal="SIGTERM", number=1),
        phase("ANNOUNCING"),
        phase("DRAINING"),
        event("drain_started", in_flight=0),
        *[event("request_refused", route=route) for route in refused],
        event("drain_ended", complete=True, in_flight=0, refused=len(refused), seconds=0.1),
        phase("CANCELLING"),
        phase("TEARDOWN"),
        phase("RECLAIMING"),
        event("pool_closing", pool_status={"pool_size": 2, "checkedout": leaks, "overflow": 0, "idle": 2 - leaks}),
        *([event("not_returned", count=leaks)] if leaks else []),
        *[event("outstanding", number=number + 1, holding=holding(100 + number)) for number in range(leaks)],
        phase("DISPOSING"),
        event("connection_closed"),
        event("connection_closed"),
        event("pool_closed", seconds=0.1, closed=2),
        phase("STOPPING"),
        phase("CLOSED"),
        event(
            "shutdown_complete",
            outcome="drained",
            exit_code=0,
            signal="SIGTERM",
            seconds=0.4,
            finished=len(requests) + leaks,
            refused=len(refused),
            cut=0,
            leaked=leaks,
            collected=0,
        ),
    ]


def as_worker(pid: int, events: Events) -> Events:
    return [{**record, "pid": pid} for record in events]


def interleaved(random: Any, *stories: Events) -> Events:
    """The stories' events, each story in its order, but as they fall."""
    left = [list(story) for story in stories if story]
    events = []
    while left:
        story = random.choice(left)
        events.append(story.pop(0))
        left = [each for each in left if each]
    return events


# -- what may differ


def disguised(events: Events) -> Events:
    """The same as another server would tell it: other times, ids, places, ports."""
    text = json.dumps(events)
    for number in range(200, 0, -1):
        text = text.replace(f'"r{number}"', f'"r{number + 1000}"')
    text = text.replace("/srv/app.py:", "/opt/other/async_app.py:1").replace("/srv/flask.py:7 in dispatch", "/opt/fast")
    told: Events = json.loads(text)
    for record in told:
        record |= {"t": record["t"] + 3.5, "pid": 4711}
        for name in ("seconds", "port", "age"):
            if name in record:
                record[name] = record[name] * 3 + 1
        if "server" in record:
            record["server"] = "uvicorn"
        if "waited" in record:
            record["waited"] = True
    return told


def test_what_is_measured_named_or_numbered_may_differ() -> None:
    events = service(request(1), request(2, 503), request(3, path="/"), leaks=2, refused=("GET /",))
    assert normal_form(disguised(events)) == normal_form(events)
    assert as_lines(normal_form(disguised(events))) == as_lines(normal_form(events))


@settings(derandomize=True, deadline=None)  # the same examples every time: a campaign is for finding more
@given(st.randoms(use_true_random=False))
def test_concurrent_requests_may_come_in_any_order(random: Any) -> None:
    requests = [request(1), request(2), request(3, 500), request(4, path="/"), leak(5)]
    plain = service(*requests)
    ready = plain.index(requests[0][0])
    end = plain.index(requests[-1][-1]) + 1
    mixed = [*plain[:ready], *interleaved(random, *requests), *plain[end:]]
    assert normal_form(mixed) == normal_form(plain)


@pytest.mark.parametrize(
    "where", ["DRAINING", "CANCELLING", "TEARDOWN", "RECLAIMING", "DISPOSING", "STOPPING", "CLOSED"]
)
def test_a_refusal_may_come_at_any_time_from_the_drain_on(where: str) -> None:
    def refusing_in(name: str) -> Events:
        events = service(request(1))
        events.insert(events.index(phase(name)) + 1, event("request_refused", route="GET /"))
        return events

    assert normal_form(refusing_in(where)) == normal_form(refusing_in("DRAINING"))
    assert normal_form(refusing_in(where)) != normal_form(refusing_in("READY"))


def test_what_a_request_does_after_it_was_cut_may_come_or_not() -> None:
    admitted, checkout, checkin, finished = request(1)
    cut = event("request_cut", request="r1", route="GET /work", status=None, seconds=9.0)
    reclaimed = event("connection_reclaimed", request="r1", holder="GET /work")
    silent = service([admitted, checkout, cut, reclaimed])
    for later in ([checkin], [checkin, finished], [finished]):
        assert normal_form(service([admitted, checkout, cut, *later, reclaimed])) == normal_form(silent)
    assert normal_form(service([admitted, checkout, cut])) != normal_form(silent)
    assert normal_form(service([admitted, checkout, checkin, cut, reclaimed])) != normal_form(silent)


def test_a_master_passes_the_second_signal_on_as_another_one() -> None:
    def hurried(name: str, number: int = 2) -> Events:
        events = service(request(1))
        events.insert(events.index(phase("DRAINING")) + 1, event("signal", signal=name, number=number))
        return events

    assert normal_form(hurried("SIGQUIT")) == normal_form(hurried("SIGTERM"))
    assert normal_form(hurried("SIGQUIT", 1)) != normal_form(hurried("SIGTERM", 1))


# -- what may not

CHANGES: dict[str, Callable[[Events], Any]] = {
    "a phase is skipped": lambda events: events.remove(phase("CANCELLING")),
    "a phase is entered twice": lambda events: events.insert(3, phase("STARTING")),
    "another status": lambda events: find(events, "request_finished").update(status=500),
    "another route": lambda events: find(events, "request_admitted").update(route="GET /else"),
    "no answer": lambda events: events.remove(find(events, "request_finished")),
    "one request more": lambda events: events.extend(request(9)),
    "another holder": lambda events: find(events, "checkout").update(holder="GET /else"),
    "another function": lambda events: find(events, "checkout").update(call_site="/srv/app.py:1 in Demo.else"),
    "a connection not returned": lambda events: events.remove(find(events, "checkin")),
    "a connection not closed": lambda events: events.remove(find(events, "connection_closed")),
    "one more connection": lambda events: events.insert(1, event("connection_opened")),
    "a leak not found": lambda events: events.remove(find(events, "leak")),
    "a leak by another rule": lambda events: find(events, "leak").update(rule="overdue"),
    "a leak with another statement": lambda events: find(events, "leak")["holding"].update(statement="SELECT 2"),
    "a leak in no transaction": lambda events: find(events, "leak")["holding"].update(in_transaction=False),
    "a leak without its holder": lambda events: find(events, "outstanding")["holding"].update(request_id=None),
    "another count": lambda events: find(events, "drain_ended").update(in_flight=1),
    "another number in a status": lambda events: find(events, "pool_closing")["pool_status"].update(idle=0),
    "another outcome": lambda events: find(events, "shutdown_complete").update(outcome="leaked"),
    "another exit code": lambda events: find(events, "shutdown_complete").update(exit_code=5),
    "another signal": lambda events: find(events, "signal").update(signal="SIGINT"),
    "one refusal more": lambda events: events.append(event("request_refused", route="GET /")),
    "another refusal": lambda events: find(events, "request_refused").update(route="GET /else"),
    "a step that failed": lambda events: events.append(event("step_failed", phase="STOPPING", error="RuntimeError")),
    "an event that nobody knows": lambda events: events.append(event("surprise")),
    "two events of a request swapped": lambda events: swap(events, "checkout", "request_finished"),
    "two events of the service swapped": lambda events: swap(events, "drain_started", "drain_ended"),
}


def find(events: Events, name: str) -> dict[str, Any]:
    return next(record for record in events if record["event"] == name)


def swap(events: Events, one: str, other: str) -> None:
    first, second = events.index(find(events, one)), events.index(find(events, other))
    events[first], events[second] = events[second], events[first]


@pytest.mark.parametrize("what", CHANGES)
def test_everything_else_shows(what: str) -> None:
    events = service(request(1), request(2), leaks=1, refused=("GET /",))
    changed = deepcopy(events)
    CHANGES[what](changed)
    assert normal_form(changed) != normal_form(events)
    assert as_lines(normal_form(changed)) != as_lines(normal_form(events))


@pytest.mark.parametrize(
    "where", ["ANNOUNCING", "DRAINING", "CANCELLING", "TEARDOWN", "RECLAIMING", "DISPOSING", "CLOSED"]
)
def test_an_event_of_another_phase_shows(where: str) -> None:
    events = service(request(1))
    late = deepcopy(events)
    finished = find(late, "request_finished")
    late.remove(finished)
    late.insert(late.index(phase(where)) + 1, finished)
    assert normal_form(late) != normal_form(events)


def test_a_client_names_its_request() -> None:
    mine, other = request(1), request(1)
    for record in (*mine, *other):
        record["request"] = "mine"
    for record in other:
        record["request"] = "other"
    assert normal_form(service(mine)) != normal_form(service(other))
    assert '"request": "mine"' in "".join(as_lines(normal_form(service(mine))))


# -- several workers


@settings(derandomize=True, deadline=None)  # the same examples every time: a campaign is for finding more
@given(st.randoms(use_true_random=False))
def test_it_does_not_matter_which_worker_had_which_request(random: Any) -> None:
    requests = [request(1), request(2), request(3, 500), request(4, path="/"), leak(5)]
    shares: tuple[list[Events], list[Events]] = ([], [])
    for each in requests:
        random.choice(shares).append(each)
    form = normal_form(interleaved(random, *(as_worker(pid, service(*share)) for pid, share in enumerate(shares))))
    assert form == normal_form([*as_worker(1, service(*requests)), *as_worker(2, service())])
    assert form[0] == {"event": "transcript", "workers": 2}
    assert form != normal_form(service(*requests))


def test_the_same_id_in_two_workers_is_two_requests() -> None:
    form = normal_form([*as_worker(1, service(request(1))), *as_worker(2, service(request(1, 500)))])
    assert {record["request"] for record in form if "request" in record} == {"request 1", "request 2"}


def test_the_counts_of_workers_are_added_and_the_worst_outcome_counts() -> None:
    cut = service(request(1), request(2))
    find(cut, "shutdown_complete").update(outcome="cut", exit_code=3, cut=1)
    find(cut, "drain_ended").update(complete=False, in_flight=1)
    form = normal_form([*as_worker(1, service(request(1))), *as_worker(2, cut)])
    ending = find(form, "shutdown_complete")
    assert {name: ending[name] for name in ("outcome", "exit_code", "finished", "cut", "workers")} == {
        "outcome": "cut",
        "exit_code": 3,
        "finished": 3,
        "cut": 1,
        "workers": 2,
    }
    assert find(form, "drain_ended") == {
        "event": "drain_ended",
        "complete": False,
        "in_flight": 1,
        "refused": 0,
        "workers": 2,
    }
    assert find(form, "signal")["number"] == 1
    assert find(form, "connection_opened")["count"] == 4


@pytest.mark.parametrize("name", ["drain_ended", "pool_closed", "shutdown_complete", "signal"])
def test_an_event_that_one_worker_does_not_have_shows(name: str) -> None:
    one, other = as_worker(1, service(request(1))), as_worker(2, service())
    whole = normal_form([*one, *other])
    other.remove(find(other, name))
    assert normal_form([*one, *other]) != whole


def test_workers_that_disagree_show_both_sides() -> None:
    one, other = as_worker(1, service()), as_worker(2, service())
    find(other, "signal").update(signal="SIGINT")
    assert find(normal_form([*one, *other]), "signal")["signal"] == ["SIGINT", "SIGTERM"]


# -- the tables, which are documentation as well

EVENTS = [value for value in vars(transcript).values() if inspect.isclass(value) and issubclass(value, Event)]


def test_every_rule_is_about_a_field_that_exists_and_says_why() -> None:
    known = {item.name for kind in EVENTS for item in fields(kind)} | {item.name for item in fields(Holding)}
    for rule in FIELDS:
        assert rule.name in known | {"t", "pid"}
        assert len(rule.why) > 5
    assert all(len(why) > 40 for why in (*ORDER.values(), WORKERS))


def test_the_service_s_own_events_are_events() -> None:
    assert set(LIFECYCLE) <= {kind.name for kind in EVENTS}


def test_an_empty_transcript_has_an_empty_form() -> None:
    assert normal_form([]) == [{"event": "transcript", "workers": 0}]


_values = st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=3) | st.just(holding(1))
_events = st.dictionaries(
    st.sampled_from(["request", "holder", "holding", "phase", "complete", "count", "route"]), _values
)


def _told(name: str, given: dict[str, Any], pid: int) -> dict[str, Any]:
    return {**given, "event": name, "pid": pid}


@settings(derandomize=True, deadline=None)  # the same examples every time: a campaign is for finding more
@given(
    st.lists(st.builds(_told, st.sampled_from([kind.name for kind in EVENTS]), _events, st.integers(1, 2)), max_size=12)
)
def test_it_makes_something_of_every_transcript(events: Events) -> None:
    form = normal_form(events)
    assert form == normal_form(deepcopy(events))
    assert len(as_lines(form)) == len(form)
