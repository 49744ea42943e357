"""Judges a transcript by the rules of the shutdown, knowing nothing of the code that wrote it.

It reads JSON only: the transcript of one process or of all workers of a service, and, if given, the report and the
exit code that go with it. `RULES` lists the rules; each is a few lines here and each is broken by a test.

    python -m pooldrain_compare.checker TRANSCRIPT [--report FILE] [--exit-code N]
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Record = Mapping[str, Any]

PHASES = (
    "STARTING",
    "READY",
    "ANNOUNCING",
    "DRAINING",
    "CANCELLING",
    "TEARDOWN",
    "RECLAIMING",
    "DISPOSING",
    "STOPPING",
    "CLOSED",
)
EXIT_CODES = {"drained": 0, "leaked": 5, "cut": 3, "dispose_failed": 4}
LEAK_RULES = ("collected", "unreturned", "overdue", "pinned")  # `threshold` blames nobody, and has an event of its own

# From best to worst; any other code (a crash, a kill) is worse.
_SEVERITY = (0, 5, 3, 4, 2, 1)

# Exit codes of a process that ended before its shutdown was complete: not started, bad configuration, a third signal.
_CUT_SHORT = (1, 2)
_SIGNALLED = 128

_NUMBER = (int, float)
_OPTIONAL_STRING = (str, type(None))
_OPTIONAL_INT = (int, type(None))
_COMMON: dict[str, Any] = {"event": str, "t": _NUMBER, "pid": int}

# Every event, and what it must carry.
VOCABULARY: dict[str, dict[str, Any]] = {
    "pool_opened": {"pool_size": int, "max_overflow": int, "connected": int, "seconds": _NUMBER},
    "engine_adopted": {"pool": str, "driver": str, "pool_class": str, "limits": str},
    "probes": {"answered_by": str, "livez": str, "readyz": str},
    "listening": {"host": str, "port": int, "server": str},
    "signal": {"signal": str, "number": int},
    "signal_ignored": {"signal": str},
    "events_lost": {"events": int},
    "accept_paused": {"error": str},
    "phase": {"phase": str},
    "drain_started": {"in_flight": int},
    "drain_ended": {"complete": bool, "in_flight": int, "refused": int, "seconds": _NUMBER},
    "pool_closing": {"pool_status": dict},
    "not_returned": {"count": int},
    "outstanding": {"number": int, "holding": dict},
    "pool_closed": {"closed": int, "seconds": _NUMBER},
    "pool_abandoned": {"abandoned": int, "seconds": _NUMBER},
    "shutdown_complete": {
        "outcome": str,
        "exit_code": int,
        "signal": str,
        "seconds": _NUMBER,
        **dict.fromkeys(("finished", "refused", "cut", "leaked", "collected"), int),
    },
    "response_broken": {"request": (str, type(None)), "route": str, "body": str},
    "step_failed": {"phase": str, "error": str},
    "background_failed": {"what": str, "error": str, "raised_at": str},
    "pool_exhausted": {"pool_size": int, "overflow": int, "checkedout": int, "waiting": int, "held": list},
    "connections_refused": {"pool_size": int, "overflow": int, "checkedout": int, "reason": str},
    "leak": {"rule": str, "holding": dict},
    "leak_threshold": {"checkedout": int, "threshold": int},
    "leak_returned": {"rule": str, "holding": dict},
    "request_admitted": {"request": str, "route": str, "waited": bool},
    "request_refused": {"route": str},
    "request_finished": {"request": str, "route": str, "status": _OPTIONAL_INT, "seconds": _NUMBER},
    "request_cut": {"request": str, "route": str, "status": _OPTIONAL_INT, "seconds": _NUMBER, "call_site": str},
    "work_cut": {"holding": dict},
    "teardown_abandoned": {"function": str, "seconds": _NUMBER},
    "connection_opened": {},
    "connection_closed": {},
    "checkout": {"holder": str, "request": _OPTIONAL_STRING, "call_site": str},
    "checkin": {"holder": str, "request": _OPTIONAL_STRING, "seconds": _NUMBER},
    "connection_reclaimed": {"holder": str, "request": _OPTIONAL_STRING},
}
_HOLDING = {"holder": str, "request_id": _OPTIONAL_STRING}


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that is broken, and the event that breaks it (its index in the transcript; None for the whole)."""

    rule: str
    index: int | None
    message: str

    def __str__(self) -> str:
        where = "" if self.index is None else f"event {self.index}: "
        return f"{self.rule}: {where}{self.message}"


