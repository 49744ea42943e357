"""The transcript's normal form: equal for two backends exactly when they did the same.

It is a list of JSON-ready dicts, one a line of a readable diff. The tables below say what is dropped, renamed or
put into an order of its own, and why that may differ between two backends that do the same; everything else stays.

What is left of the order: a phase's events stay in that phase; a service's own events (`LIFECYCLE`) stay in their
order, and so do those of each request. Several workers, told apart by pid, are one service (`WORKERS` says why).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]

# --- fields -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldRule:
    """One field that is dropped, or of which only `keep(value)` stays. `events`: where; empty for everywhere."""

    name: str
    why: str
    keep: Callable[[Any], Any] | None = None
    events: tuple[str, ...] = ()


def _function(call_site: Any) -> Any:
    """`file:line in function` without the file and the line."""
    return call_site.rpartition(" in ")[2] if isinstance(call_site, str) else call_site


FIELDS = (
    FieldRule("t", "when it happened is a measurement; durations are compared on their own, within bands"),
    FieldRule("seconds", "a duration is a measurement: see t"),
    FieldRule("age", "a duration is a measurement: see t"),
    FieldRule("pid", "the kernel's choice; it tells workers apart"),
    FieldRule("port", "the kernel's choice", events=("listening",)),
    FieldRule("server", "the servers are what is compared", events=("listening",)),
    FieldRule("pool_class", "each colour of engine has a class of its own", events=("engine_adopted",)),
    FieldRule("database", "each side may have a database of its own", events=("pool_opened",)),
    FieldRule("request", "ids count requests in the order of their arrival: see ORDER, concurrent requests"),
    FieldRule("request_id", "the same"),
    FieldRule("number", "connections are named in the order of their checkout: see request", events=("outstanding",)),
    FieldRule("call_site", "the two applications are two files: the function stays, the file and line go", _function),
    FieldRule("callers", "between a handler and its server lies a framework, another one on each side"),
    FieldRule("held", "it names holders with their ages and their lines: see call_site", events=("pool_exhausted",)),
    FieldRule("waiting", "who still waits when one gives up is a matter of moments", events=("pool_exhausted",)),
    FieldRule("reason", "each driver has words of its own", events=("connections_refused",)),
    FieldRule("checkedout", "which of two that are cancelled lets go first is chance", events=("leak_threshold",)),
    FieldRule("raised_at", "the two backends are two programs: see call_site", events=("background_failed",)),
    FieldRule("waited", "a request may have to wait for a thread; a loop starts each one at once"),
)

# A signal that hurries: a master passes SIGINT and SIGTERM on to its workers as SIGQUIT.
_HURRYING = "the hurrying one"

# --- order --------------------------------------------------------------------------------------------------

ORDER = {
    "concurrent requests": (
        "requests run at the same time, and which of two does something first is chance, with threads as with tasks: "
        "each keeps the order of its own events, and they are sorted by the id their client gave and by what happened"
    ),
    "other holders": (
        "background tasks share their holder's name, so that their events cannot be told apart: sorted within a phase"
    ),
    "connections opened and closed": (
        "no event says which checkout opened a connection, and concurrent ones do so in any order: counted by phase"
    ),
    "cut requests": (
        "what a request does after it was cut happens beside the end of the process, and may come too late to be "
        "told: dropped, but for what the service does to its connection"
    ),
    "refusals": (
        "a refusal is the same from the drain to the end, and which step a client's packet meets is up to the network: "
        "counted by route from DRAINING on; an earlier one stays where it is"
    ),
}
WORKERS = (
    "which worker gets a request is the kernel's choice: with several workers their requests are put together, their "
    "counts are added, and the worst outcome counts; each event of the service says how many workers had it"
)

# The service's own events, in the order of its life; all others belong to a request or to another holder.
LIFECYCLE = (
    "phase",
    "pool_opened",
    "listening",
    "signal",
    "signal_ignored",
    "accept_paused",
    "drain_started",
    "drain_ended",
    "pool_closing",
    "not_returned",
    "pool_closed",
    "pool_abandoned",
    "step_failed",
    "background_failed",
    "pool_exhausted",
    "connections_refused",
    "shutdown_complete",
)
_COUNTED = ("connection_opened", "connection_closed")
_CUT = "request_cut"
_AFTER_CUT = ("checkout", "checkin", "leak", "leak_returned", "request_finished")
_REFUSED = "request_refused"
_DRAINING = "DRAINING"

# Our own ids; a client's may look alike, and is then renamed as well.
_OWN_ID = re.compile(r"r\d+")

# From best to worst, as a master of several workers sees them.
_OUTCOMES = ("drained", "leaked", "cut", "dispose_failed")
_EXIT_CODES = (0, 5, 3, 4, 2, 1)


@dataclass(slots=True)
class _Segment:
    """What happened during one phase."""

    service: dict[Any, list[Record]] = field(default_factory=dict)  # by pid
    requests: dict[tuple[Any, str], list[Record]] = field(default_factory=dict)  # by pid and id
    holders: dict[str, list[Record]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def normal_form(events: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The normal form of a transcript: of one process, or of all workers of one service."""
    records = [dict(event) for event in events]
    workers = list(dict.fromkeys(record.get("pid") for record in records))
    segments, refused = _segments(records)
    names = _request_names(segments)
    form: list[Record] = [{"event": "transcript", "workers": len(workers)}]
    for key in sorted(segments):
        form += _segment_form(segments[key], names, len(workers))
    form += [{"event": _REFUSED, "route": route, "count": count} for route, count in sorted(refused.items())]
    return form


