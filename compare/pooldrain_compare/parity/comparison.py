"""Judges observations of scenarios: what is wrong with one, and what is different between two.

The *facts* of an observation are what has to be equal: its exit code, its answers byte by byte, the normal form of
its transcripts, its reports without measurements, what the database saw. Durations are measurements: each has to
be within the scenario's band. Two servers behave identically when all facts are equal.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pooldrain.phases import Phase
from pooldrain_compare.checker import check
from pooldrain_compare.harness.servers import BACKENDS
from pooldrain_compare.normal_form import as_lines, normal_form, status_form
from pooldrain_compare.parity.conductor import AT_SIGNAL, GREATEST, Observation
from pooldrain_compare.parity.scenarios import AT_ONCE, Band

Record = dict[str, Any]
Facts = dict[str, list[str]]  # each fact as lines, ready for a diff

_CONTEXT = 3  # lines of a diff around a difference


@dataclass(frozen=True, slots=True)
class Accepted:
    """A difference that stands, and why a reviewer would let it stand."""

    scenario: str
    servers: tuple[str, ...]  # those that differ from their asyncio partner
    facts: tuple[str, ...]
    reason: str


_THREADS = (
    "Python cannot interrupt a thread that waits for anything but the database or its client. A task can be cancelled "
    "wherever it waits, so the asyncio backend ends such a request; the threaded one can only give it up at the end "
    "of the cancel timeout, closing its connections. Both answer its client 504, count it as cut and exit with 3."
)

ACCEPTED: tuple[Accepted, ...] = (
    Accepted(
        "cut-while-holding-a-connection",
        ("gunicorn", "gunicorn-2-workers", "waitress"),
        ("transcript of worker 1", "report of worker 1", "warnings and errors in the log"),
        _THREADS,
    ),
    *(
        Accepted(
            scenario,
            ("gunicorn", "waitress"),
            ("warnings and errors in the log",),
            "Flask logs an error that nobody has handled itself, with its traceback, and makes a page of it, which "
            "pooldrain replaces; Starlette lets it through, and pooldrain logs it in one line.",
        )
        for scenario in ("escaped-pool-timeout", "escaped-lost-connection")
    ),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that is not equal."""

    fact: str
    ours: list[str]  # of the threaded server
    theirs: list[str]  # of its asyncio partner
    accepted: Accepted | None = None

    def diff(self, our_name: str, their_name: str) -> str:
        """Both sides, readable."""
        lines = difflib.unified_diff(self.theirs, self.ours, their_name, our_name, n=_CONTEXT, lineterm="")
        return "\n".join((f"{self.fact}:", *(f"  {line}" for line in lines)))


def differences(ours: Observation, theirs: Observation, accepted: Sequence[Accepted] = ACCEPTED) -> list[Difference]:
    """Every fact in which a threaded server differs from its asyncio partner."""
    mine, other = facts(ours), facts(theirs)
    return [
        Difference(name, mine.get(name, []), other.get(name, []), _acceptance(ours, name, accepted))
        for name in dict.fromkeys((*other, *mine))
        if mine.get(name) != other.get(name)
    ]


def _acceptance(observation: Observation, fact: str, accepted: Sequence[Accepted]) -> Accepted | None:
    for entry in accepted:
        if entry.scenario == observation.scenario.name and observation.server in entry.servers and fact in entry.facts:
            return entry
    return None


# --- facts ----------------------------------------------------------------------------------------------------


def facts(o: Observation) -> Facts:
    """What has to be equal on all servers with as many workers."""
    found: Facts = {
        "exit code": [str(o.ended.code if o.ended else None)],
        "processes left behind": [str(bool(o.ended and o.ended.stragglers))],
        "played to the end": ["no" if o.trouble else "yes"],
    }
    for name, answer in sorted(o.answers.items()):
        found[f"answer to {name}"] = _json_lines(answer.as_dict())
    for name, answers in sorted(o.received.items()):
        found[f"answers on connection {name}"] = _json_lines(answers)
    for name, ending in sorted(o.endings.items()):
        found[f"end of connection {name}"] = [ending]
    for number, transcript in enumerate(o.transcripts, 1):
        found[f"transcript of worker {number}"] = as_lines(normal_form(transcript))
    whole = o.report or {}
    found["report file"] = ["none" if o.report is None else f"{len(o.reports)} reports"]
    found["report file"] += [f"{key}: {whole[key]}" for key in ("refused_by_master",) if key in whole]
    for number, report in enumerate(o.reports, 1):
        found[f"report of worker {number}"] = _json_lines(_report_facts(report))
    for name, shown in o.shown.items():
        found[f"/status at {name}"] = _json_lines(status_form(shown))
    for name, seen in o.seen.items():
        if name == GREATEST or (name == AT_SIGNAL and not o.scenario.steady_sessions):
            continue  # a measurement
        found[f"database: {name}"] = list(map(str, seen)) if isinstance(seen, list) else [str(seen)]
    found["warnings and errors in the log"] = [f"{what} × {count}" for what, count in sorted(o.complaints.items())]
    found["output beside the log"] = o.stray
    return found


def _report_facts(report: Record) -> Record:
    return {
        **{key: report.get(key) for key in ("outcome", "exit_code", "signal", "signals", "hurried", "leaks", "errors")},
        "phases": [phase["phase"] for phase in report.get("phases", ())],
        "requests": report.get("requests"),
        "cut_requests": sorted(map(_placed, report.get("cut_requests", ())), key=lambda cut: str(cut["request_id"])),
        "cut_work": sorted(map(_placed, report.get("cut_work", ())), key=json.dumps),
        "outstanding": sorted(map(_placed, report.get("outstanding", ())), key=json.dumps),
        "pools": report.get("pools"),
        "connections": report.get("connections"),
    }