Found = Iterator[tuple[int | None, str]]


class Story:
    """One process's well-formed events. Places are positions in here; `index` leads back to the transcript."""

    def __init__(self, records: Sequence[tuple[int, Record]], *, cut_short: bool) -> None:
        self.records = [record for _, record in records]
        self.index = [index for index, _ in records]
        self.cut_short = cut_short  # the process ended before its shutdown was complete, as its exit code says
        self._places: dict[str, list[int]] = {}
        self._entered: dict[str, int] = {}
        self._phases: list[str] = []  # by place
        phase = ""
        for place, record in enumerate(self.records):
            self._places.setdefault(record["event"], []).append(place)
            self._phases.append(phase)
            if record["event"] == "phase":
                phase = record["phase"]
                self._entered.setdefault(phase, place)

    def all(self, *names: str, before: int | None = None) -> Iterator[tuple[int, Record]]:
        """The events of these names, those in front of `before`."""
        end = len(self.records) if before is None else before
        for place in heapq.merge(*(self._places.get(name, ()) for name in names)):
            if place >= end:
                return
            yield place, self.records[place]

    def count(self, *names: str, before: int | None = None) -> int:
        """How many there are."""
        end = len(self.records) if before is None else before
        return sum(bisect_left(self._places.get(name, ()), end) for name in names)

    def entered(self, phase: str) -> int:
        """Where a phase begins; the end of the story if it never does."""
        return self._entered.get(phase, len(self.records))

    def phase_at(self, place: int) -> str:
        """The phase in which an event happened; empty before the first."""
        return self._phases[place]

    def failed(self, phase: str) -> bool:
        """Whether the step of this phase raised."""
        return any(record["phase"] == phase for _, record in self.all("step_failed"))

    @property
    def last(self) -> Record | None:
        """The line that ends a complete story."""
        return next((record for _, record in self.all("shutdown_complete")), None)


# --- the rules ----------------------------------------------------------------------------------------------


def _phases(story: Story) -> Found:
    """Phases come in order, each is entered once, none is skipped."""
    expected = 0
    for place, record in story.all("phase"):
        phase = record["phase"]
        if expected < len(PHASES) and phase == PHASES[expected]:
            expected += 1
        else:
            yield place, f"{phase} is entered, {PHASES[expected] if expected < len(PHASES) else 'nothing'} was to come"
            expected = max(expected, PHASES.index(phase) + 1 if phase in PHASES else 0)
    if expected < len(PHASES) and not story.cut_short:
        yield None, f"{PHASES[expected]} was never entered"


def _signals(story: Story) -> Found:
    """Signals are numbered from one, and the first comes before the shutdown does."""
    for number, (place, record) in enumerate(story.all("signal"), 1):
        if record["number"] != number:
            yield place, f"signal number {record['number']} is the {number}. of the transcript"
    if story.entered("ANNOUNCING") < len(story.records) and not story.count(
        "signal", before=story.entered("ANNOUNCING")
    ):
        yield story.entered("ANNOUNCING"), "the shutdown begins without a signal"


def _admission(story: Story) -> Found:
    """No request is admitted once the drain has begun, but one that had arrived before and waited for a thread."""
    began = next((place for place, _ in story.all("drain_started")), story.entered("CANCELLING"))
    for place, record in story.all("request_admitted"):
        if place > began and not record["waited"]:
            yield place, f"request {record['request']} ({record['route']}) is admitted after the drain began"
        if place > story.entered("DISPOSING"):
            yield place, f"request {record['request']} ({record['route']}) is admitted while the pool is disposed"


