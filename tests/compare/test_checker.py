"""The checker: a valid transcript passes; one that breaks a rule is caught, rule by rule; nothing makes it raise."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pooldrain.policy import PoolPolicy, ShutdownPolicy
from pooldrain_compare import checker
from pooldrain_compare.checker import RULES, VOCABULARY, Violation, check
from pooldrain_compare.fuzz.fuzz_scenario import Action, FuzzScenario
from pooldrain_compare.fuzz.trial import STAGES, play
from pooldrain_compare.harness.servers import EVERY_WAY, Backend
from tests.harness.service import Launcher
from tests.harness.waiting import eventually

Events = list[dict[str, Any]]

PID = 7
LEAKER = {"holder": "GET /leak", "request_id": "r2", "call_site": "app.py:9 in leak", "rule": "unreturned"}


def event(name: str, **given: Any) -> dict[str, Any]:
    """An event with everything it must carry, as unexciting as can be."""
    blank = {int: 0, str: "", bool: False, dict: {}}
    fields = {key: blank.get(kind, 0.0 if kind == (int, float) else None) for key, kind in VOCABULARY[name].items()}
    return {"event": name, **fields, **given, "t": 0.0, "pid": PID}


def phase(name: str) -> dict[str, Any]:
    return event("phase", phase=name)


def request(name: str, number: int, route: str, **given: Any) -> dict[str, Any]:
    return event(f"request_{name}", request=f"r{number}", route=route, **given)


def held(name: str, number: int, holder: str, **given: Any) -> dict[str, Any]:
    return event(name, request=f"r{number}", holder=holder, **given)


def valid() -> Events:
    """One of everything: a request that finishes, one that leaks, one that is cut, one that is refused."""
    return [
        phase("STARTING"),
        event("connection_opened"),
        event("connection_opened"),
        event("connection_opened"),
        event("pool_opened", pool_size=3, connected=3),
        phase("READY"),
        event("listening", port=8000, server="waitress"),
        request("admitted", 1, "GET /"),
        held("checkout", 1, "GET /"),
        held("checkin", 1, "GET /"),
        request("finished", 1, "GET /", status=200),
        request("admitted", 2, "GET /leak"),
        held("checkout", 2, "GET /leak"),
        event("leak", rule="unreturned", holding=LEAKER),
        request("finished", 2, "GET /leak", status=200),
        event("leak_threshold", checkedout=1, threshold=1),
        request("admitted", 3, "GET /work"),
        held("checkout", 3, "GET /work"),
        event("signal", signal="SIGTERM", number=1),
        phase("ANNOUNCING"),
        phase("DRAINING"),
        event("drain_started", in_flight=1),
        event("request_refused", route="GET /"),
        event("drain_ended", complete=False, in_flight=1, refused=1),
        phase("CANCELLING"),
        held("checkin", 3, "GET /work"),
        event("connection_closed"),
        request("cut", 3, "GET /work", status=503),
        request("finished", 3, "GET /work", status=503),
        phase("TEARDOWN"),
        phase("RECLAIMING"),
        event("pool_closing"),
        event("not_returned", count=1),
        event("outstanding", number=1, holding=LEAKER),
        event("connection_closed"),
        held("checkin", 2, "GET /leak"),
        held("connection_reclaimed", 2, "GET /leak"),
        phase("DISPOSING"),
        event("connection_closed"),
        event("pool_closed", closed=1),
        phase("STOPPING"),
        phase("CLOSED"),
        event(
            "shutdown_complete",
            outcome="cut",
            exit_code=3,
            signal="SIGTERM",
            finished=2,
            refused=1,
            cut=1,
            leaked=1,
        ),
    ]


def report() -> dict[str, Any]:
    """What goes with it."""
    return {
        "outcome": "cut",
        "exit_code": 3,
        "signal": "SIGTERM",
        "signals": 1,
        "hurried": False,
        "phases": [{"phase": name, "seconds": 0.0} for name in checker.PHASES[2:-1]],
        "requests": {"in_flight_at_signal": 1, "finished": 2, "refused": 1, "cut": 1, "seen": 4},
        "cut_requests": [{"request_id": "r3", "route": "GET /work", "age": 1.0, "status": 503}],
        "outstanding": [LEAKER],
        "leaks": {"collected": 0, "unreturned": 1, "overdue": 0, "pinned": 0, "threshold": 1},
        "connections": {"opened": 3, "closed": 2, "reclaimed": 1, "abandoned": 0},
        "errors": [],
    }


def rules(violations: list[Violation]) -> set[str]:
    return {violation.rule for violation in violations}


def place(events: Events, name: str, **given: Any) -> int:
    """Where the first such event is."""
    for index, record in enumerate(events):
        if record["event"] == name and all(record[key] == value for key, value in given.items()):
            return index
    raise LookupError(name)


# -- what is valid


def test_a_valid_transcript_passes_with_its_report_and_exit_code() -> None:
    assert check(valid()) == []
    assert check(valid(), report()) == []
    assert check(valid(), report(), 3) == []


def test_several_workers_may_be_interleaved_and_their_reports_come_in_any_order() -> None:
    idle = [
        record
        for record in valid()
        if record["event"] in ("phase", "signal", "pool_closing", "pool_opened", "drain_started")
    ]
    idle.insert(place(idle, "phase", phase="CANCELLING"), event("drain_ended", complete=True))
    idle.insert(place(idle, "phase", phase="STOPPING"), event("pool_closed"))
    idle.append(event("shutdown_complete", outcome="drained", signal="SIGTERM"))
    for record in idle:
        record["pid"] = PID + 1
    nothing = {**report(), "outcome": "drained", "exit_code": 0, "cut_requests": [], "outstanding": []}
    nothing["requests"] = dict.fromkeys(report()["requests"], 0)
    nothing["leaks"] = dict.fromkeys(report()["leaks"], 0)
    nothing["connections"] = dict.fromkeys(report()["connections"], 0)
    pairs = [record for pair in zip(valid(), idle, strict=False) for record in pair]
    both = [*pairs, *valid()[len(idle) :], *idle[len(valid()) :]]
    assert check(both, {"exit_code": 3, "workers": [nothing, report()]}, 3) == []
    assert rules(check(both, {"exit_code": 3, "workers": [report(), report()]}, 3)) == {"report"}
    assert rules(check(both, {"exit_code": 3, "workers": [report()]}, 3)) == {"report"}
    assert rules(check(both, exit_code=0)) == {"exit_code"}


@pytest.mark.parametrize("code", [1, 2, 130, 143, -9])
def test_a_process_that_was_cut_short_leaves_half_a_story(code: int) -> None:
    until = place(valid(), "drain_started")
    events = [*valid()[:until], event("signal", signal="SIGTERM", number=2)]
    assert check(events, exit_code=code) == []
    assert "ending" in rules(check(events, exit_code=0))
    assert "ending" in rules(check(events))


def test_a_process_that_never_got_as_far_has_nothing_to_tell() -> None:
    assert check([], exit_code=1) == []
    assert rules(check([])) == {"ending"}


SCRIPTS: dict[str, tuple[Action, ...]] = {
    "idle": (),
    "everything": (
        Action("start", ("query",)),
        Action("start", ("hold", "query")),
        Action("start", ("keep",)),
        Action("start", ("collect",)),
        Action("start", ("write",)),
        Action("probe"),
        Action("signal", "SIGTERM"),
        Action("start", ("query",)),
        Action("release", 0),
    ),
    "stuck": (
        Action("start", ("stuck",)),
        Action("start", ("background",)),
        Action("signal", "SIGINT"),
        Action("signal", "SIGINT"),
    ),
    "abandoned": (Action("start", ("keep",)), Action("signal", "SIGTERM"), Action("closing", "hangs")),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_the_shells_tell_is_valid(script: str, stage: Any) -> None:
    scenario = FuzzScenario(
        pool=PoolPolicy(pool_size=2, max_overflow=3), shutdown=ShutdownPolicy(announce_period=1), script=SCRIPTS[script]
    )
    seen = play(stage, scenario)
    assert seen.report is not None
    assert check(seen.transcript, seen.report, seen.report["exit_code"]) == []
    assert len(seen.transcript) > 15


@pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
def test_what_real_services_tell_is_valid(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--pool-size", "2", "--drain-timeout", "0.3")
    for path in ("/db-test", "/db-test-leak", "/db-test-leak?collect=1", "/nowhere"):
        service.get(path)
    endless = service.connect().ask("GET", "/work?ms=60000")
    eventually(lambda: checked_out(service.transcript, "GET /work"), "the endless request holds a connection")
    service.send_signal()
    service.await_event("drain_started")
    assert endless.answer().status == 504
    code = service.ended().code
    assert code == 3
    assert check(service.transcript, service.report, code) == []


def checked_out(events: Events, holder: str) -> bool:
    return any(record["event"] == "checkout" and record["holder"] == holder for record in events)


# -- what is not


def moved(name: str, to: str, **given: Any) -> Callable[[Events], None]:
    """An event that comes before another one instead."""

    def change(events: Events) -> None:
        record = events.pop(place(events, name, **given))
        events.insert(place(events, "phase", phase=to) if to.isupper() else place(events, to), record)

    return change


def without(name: str, **given: Any) -> Callable[[Events], None]:
    def change(events: Events) -> None:
        del events[place(events, name, **given)]

    return change


def twice(name: str, **given: Any) -> Callable[[Events], None]:
    def change(events: Events) -> None:
        found = place(events, name, **given)
        events.insert(found, deepcopy(events[found]))

    return change


def saying(name: str, **other: Any) -> Callable[[Events], None]:
    """An event that says something else."""

    def change(events: Events) -> None:
        events[place(events, name)].update(other)

    return change


def added(where: str, *records: dict[str, Any]) -> Callable[[Events], None]:
    """More events, at the beginning of a phase."""

    def change(events: Events) -> None:
        found = place(events, "phase", phase=where) + 1
        events[found:found] = deepcopy(records)

    return change


def chained(*changes: Callable[[Events], None]) -> Callable[[Events], None]:
    def change(events: Events) -> None:
        for each in changes:
            each(events)

    return change


BROKEN: dict[str, tuple[str, Callable[[Events], None]]] = {
    "a phase is skipped": ("phases", without("phase", phase="CANCELLING")),
    "a phase is entered twice": ("phases", twice("phase", phase="DRAINING")),
    "two phases are swapped": ("phases", moved("phase", "RECLAIMING", phase="DISPOSING")),
    "a phase nobody knows": ("phases", added("READY", phase("NAPPING"))),
    "no first phase": ("phases", without("phase", phase="STARTING")),
    "no last phase": ("phases", without("phase", phase="CLOSED")),
    "a shutdown without a signal": ("signals", without("signal")),
    "signals that are numbered wrongly": ("signals", saying("signal", number=2)),
    "admitted during the drain": ("admission", added("CANCELLING", request("admitted", 9, "GET /late"))),
    "admitted while the pool is disposed": (
        "admission",
        added("STOPPING", request("admitted", 9, "GET /late", waited=True)),
    ),
    "refused before the drain": ("refusal", added("READY", event("request_refused", route="GET /"))),
    "finished twice": ("requests", twice("request_finished")),
    "finished and never admitted": ("requests", added("READY", request("finished", 9, "GET /", status=200))),
    "cut twice": ("requests", twice("request_cut")),
    "in flight when the pool is disposed": ("in_flight", moved("request_finished", "STOPPING", request="r1")),
    "never finished": ("in_flight", without("request_finished", request="r1")),
    "cut too early": ("cutting", moved("request_cut", "DRAINING")),
    "cut too late": ("cutting", moved("request_cut", "STOPPING")),
    "cut after a complete drain": ("cutting", saying("drain_ended", complete=True, in_flight=0)),
    "no beginning of the drain": ("drain", without("drain_started")),
    "two endings of the drain": ("drain", twice("drain_ended")),
    "a drain that begins too early": ("drain", moved("drain_started", "DRAINING")),
    "a drain complete with requests in flight": ("drain", saying("drain_ended", complete=True)),
    "a drain that overlooks a request": ("drain", saying("drain_ended", complete=True, in_flight=0)),
    "a drain that says it refused more": ("drain", saying("drain_ended", refused=2)),
    "checked out while the pool is disposed": ("checkouts", added("STOPPING", held("checkout", 9, "GET /late"))),
    "checked in twice": ("checkouts", twice("checkin")),
    "checked in by somebody else": ("checkouts", added("READY", held("checkin", 9, "GET /"))),
    "more checked out than there are": ("checkouts", added("READY", *[held("checkout", 9, "GET /")] * 4)),
    "kept and not named": (
        "returns",
        chained(without("not_returned"), without("outstanding"), without("checkin", request="r2")),
    ),
    "named without holding one": (
        "returns",
        saying("outstanding", holding={**LEAKER, "holder": "GET /innocent"}),
    ),
    "fewer named than were announced": ("reclaiming", saying("not_returned", count=2)),
    "named in the wrong order": ("reclaiming", saying("outstanding", number=2)),
    "named and not announced": ("reclaiming", without("not_returned")),
    "reclaimed and not named": ("reclaiming", saying("connection_reclaimed", holder="GET /innocent")),
    "a pool that stays open to checkouts": ("reclaiming", without("pool_closing")),
    "reclaimed too early": ("reclaiming", moved("connection_reclaimed", "CANCELLING")),
    "a connection that is never closed": ("connections", without("connection_closed")),
    "a connection that nobody opened": ("connections", without("connection_opened")),
    "a closed connection that is called idle": ("connections", saying("pool_closed", closed=2)),
    "reclaimed but not closed": (
        "connections",
        added("DISPOSING", *[held("connection_reclaimed", 2, "GET /leak")] * 3),
    ),
    "abandoned connections that are not counted": (
        "connections",
        chained(without("pool_closed"), added("DISPOSING", event("pool_abandoned", abandoned=2))),
    ),
    "nothing told of the pool's end": ("disposing", without("pool_closed")),
    "the pool's end told twice": ("disposing", twice("pool_closed")),
    "the pool's end told too early": ("disposing", moved("pool_closed", "DISPOSING")),
    "a leak rule nobody knows": ("leaks", saying("leak", rule="guessed")),
    "a leak of what was never checked out": ("leaks", without("checkout", request="r2")),
    "a leak that comes back unreported": (
        "leaks",
        added("CANCELLING", event("leak_returned", rule="overdue", holding=LEAKER)),
    ),
    "finished requests miscounted": ("totals", saying("shutdown_complete", finished=3)),
    "refused requests miscounted": ("totals", saying("shutdown_complete", refused=0)),
    "cut requests miscounted": ("totals", saying("shutdown_complete", cut=0)),
    "connections not returned miscounted": ("totals", saying("shutdown_complete", leaked=0)),
    "collected connections miscounted": ("totals", saying("shutdown_complete", collected=1)),
    "another signal": ("totals", saying("shutdown_complete", signal="SIGINT")),
    "an outcome nobody knows": ("outcome", saying("shutdown_complete", outcome="fine")),
    "a better outcome": ("outcome", saying("shutdown_complete", outcome="drained", exit_code=0)),
    "a worse outcome": ("outcome", saying("shutdown_complete", outcome="dispose_failed", exit_code=4)),
    "an outcome with another's exit code": ("outcome", saying("shutdown_complete", exit_code=0)),
    "a failed step that is passed over": (
        "outcome",
        added("STOPPING", event("step_failed", phase="STOPPING", error="RuntimeError")),
    ),
    "no ending": ("ending", without("shutdown_complete")),
    "two endings": ("ending", twice("shutdown_complete")),
    "an ending before the end": ("ending", moved("shutdown_complete", "CLOSED")),
    "an event nobody knows": ("vocabulary", saying("listening", event="hearing")),
    "an event without its fields": ("vocabulary", lambda events: events[place(events, "drain_ended")].pop("complete")),
    "a number that is none": ("vocabulary", saying("drain_ended", in_flight="1")),
    "a number that is a truth": ("vocabulary", saying("drain_ended", in_flight=True)),
    "a holder without a name": ("vocabulary", saying("leak", holding={"request_id": "r2"})),
    "an event without a process": ("vocabulary", saying("listening", pid=None)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_transcript_that_breaks_a_rule_is_caught(what: str) -> None:
    rule, change = BROKEN[what]
    events = valid()
    change(events)
    assert rule in rules(check(events))


def test_every_rule_is_broken_by_some_transcript() -> None:
    assert {rule for rule, _ in BROKEN.values()} == {*RULES, "vocabulary"}


def test_a_violation_says_which_event_it_is() -> None:
    events = valid()
    added("CANCELLING", request("admitted", 9, "GET /late"))(events)
    late = place(events, "request_admitted", request="r9")
    [violation] = [violation for violation in check(events) if violation.rule == "admission"]
    assert violation.index == late
    assert str(violation) == f"admission: event {late}: request r9 (GET /late) is admitted after the drain began"


MISREPORTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "outcome": lambda told: told.update(outcome="drained"),
    "exit_code": lambda told: told.update(exit_code=0),
    "signal": lambda told: told.update(signal="SIGINT"),
    "signals": lambda told: told.update(signals=2),
    "hurried": lambda told: told.update(hurried=True),
    "a phase too few": lambda told: told["phases"].pop(),
    "finished": lambda told: told["requests"].update(finished=1),
    "refused": lambda told: told["requests"].update(refused=2),
    "cut": lambda told: told["requests"].update(cut=0),
    "seen": lambda told: told["requests"].update(seen=5),
    "no requests": lambda told: told.pop("requests"),
    "another request was cut": lambda told: told["cut_requests"][0].update(request_id="r1"),
    "none was cut": lambda told: told["cut_requests"].clear(),
    "another holder": lambda told: told.update(outstanding=[{**LEAKER, "holder": "GET /innocent"}]),
    "no holder": lambda told: told.update(outstanding=[]),
    "leaks": lambda told: told["leaks"].update(unreturned=0),
    "threshold": lambda told: told["leaks"].update(threshold=0),
    "opened": lambda told: told["connections"].update(opened=4),
    "closed": lambda told: told["connections"].update(closed=3),
    "reclaimed": lambda told: told["connections"].update(reclaimed=0),
    "abandoned": lambda told: told["connections"].update(abandoned=1),
    "errors": lambda told: told.update(errors=["STOPPING: RuntimeError"]),
}


@pytest.mark.parametrize("what", MISREPORTED)
def test_a_report_that_disagrees_with_the_events_is_caught(what: str) -> None:
    told = report()
    MISREPORTED[what](told)
    assert rules(check(valid(), told)) == {"report"}


@pytest.mark.parametrize("code", [0, 1, 2, 4, 5, 130, -15])
def test_an_exit_code_that_disagrees_is_caught(code: int) -> None:
    assert "exit_code" in rules(check(valid(), report(), code))


# -- whatever it is given

_values = st.one_of(st.none(), st.booleans(), st.integers(-1, 3), st.just("r1"), st.text(max_size=3), st.just(LEAKER))


def _changed(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {**event(name), **fields}


_events = st.builds(
    _changed,
    st.sampled_from(sorted(VOCABULARY)),
    st.dictionaries(st.sampled_from(["request", "holder", "holding", "phase", "pid", "complete", "count"]), _values),
)
_json = st.recursive(_values, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner))


@settings(derandomize=True, deadline=None)  # the same examples every time: a campaign is for finding more
@given(st.lists(_events | _json, max_size=12), _json | st.just(report()), st.none() | st.integers(-20, 150))
def test_it_never_raises(events: list[Any], told: Any, code: int | None) -> None:
    for violation in check(events, told, code):
        assert str(violation)
        assert violation.index is None or 0 <= violation.index < len(events)


@settings(derandomize=True, deadline=None)  # the same examples every time: a campaign is for finding more
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_it_never_raises_for_a_shuffled_story(random: Any, changes: int) -> None:
    events = valid()
    for _ in range(changes):
        index = random.randrange(len(events))
        record = events.pop(index)
        if random.random() < 0.7:
            events.insert(random.randrange(len(events) + 1), record)
    check(events, report(), 3)


@settings(derandomize=True, deadline=None)  # the same examples every time: a campaign is for finding more
@given(st.dictionaries(st.sampled_from(sorted(report())), _json))
def test_it_never_raises_for_a_strange_report(changed: dict[str, Any]) -> None:
    check(valid(), {**report(), **changed})


# -- the command


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transcript, told = tmp_path / "transcript.jsonl", tmp_path / "report.json"
    transcript.write_text("".join(json.dumps(record) + "\n" for record in valid()), encoding="utf-8")
    told.write_text(json.dumps(report()), encoding="utf-8")
    assert checker.main([str(transcript), "--report", str(told), "--exit-code", "3"]) == 0
    assert capsys.readouterr().out == f"valid: {len(valid())} events\n"
    assert checker.main([str(transcript), "--exit-code", "0"]) == 1
    assert capsys.readouterr().out == "exit_code: 0, the transcript says 3\n"
    transcript.write_text("nonsense\n", encoding="utf-8")
    assert checker.main([str(transcript)]) == 1
    assert capsys.readouterr().out == "vocabulary: event 0: not a JSON object\nending: the transcript is empty\n"