def _placed(told: Record) -> Record:
    """Without its age, and with the function of its call site only: the applications are two files."""
    return {**_without(told, "age", "callers"), "call_site": str(told.get("call_site")).rpartition(" in ")[2]}


def _without(record: Mapping[str, Any], *names: str) -> Record:
    return {key: value for key, value in record.items() if key not in names}


def _json_lines(value: Any) -> list[str]:
    return json.dumps(value, indent=1, ensure_ascii=False).splitlines()


# --- what is wrong with one -----------------------------------------------------------------------------------


def failures(o: Observation) -> list[str]:
    """What should have come of the scenario and did not, and what the checker says of each transcript."""
    return [*(text for holds, text in _expectations(o) if not holds), *_violations(o), *_slow(o)]


def _expectations(o: Observation) -> Iterable[tuple[bool, str]]:
    expect = o.scenario.expect
    yield not o.trouble, o.trouble
    code = o.ended.code if o.ended else None
    yield code == expect.exit_code, f"exit code {code}, not {expect.exit_code}"
    yield not (o.ended and o.ended.stragglers), "a process of its group outlived it"
    for name, status in expect.answers.items():
        answer = o.answers.get(name)
        came = "nothing" if answer is None else answer.failure or str(answer.status)
        yield answer is not None and answer.status == status, f"request {name} was answered {came}, not {status}"
    received = {name: tuple(int(a["status"][9:12] or 0) for a in found) for name, found in o.received.items()}
    yield received == dict(expect.received), f"on written connections there came {received}, not {expect.received}"
    last = tuple(sorted(name for name, answer in o.answers.items() if answer.ending == "closed"))
    yield expect.last in (None, last), f"the server closed the connections of {last}, not of {expect.last}"
    for name, answer in o.answers.items():
        yield answer.ending != "reset", f"the connection of request {name} was reset"
    for name, ending in o.endings.items():
        yield ending == "closed", f"connection {name} was not closed in order, but {ending}"
    yield not o.stray, f"output beside the log: {o.stray[:3]}"

    left = o.seen.get("sessions left", 0)
    yield not left, f"{left} sessions left on the database server"
    greatest, most = o.seen.get(GREATEST, 0), o.scenario.most_sessions * BACKENDS[o.server].workers
    yield greatest <= most, f"{greatest} sessions at one time, more than the {most} that the pools may have"
    opened = o.seen.get("sessions opened while disposing", 0)
    yield not opened, f"{opened} sessions opened after disposing had begun, as the database server saw it"
    orders = tuple(str(row).partition(",")[0] for row in o.seen.get("orders", ()))
    yield orders == expect.orders, f"orders in the table: {orders}, not {expect.orders}"

    if expect.outcome is None:
        yield len(o.reports) < len(o.transcripts), "a worker that was ended at once left a report"
        return
    yield bool(o.reports), "no report was written"
    if not o.reports:
        return
    yield len(o.reports) == len(o.transcripts), f"{len(o.reports)} reports of {len(o.transcripts)} workers"
    first = o.reports[0]
    yield first["outcome"] == expect.outcome, f"outcome {first['outcome']}, not {expect.outcome}"
    yield first["hurried"] == expect.hurried, f"hurried: {first['hurried']}"
    leaks: Counter[str] = Counter()
    for report in o.reports:
        leaks.update(report["leaks"])
    found = {rule: count for rule, count in leaks.items() if count}
    yield found == dict(expect.leaks), f"leaks {found}, not {dict(expect.leaks)}"
    counts = [
        ("requests", "refused", expect.refused),
        ("requests", "cut", expect.cut),
        ("connections", "abandoned", expect.abandoned),
    ]
    cut_work = tuple(sorted(str(each["holder"]) for report in o.reports for each in report["cut_work"]))
    yield cut_work == tuple(sorted(expect.cut_work)), f"work cut {cut_work}, not {expect.cut_work}"
    if expect.outstanding is not None:
        outstanding = tuple(sorted(str(each["holder"]) for report in o.reports for each in report["outstanding"]))
        yield outstanding == tuple(sorted(expect.outstanding)), f"outstanding {outstanding}, not {expect.outstanding}"
        counts.append(("connections", "reclaimed", len(expect.outstanding)))
    for group, name, wanted in counts:
        number = sum(int(report[group][name]) for report in o.reports)
        yield number == wanted, f"{group} {name}: {number}, not {wanted}"


def _violations(o: Observation) -> Iterable[str]:
    """What the checker says of the transcript, the report and the exit code together."""
    for violation in check(o.events, report=o.report, exit_code=o.ended.code if o.ended else None):
        yield f"checker: {violation}"


def _slow(o: Observation) -> Iterable[str]:
    expect = o.scenario.expect
    if not o.trouble and o.after_last_act not in expect.after_last_act:
        yield f"it ended {o.after_last_act:.3f} s after the last act, not within {expect.after_last_act}"
    for number, report in enumerate(o.reports):
        for phase in report.get("phases", ()):
            band = phase_band(o, Phase(phase["phase"]), first=number == 0)
            if band is not None and phase["seconds"] not in band:
                yield f"worker {number + 1}: {phase['phase']} took {phase['seconds']:.3f} s, not {band}"


def phase_band(o: Observation, phase: Phase, *, first: bool) -> Band | None:
    """What a phase's duration has to be within; None: the suite itself decides how long it takes."""
    given = o.scenario.expect.phases.get(phase) if first or phase is Phase.ANNOUNCING else None
    if given is not None:
        return given
    return None if phase is Phase.DRAINING else AT_ONCE