def _refusal(story: Story) -> Found:
    """No request is refused before the drain."""
    for place, record in story.all("request_refused", before=story.entered("DRAINING")):
        yield place, f"{record['route']} is refused before the drain"


def _requests(story: Story) -> Found:
    """A request is admitted, then ends once; it is cut at most once."""
    seen: Counter[tuple[str, str]] = Counter()
    for place, record in story.all("request_admitted", "request_finished", "request_cut"):
        name, request = record["event"], record["request"]
        seen[name, request] += 1
        if seen[name, request] > seen["request_admitted", request]:
            what = "finished" if name == "request_finished" else "cut"
            yield place, f"request {request} is {what} more often than it was admitted"


def _in_flight(story: Story) -> Found:
    """Every request has ended, or is told to be cut, when the pool is disposed."""
    disposing = story.entered("DISPOSING")
    if disposing == len(story.records):
        return
    left: Counter[str] = Counter()
    place_of: dict[str, int] = {}
    for place, record in story.all("request_admitted", before=disposing):
        left[record["request"]] += 1
        place_of[record["request"]] = place
    ended = Counter(record["request"] for _, record in story.all("request_finished", before=disposing))
    cut = Counter(record["request"] for _, record in story.all("request_cut", before=disposing))
    for request, count in left.items():
        if count > max(ended[request], cut[request]):
            yield place_of[request], f"request {request} is in flight when the pool is disposed, and was not cut"


def _cutting(story: Story) -> Found:
    """Requests, and work outside them, are cut in CANCELLING, and only if the drain was not complete."""
    complete = any(record["complete"] for _, record in story.all("drain_ended"))
    for place, record in story.all("request_cut"):
        if story.phase_at(place) != "CANCELLING":
            yield place, f"request {record['request']} is cut in {story.phase_at(place) or 'no phase'}"
        elif complete:
            yield place, f"request {record['request']} is cut after a complete drain"
    for place, record in story.all("work_cut"):
        if story.phase_at(place) != "CANCELLING":
            yield place, f"work of {_who(_holder(record))} is cut in {story.phase_at(place) or 'no phase'}"
        elif complete:
            yield place, f"work of {_who(_holder(record))} is cut after a complete drain"


def _drain(story: Story) -> Found:
    """The drain begins and ends once, in DRAINING, and says truly whether it is complete."""
    for name in ("drain_started", "drain_ended"):
        places = [place for place, _ in story.all(name)]
        for place in places:
            if story.phase_at(place) != "DRAINING":
                yield place, f"{name} in {story.phase_at(place) or 'no phase'}"
        for place in places[1:]:
            yield place, f"{name} for the second time"
        if not places and story.entered("CANCELLING") < len(story.records) and not story.failed("DRAINING"):
            yield story.entered("CANCELLING"), f"no {name} in DRAINING"
    for place, record in story.all("drain_ended"):
        admitted, finished = (story.count(name, before=place) for name in ("request_admitted", "request_finished"))
        left = record["in_flight"] + record.get("at_work", 0)
        if record["complete"] != (left == 0):
            yield place, f"complete is {record['complete']} with {left} in flight or at work"
        if admitted - finished > record["in_flight"]:
            yield place, f"{admitted - finished} requests are in flight, it says {record['in_flight']}"
        refused = story.count("request_refused", before=place)
        if record["refused"] > refused:
            yield place, f"{refused} requests were refused, it says {record['refused']}"


