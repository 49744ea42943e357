"""What can be seen of a service: the shapes of `/status`, and how the numbers of several processes are added.

`status.schema.json`, beside this module, describes them (JSON Schema, draft 2020-12); a test holds that it does. Times
are in seconds. A connection, a pool, a request are described as the shutdown's report describes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from pooldrain.leak_rules import LeakRule
from pooldrain.ledger import Holding
from pooldrain.meter import HistogramData
from pooldrain.phases import Phase

# Entries of each list that are shown, the oldest first: a page is for people.
LISTED = 200


class CheckoutStatus(TypedDict):
    """A connection that is checked out."""

    holder: str
    request_id: str | None
    age: float
    call_site: str
    callers: list[str]
    statement: str | None
    in_transaction: bool | None
    rule: str | None
    pool: str


class EngineStatus(TypedDict):
    """One engine's pool, now."""

    name: str
    size: int
    max: int | None
    used: int
    idle: int
    waiting: int
    checkouts: list[CheckoutStatus]


class EngineCounters(TypedDict):
    """What happened in one engine's pool so far."""

    name: str
    opened: int
    closed: int
    timeouts: int
    leaks: dict[str, int]
    wait: HistogramData
    use: HistogramData
    connect: HistogramData


class DurationCounters(TypedDict):
    """How long the requests of one method and status took."""

    method: str
    status: int | None
    seconds: HistogramData


class Counters(TypedDict):
    """What only grows, of one process or of several."""

    finished: int
    refused: int
    cut: int
    reclaimed: int
    abandoned: int
    durations: list[DurationCounters]
    engines: list[EngineCounters]


class RequestStatus(TypedDict):
    """A request in flight."""

    request_id: str
    route: str
    age: float
    status: int | None
    cancelled: bool
    connections: int


class PhaseStatus(TypedDict):
    """A phase that was entered, and how long it lasted so far."""

    phase: str
    seconds: float


class ProcessStatus(TypedDict):
    """One process that serves."""

    pid: int
    seen: float
    uptime: float
    phase: str
    phases: list[PhaseStatus]
    signals: list[str]
    in_flight: int
    waiting: int
    requests: list[RequestStatus]
    engines: list[EngineStatus]
    counters: Counters


class LastShutdown(TypedDict):
    """What the report of a shutdown says in short."""

    outcome: str
    exit_code: int
    signal: str
    seconds: float
    phases: list[PhaseStatus]
    finished: int
    refused: int
    cut: int
    outstanding: int
    reclaimed: int
    abandoned: int


class ServiceStatus(TypedDict):
    """The whole service: what `/status` answers with."""

    service: str
    version: str
    phase: str
    workers: list[ProcessStatus]
    ended: int
    totals: Counters
    last_shutdown: LastShutdown | None


def checkout_status(holding: Holding) -> CheckoutStatus:
    """One outstanding connection, JSON-ready."""
    return {
        "holder": holding.holder,
        "request_id": holding.request_id,
        "age": holding.age,
        "call_site": holding.call_site,
        "callers": list(holding.callers),
        "statement": holding.statement,
        "in_transaction": holding.in_transaction,
        "rule": holding.rule,
        "pool": holding.pool,
    }


def no_counters() -> Counters:
    """Of a process that has not done anything yet."""
    return {
        "finished": 0,
        "refused": 0,
        "cut": 0,
        "reclaimed": 0,
        "abandoned": 0,
        "durations": [],
        "engines": [],
    }


def added(every: Iterable[Counters]) -> Counters:
    """The sums of several processes' numbers."""
    listed = list(every)
    total = no_counters()
    for each in listed:
        for name in ("finished", "refused", "cut", "reclaimed", "abandoned"):
            total[name] += each[name]
    total["engines"] = added_engines(engine for each in listed for engine in each["engines"])
    durations: dict[tuple[str, int | None], DurationCounters] = {}
    for row in (row for each in listed for row in each["durations"]):
        key = (row["method"], row["status"])
        before = durations.get(key)
        seconds = row["seconds"] if before is None else _sum_of(before["seconds"], row["seconds"])
        durations[key] = {"method": row["method"], "status": row["status"], "seconds": seconds}
    total["durations"] = list(durations.values())
    return total


def added_engines(every: Iterable[EngineCounters]) -> list[EngineCounters]:
    """One row for each name."""
    rows: dict[str, EngineCounters] = {}
    for each in every:
        before = rows.get(each["name"])
        rows[each["name"]] = each if before is None else _engines_sum(before, each)
    return list(rows.values())


def _engines_sum(one: EngineCounters, other: EngineCounters) -> EngineCounters:
    return {
        "name": one["name"],
        "opened": one["opened"] + other["opened"],
        "closed": one["closed"] + other["closed"],
        "timeouts": one["timeouts"] + other["timeouts"],
        "leaks": {rule.value: one["leaks"].get(rule, 0) + other["leaks"].get(rule, 0) for rule in LeakRule},
        "wait": _sum_of(one["wait"], other["wait"]),
        "use": _sum_of(one["use"], other["use"]),
        "connect": _sum_of(one["connect"], other["connect"]),
    }


def _sum_of(one: HistogramData, other: HistogramData) -> HistogramData:
    counts = [a + b for a, b in zip(one["counts"], other["counts"], strict=True)]
    return {"counts": counts, "sum": one["sum"] + other["sum"]}


def service_phase(phases: Sequence[str]) -> Phase:
    """The whole service's: READY as long as one process is, else that of the one which is least far."""
    if not phases:
        return Phase.STARTING
    order = list(Phase)
    return Phase.READY if Phase.READY in phases else min(map(Phase, phases), key=order.index)


def last_shutdown(report: dict[str, Any]) -> LastShutdown:
    """A report in short: of a process, or the file's of a service. Raises LookupError or TypeError if it is none."""
    requests, connections = report["requests"], report["connections"]
    return {
        "outcome": str(report["outcome"]),
        "exit_code": int(report["exit_code"]),
        "signal": str(report["signal"]),
        "seconds": float(report["seconds"]),
        "phases": [{"phase": str(each["phase"]), "seconds": float(each["seconds"])} for each in report["phases"]],
        "finished": int(requests["finished"]),
        "refused": int(requests["refused"]),
        "cut": int(requests["cut"]),
        "outstanding": len(report["outstanding"]),
        "reclaimed": int(connections["reclaimed"]),
        "abandoned": int(connections["abandoned"]),
    }