# Of `/status`: the ones of transcripts and, as there, what is a measurement or the kernel's choice.
STATUS_FIELDS = {"pid", "seen", "uptime", "seconds", "age", "request_id", "callers", "service", "version"}


def status_form(shown: Any) -> Any:
    """The same for `/status`: of a histogram stays how many were counted, of a list that they are the same ones."""
    if isinstance(shown, Mapping):
        if set(shown) == {"counts", "sum"}:
            return sum(shown["counts"])
        form = {key: status_form(value) for key, value in shown.items() if key not in STATUS_FIELDS}
        # Each method and status of requests has a histogram under a name that is a measurement's elsewhere.
        counted = {"count": status_form(shown["seconds"])} if isinstance(shown.get("seconds"), Mapping) else {}
        return {**form, **counted, **({"call_site": _function(shown["call_site"])} if "call_site" in shown else {})}
    if isinstance(shown, list):
        return sorted(map(status_form, shown), key=lambda each: json.dumps(each, sort_keys=True))
    return shown


def as_lines(form: Iterable[Mapping[str, Any]]) -> list[str]:
    """A normal form as text, a line each, to be compared by a diff."""
    return [_text({"event": record.get("event"), **dict(sorted(record.items()))}, sort=False) for record in form]


def _segments(records: Sequence[Record]) -> tuple[dict[tuple[int, str], _Segment], dict[str, int]]:
    """The events by phase, and the refusals from the drain on by route.

    A phase is its name and how many came before it: one that is entered twice, or too early, shows.
    """
    segments: dict[tuple[int, str], _Segment] = {}
    refused: dict[str, int] = {}
    at: dict[Any, tuple[int, str]] = {}
    draining: set[Any] = set()
    cut: set[tuple[Any, str | None]] = set()
    for record in records:
        pid, name = record.get("pid"), str(record.get("event"))
        if name == "phase":
            phase = str(record.get("phase"))
            at[pid] = (at.get(pid, (0, ""))[0] + 1, phase)
            if phase == _DRAINING:
                draining.add(pid)
        if name == _REFUSED and pid in draining:
            route = str(record.get("route"))
            refused[route] = refused.get(route, 0) + 1
            continue
        request = (pid, _request_of(record))
        if name == _CUT:
            cut.add(request)
        elif name in _AFTER_CUT and request in cut:
            continue
        segment = segments.setdefault(at.get(pid, (0, "")), _Segment())
        _file(segment, pid, name, record)
    return segments, refused


def _file(segment: _Segment, pid: Any, name: str, record: Record) -> None:
    request = _request_of(record)
    if name in LIFECYCLE:
        segment.service.setdefault(pid, []).append(_bare(record))
    elif name in _COUNTED:
        segment.counts[name] = segment.counts.get(name, 0) + 1
    elif request is not None:
        segment.requests.setdefault((pid, request), []).append(_bare(record))
    else:
        bare = _bare(record)
        segment.holders.setdefault(str(bare.get("holder", "")), []).append(bare)