def _checkouts(story: Story) -> Found:
    """No connection is checked out once the pool is disposed, more than there are, or checked in twice."""
    disposing = story.entered("DISPOSING")
    capacity = sum(record["pool_size"] + record["max_overflow"] for _, record in story.all("pool_opened"))
    if story.count("engine_adopted"):
        capacity = 0  # of an application's own pools nobody tells how many they have
    out: Counter[tuple[str, str | None]] = Counter()
    total = 0
    for place, record, change in _movements(story):
        holder = _holder(record)
        if change < 0 and not out[holder]:
            if record["event"] == "checkin":
                yield place, f"a connection is checked in that {_who(holder)} did not hold"
            continue
        out[holder] += change
        total += change
        if change > 0 and place > disposing:
            yield place, f"{_who(holder)} checks a connection out while the pool is disposed"
        if change > 0 and capacity and total > capacity:
            yield place, f"{total} connections are checked out, the pools have {capacity}"


def _returns(story: Story) -> Found:
    """What is still out when the pool is disposed was named, and what was named was out."""
    disposing = story.entered("DISPOSING")
    named: Counter[tuple[str, str | None]] = Counter()
    out = _out(story, story.entered("RECLAIMING"))
    for place, record in story.all("outstanding", before=disposing):
        holder = _holder(record)
        named[holder] += 1
        if named[holder] > out[holder]:
            yield place, f"{_who(holder)} is named, but holds no connection"
    if disposing < len(story.records) and not story.failed("RECLAIMING"):
        for holder, count in _out(story, disposing).items():
            if count > named[holder]:
                yield disposing, f"{_who(holder)} holds a connection when the pool is disposed, and was not named"


def _reclaiming(story: Story) -> Found:
    """In RECLAIMING the pool is closed and holders are named, in full; only a named connection is reclaimed."""
    expected = number = 0
    named: Counter[tuple[str, str | None]] = Counter()
    for place, record in story.all("pool_closing", "not_returned", "outstanding", "connection_reclaimed", "phase"):
        name = record["event"]
        if name in ("outstanding", "connection_reclaimed"):
            holder = _holder(record)
            named[holder] += 1 if name == "outstanding" else -1
            if named[holder] < 0:
                yield place, f"the connection of {_who(holder)} is reclaimed, but was not named"
        if name == "outstanding":
            number += 1
            if record["number"] != number or number > expected:
                yield place, f"holder #{record['number']} of {expected} is the {number}. that is named"
        elif name != "connection_reclaimed":
            if number < expected:
                yield place, f"{number} of {expected} holders were named"
            expected, number = record["count"] if name == "not_returned" else 0, 0
        if name != "phase" and story.phase_at(place) not in ("RECLAIMING", "DISPOSING"):
            yield place, f"{name} in {story.phase_at(place) or 'no phase'}"
    closings, pools = story.count("pool_closing"), story.count("pool_opened")
    most = pools + story.count("engine_adopted")  # an application's engines may be gone
    all_closed = pools <= closings <= most or story.failed("RECLAIMING")
    if story.entered("DISPOSING") < len(story.records) and not all_closed:
        yield story.entered("DISPOSING"), f"{closings} of {pools} pools were closed to checkouts"


def _connections(story: Story) -> Found:
    """Connections opened = closed (reclaimed ones included) + abandoned."""
    opened = closed = 0
    for place, record in story.all("connection_opened", "connection_closed", "pool_closed", "pool_abandoned"):
        match record["event"]:
            case "connection_opened":
                opened += 1
            case "connection_closed":
                closed += 1
                if closed > opened:
                    yield place, f"{closed} connections are closed, {opened} were opened"
            case _:
                abandoned = record.get("abandoned", 0)
                if opened != closed + abandoned:
                    yield place, f"{opened} opened is not {closed} closed + {abandoned} abandoned"
                if record["event"] == "pool_closed":
                    before = story.count("connection_closed", before=story.entered("DISPOSING"))
                    if record["closed"] != closed - before:
                        yield place, f"{closed - before} idle connections were closed, it says {record['closed']}"
    reclaimed = story.count("connection_reclaimed")
    if reclaimed > closed:
        yield None, f"{reclaimed} connections are reclaimed, but only {closed} closed"


def _disposing(story: Story) -> Found:
    """The pool is closed, or abandoned, once, in DISPOSING."""
    places = [place for place, _ in story.all("pool_closed", "pool_abandoned")]
    for place in places:
        if story.phase_at(place) != "DISPOSING":
            yield place, f"the pool's end is told in {story.phase_at(place) or 'no phase'}"
    for place in places[1:]:
        yield place, "the pool's end is told for the second time"
    if not places and story.entered("STOPPING") < len(story.records) and not story.failed("DISPOSING"):
        yield story.entered("STOPPING"), "nothing was told of the pool's end"


def _leaks(story: Story) -> Found:
    """A leak has a known rule and was checked out; only what was reported comes back as a leak."""
    reported: set[tuple[str, tuple[str, str | None]]] = set()
    holders: set[tuple[str, str | None]] = set()
    for place, record in story.all("checkout", "leak", "leak_returned"):
        holder = _holder(record)
        if record["event"] == "checkout":
            holders.add(holder)
        elif record["event"] == "leak":
            reported.add((record["rule"], holder))
            if record["rule"] not in LEAK_RULES:
                yield place, f"there is no leak rule {record['rule']}"
            elif holder not in holders:
                yield place, f"{_who(holder)} leaks a connection that it never checked out"
        elif (record["rule"], holder) not in reported:
            yield place, f"a connection of {_who(holder)} comes back that was not reported as {record['rule']}"


def _totals(story: Story) -> Found:
    """The last line counts what the events say: seen = finished + refused + cut."""
    for place, record in story.all("shutdown_complete"):
        closed = story.entered("CLOSED")
        admitted, cut = story.count("request_admitted", before=place), story.count("request_cut", before=place)
        refused = story.count("request_refused", before=closed), story.count("request_refused", before=place)
        if record["cut"] != cut:
            yield place, f"{cut} requests were cut, it says {record['cut']}"
        if record["finished"] != admitted - cut:
            yield place, f"{admitted - cut} requests were finished, it says {record['finished']}"
        if record.get("work_cut", 0) != (work := story.count("work_cut", before=place)):
            yield place, f"work was cut {work} times, it says {record.get('work_cut', 0)}"
        if not refused[0] <= record["refused"] <= refused[1]:
            yield place, f"{refused[1]} requests were refused, it says {record['refused']}"
        leaked = story.count("outstanding", before=place)
        if record["leaked"] != leaked:
            yield place, f"{leaked} connections were not returned, it says {record['leaked']}"
        collected = sum(leak["rule"] == "collected" for _, leak in story.all("leak", before=place))
        if record["collected"] != collected:
            yield place, f"{collected} connections were garbage-collected, it says {record['collected']}"
        first = next((signal["signal"] for _, signal in story.all("signal")), None)
        if record["signal"] != first:
            yield place, f"the first signal was {first}, it says {record['signal']}"


def _outcome(story: Story) -> Found:
    """The outcome is the worst of what happened, and the exit code says the same."""
    for place, record in story.all("shutdown_complete"):
        outcome = record["outcome"]
        if outcome not in EXIT_CODES:
            yield place, f"there is no outcome {outcome}"
            continue
        if record["exit_code"] != EXIT_CODES[outcome]:
            yield place, f"{outcome} has exit code {EXIT_CODES[outcome]}, it says {record['exit_code']}"
        possible = _possible_outcomes(story, place)
        if outcome not in possible:
            yield place, f"the outcome is {' or '.join(possible)}, it says {outcome}"


def _possible_outcomes(story: Story, end: int) -> tuple[str, ...]:
    if story.count("pool_abandoned", "step_failed", "background_failed", "teardown_abandoned", before=end):
        return ("dispose_failed",)
    if story.count("request_cut", "work_cut", before=end):
        return ("cut",)
    # An overdue or pinned one may come back. Whether a leak fails the exit was the user's choice, which no event tells.
    leaked = any(leak["rule"] not in ("overdue", "pinned") for _, leak in story.all("leak", before=end)) or any(
        _mapping(record["holding"]).get("rule") is not None for _, record in story.all("outstanding", before=end)
    )
    return ("drained", "leaked") if leaked else ("drained",)