def _request_of(record: Record) -> str | None:
    holding = record.get("holding")
    request = holding.get("request_id") if isinstance(holding, dict) else record.get("request")
    return None if request is None else str(request)


def _bare(record: Record) -> Record:
    """The record without what may differ."""
    name = record.get("event")
    bare = {key: kept for key, value in record.items() for kept in _kept(name, key, value)}
    if name == "signal" and record.get("number") != 1:
        bare["signal"] = _HURRYING
    return bare


def _kept(event: Any, name: str, value: Any) -> list[Any]:
    """What stays of a field: nothing, or one value."""
    rule = _RULES.get(name)
    if rule is not None and (not rule.events or event in rule.events):
        return [] if rule.keep is None else [rule.keep(value)]
    if isinstance(value, dict):
        return [{key: kept for key, inner in value.items() for kept in _kept(event, str(key), inner)}]
    return [value]


_RULES = {rule.name: rule for rule in FIELDS}


def _request_names(segments: Mapping[tuple[int, str], _Segment]) -> dict[tuple[Any, str], str]:
    """A name for each request that does not depend on when it came."""
    stories: dict[tuple[Any, str], list[Any]] = {}
    for key in sorted(segments):
        for request, records in segments[key].requests.items():
            stories.setdefault(request, []).append([key, records])
    own = [request for request in stories if _OWN_ID.fullmatch(request[1])]
    own.sort(key=lambda request: _text(stories[request]))
    names = {request: f"request {number}" for number, request in enumerate(own, 1)}
    return {request: names.get(request, request[1]) for request in sorted(stories, key=lambda each: each[1])}


def _segment_form(segment: _Segment, names: Mapping[tuple[Any, str], str], workers: int) -> list[Record]:
    form = next(iter(segment.service.values()), []) if workers == 1 else _merged(list(segment.service.values()))
    named = [(names[request], _text(records), records) for request, records in segment.requests.items()]
    for name, _, records in sorted(named, key=lambda each: (_natural(each[0]), each[1])):
        form = form + [{"request": name, **record} for record in records]
    for holder in sorted(segment.holders):
        form = form + sorted(segment.holders[holder], key=_text)
    return form + [{"event": name, "count": segment.counts[name]} for name in sorted(segment.counts)]


def _merged(stories: Sequence[Sequence[Record]]) -> list[Record]:
    """One phase's events of several workers, as if they were one service."""
    alike: dict[tuple[int, int], list[Record]] = {}
    for story in stories:
        seen: dict[int, int] = {}
        for record in story:
            place = LIFECYCLE.index(record["event"])
            seen[place] = seen.get(place, 0) + 1
            alike.setdefault((place, seen[place]), []).append(record)
    return [_sum(alike[key]) for key in sorted(alike)]


def _sum(records: Sequence[Record]) -> Record:
    merged = {key: _combine(key, [record.get(key) for record in records]) for key in records[0]}
    # How many workers hold what was not returned is chance, as which of them got the requests is.
    return merged if merged["event"] == "not_returned" else {**merged, "workers": len(records)}


def _combine(key: str, values: Sequence[Any]) -> Any:
    if key == "outcome":
        return max(values, key=lambda outcome: _rank(_OUTCOMES, outcome))
    if key == "exit_code":
        return max(values, key=lambda code: _rank(_EXIT_CODES, code))
    if all(isinstance(value, bool) for value in values):
        return all(values)
    if key != "number" and all(isinstance(value, int) for value in values):
        return sum(values)
    if all(isinstance(value, dict) for value in values):
        return {inner: _combine(inner, [value.get(inner) for value in values]) for inner in values[0]}
    distinct = sorted({_text(value) for value in values})
    return values[0] if len(distinct) == 1 else [json.loads(text) for text in distinct]


def _rank(order: Sequence[Any], value: Any) -> int:
    return order.index(value) if value in order else len(order)


def _natural(name: str) -> tuple[str, int]:
    """A sort key that puts `request 10` after `request 9`."""
    stem, _, number = name.rpartition(" ")
    return (stem, int(number)) if number.isdecimal() else (name, 0)


def _text(value: Any, *, sort: bool = True) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=sort, default=str)