def _ending(story: Story) -> Found:
    """The story ends once, after CLOSED, and nothing of the service's own comes after."""
    places = [place for place, _ in story.all("shutdown_complete")]
    if not places and not story.cut_short:
        yield None, "the shutdown was not completed"
    for place in places[1:]:
        yield place, "the shutdown is completed for the second time"
    for place in places[:1]:
        if place < story.entered("CLOSED"):
            yield place, "the shutdown is completed before CLOSED"
        for later, record in story.all("phase", "drain_started", "drain_ended", "pool_closed", "pool_abandoned"):
            if later > place:
                yield later, f"{record['event']} after the shutdown was completed"


RULES: dict[str, Callable[[Story], Found]] = {
    "phases": _phases,
    "signals": _signals,
    "admission": _admission,
    "refusal": _refusal,
    "requests": _requests,
    "in_flight": _in_flight,
    "cutting": _cutting,
    "drain": _drain,
    "checkouts": _checkouts,
    "returns": _returns,
    "reclaiming": _reclaiming,
    "connections": _connections,
    "disposing": _disposing,
    "leaks": _leaks,
    "totals": _totals,
    "outcome": _outcome,
    "ending": _ending,
}
# And three that are not of a single story: "vocabulary", "report" and "exit_code".


# --- the judgement ------------------------------------------------------------------------------------------


def check(events: Iterable[Any], report: Any = None, exit_code: int | None = None) -> list[Violation]:
    """Every violation of a rule, none for a valid transcript. Never raises, whatever it is given.

    `report`: the report file's JSON; `exit_code`: of the process, negative for the signal that killed it.
    """
    found: list[Violation] = []
    stories: dict[int, list[tuple[int, Record]]] = {}
    for index, event in enumerate(events):
        wrong = _malformed(event)
        if wrong is None:
            stories.setdefault(event["pid"], []).append((index, event))
        else:
            found.append(Violation("vocabulary", index, wrong))
    cut_short = exit_code is not None and (exit_code in _CUT_SHORT or exit_code >= _SIGNALLED or exit_code < 0)
    told = [
        # Of several workers one may fail to start: it is replaced, while the others serve.
        Story(records, cut_short=cut_short or (len(stories) > 1 and not _was_ready(records)))
        for records in stories.values()
    ]
    if not told and not cut_short:
        found.append(Violation("ending", None, "the transcript is empty"))
    for story in told:
        for rule, judge in RULES.items():
            found += _violations(rule, story, judge(story))
    if report is not None:
        found += _report_violations(told, report)
    if exit_code is not None:
        found += [Violation("exit_code", None, wrong) for wrong in _exit_code(told, report, exit_code)]
    return found


def _was_ready(records: Sequence[tuple[int, Record]]) -> bool:
    return any(record.get("phase") == "READY" for _, record in records)


def _violations(rule: str, story: Story, found: Found) -> Iterator[Violation]:
    for place, message in found:
        index = None if place is None else story.index[min(place, len(story.index) - 1)]
        yield Violation(rule, index, message)


def _malformed(event: Any) -> str | None:
    """What is wrong with an event as such."""
    if not isinstance(event, Mapping):
        return "not a JSON object"
    name = event.get("event")
    if not isinstance(name, str) or name not in VOCABULARY:
        return f"there is no event {name!r}"
    holding = _mapping(event.get("holding"))
    parts: list[tuple[dict[str, Any], Record]] = [(_COMMON | VOCABULARY[name], event)]
    if "holding" in VOCABULARY[name]:
        parts.append((_HOLDING, holding))
    for fields, where in parts:
        for key, kind in fields.items():
            if key not in where:
                return f"{name} has no {key}"
            if not isinstance(where[key], kind) or (isinstance(where[key], bool) and kind is not bool):
                return f"{name} has {key} {where[key]!r}"
    return None


# --- the report ---------------------------------------------------------------------------------------------


def _report_violations(stories: Sequence[Story], report: Any) -> Iterator[Violation]:
    if not isinstance(report, Mapping):
        yield Violation("report", None, "not a JSON object")
        return
    workers = report.get("workers")
    if not isinstance(workers, list):  # one process's own
        workers = [report]
    complete = [story for story in stories if story.last is not None]
    if len(workers) != len(complete):
        yield Violation("report", None, f"{len(workers)} reports for {len(complete)} completed transcripts")
    left = list(workers)
    for story in complete:
        judged = [list(_violations("report", story, _report(story, each))) for each in left]
        if judged:  # the reports do not say whose they are: the one that fits best is it
            best = min(range(len(judged)), key=lambda number: len(judged[number]))
            yield from judged[best]
            del left[best]


def _report(story: Story, report: Any) -> Found:
    """The report agrees with the events."""
    if not isinstance(report, Mapping) or story.last is None:
        yield None, "not a JSON object"
        return
    end = next(place for place, _ in story.all("shutdown_complete"))
    closed = story.entered("CLOSED")

    def says(what: str, value: Any, least: int, most: int | None = None) -> Found:
        most = least if most is None else most
        if not _is_int(value) or not least <= value <= most:
            yield None, f"{what} is {value!r}, the events say {least}" + ("" if most == least else f" to {most}")

    def between(*names: str) -> tuple[int, int]:
        # What happens while the report is made may or may not be in it.
        return story.count(*names, before=closed), story.count(*names, before=end)

    for key in ("outcome", "exit_code", "signal"):
        if report.get(key) != story.last[key]:
            yield None, f"{key} is {report.get(key)!r}, the last line says {story.last[key]!r}"
    yield from says("signals", report.get("signals"), *between("signal"))
    if report.get("hurried") and story.count("signal") < 2:
        yield None, "hurried by a single signal"

    requests = _mapping(report.get("requests"))
    for key in ("finished", "refused", "cut"):
        yield from says(f"requests.{key}", requests.get(key), story.last[key])
    parts = [requests.get(key) for key in ("finished", "refused", "cut")]
    if all(_is_int(part) for part in parts):
        yield from says("requests.seen", requests.get("seen"), sum(part for part in parts if part is not None))

    opened, gone = between("connection_opened"), between("connection_closed")
    reclaimed = story.count("connection_reclaimed", before=end)
    connections = _mapping(report.get("connections"))
    yield from says("connections.opened", connections.get("opened"), *opened)
    yield from says("connections.closed", connections.get("closed"), gone[0] - reclaimed, gone[1] - reclaimed)
    yield from says("connections.reclaimed", connections.get("reclaimed"), reclaimed)
    yield from says("connections.abandoned", connections.get("abandoned"), opened[0] - gone[1], opened[1] - gone[0])

    leaks = _mapping(report.get("leaks"))
    for rule in LEAK_RULES:
        found = sum(record["rule"] == rule for _, record in story.all("leak", before=end))
        yield from says(f"leaks.{rule}", leaks.get(rule), found)
    yield from says("leaks.threshold", leaks.get("threshold"), *between("leak_threshold"))

    yield from _lists(story, report)


def _lists(story: Story, report: Record) -> Found:
    """The report's lists, item by item."""
    told: dict[str, list[Any]] = {
        "phases": [record["phase"] for _, record in story.all("phase") if record["phase"] in PHASES[2:-1]],
        "cut_requests": sorted([record["request"], record["route"]] for _, record in story.all("request_cut")),
        "outstanding": [record["holding"] for _, record in story.all("outstanding")],
        "errors": [
            *(f"{record['phase']}: {record['error']}" for _, record in story.all("step_failed")),
            *(
                f"{record['what']}: {record['error']}"
                if record["event"] == "background_failed"
                else f"{record['function']} has not ended within the teardown's time"
                for _, record in story.all("background_failed", "teardown_abandoned")
            ),
        ],
        "cut_work": [record["holding"] for _, record in story.all("work_cut")],
    }
    items = {key: list(value) if isinstance(value := report.get(key), list | tuple) else [] for key in told}
    said: dict[str, list[Any]] = {
        "phases": [_mapping(each).get("phase") for each in items["phases"]],
        "cut_requests": sorted(
            [str(_mapping(each).get("request_id")), str(_mapping(each).get("route"))] for each in items["cut_requests"]
        ),
        "outstanding": items["outstanding"],
        "cut_work": items["cut_work"],
        "errors": items["errors"],
    }
    for key, events in told.items():
        if _text(said[key]) != _text(events):
            yield None, f"{key} is {_text(said[key])}, the events say {_text(events)}"


# --- the exit code ------------------------------------------------------------------------------------------


def _exit_code(stories: Sequence[Story], report: Any, exit_code: int) -> Iterator[str]:
    """The exit code is the worst that the transcript and the report say."""
    said = [story.last["exit_code"] for story in stories if story.last is not None]
    if len(said) == len(stories) and said and exit_code < _SIGNALLED:
        worst = max(said, key=_severity)
        if exit_code != worst:
            yield f"{exit_code}, the transcript says {worst}"
    signalled = [story for story in stories if story.count("signal")]
    killed = [story for story in signalled if story.last is None] or signalled  # others ended in order before
    if exit_code >= _SIGNALLED and any(story.count("signal") < 2 for story in killed):
        yield f"{exit_code} without a second signal"
    told = _mapping(report).get("exit_code")
    if report is not None and told != exit_code and exit_code < _SIGNALLED:
        yield f"{exit_code}, the report says {told!r}"


def _severity(code: int) -> int:
    return _SEVERITY.index(code) if code in _SEVERITY else len(_SEVERITY)


# --- what the rules share -----------------------------------------------------------------------------------


def _movements(story: Story, before: int | None = None) -> Iterator[tuple[int, Record, int]]:
    """Checkouts (+1) and what ends them (-1)."""
    for place, record in story.all("checkout", "checkin", "leak", before=before):
        if record["event"] == "checkout":
            yield place, record, 1
        elif record["event"] == "checkin" or record["rule"] == "collected":
            yield place, record, -1


def _out(story: Story, before: int) -> Counter[tuple[str, str | None]]:
    """Who holds how many connections."""
    out: Counter[tuple[str, str | None]] = Counter()
    for _, record, change in _movements(story, before):
        holder = _holder(record)
        out[holder] = max(0, out[holder] + change)
    return out


def _holder(record: Record) -> tuple[str, str | None]:
    holding = record["holding"] if "holding" in VOCABULARY[record["event"]] else None
    return (record["holder"], record["request"]) if holding is None else (holding["holder"], holding["request_id"])


def _who(holder: tuple[str, str | None]) -> str:
    return holder[0] if holder[1] is None else f"{holder[0]}, request {holder[1]},"


def _mapping(value: Any) -> Record:
    return value if isinstance(value, Mapping) else {}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


# --- the command --------------------------------------------------------------------------------------------


def read_transcript(path: Path) -> list[Any]:
    """The transcript of a file; a line that is no JSON stays a string, for the checker to complain about."""
    events: list[Any] = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            events.append(line)
    return events


def main(argv: Sequence[str] | None = None) -> int:
    """Print every violation, a line each. 0: valid; 1: not."""
    parser = argparse.ArgumentParser(prog="python -m pooldrain_compare.checker", description="Judge a transcript.")
    parser.add_argument("transcript", type=Path)
    parser.add_argument("--report", type=Path, metavar="FILE")
    parser.add_argument("--exit-code", type=int, metavar="N")
    options = parser.parse_args(argv)
    events = read_transcript(options.transcript)
    report = None if options.report is None else json.loads(options.report.read_text("utf-8"))
    violations = check(events, report, options.exit_code)
    for violation in violations:
        sys.stdout.write(f"{violation}\n")
    if not violations:
        sys.stdout.write(f"valid: {len(events)} events\n")
    return 1 if violations else 0


def _leave() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _leave()
