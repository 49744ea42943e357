"""What must hold in every trial, whatever happens to the service, and who breaks it.

A request is lost if its client has written it and got no whole answer. That is allowed in three cases, no others:
its client misbehaved (those are not counted at all), the report lists it as cut (then an operator can look it up), or
somebody sent a third signal, which ends the process at once and says so by its exit code. No fault of the database is
an excuse: a service that cannot reach its database can still say so, and an answer of 5xx is an answer.

An order was acknowledged if its client was answered 200 or 201. Of an order that was answered otherwise its client
knows that it was not stored if the service refused it before it asked the database; else it may be there or not.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pooldrain.demo import Order, parse_order
from pooldrain.problems import POOL_CLOSED, POOL_EXHAUSTED, REFUSED
from pooldrain.runtime.process.watchdog import END_MARGIN
from pooldrain_compare.chaos.trial import Evidence
from pooldrain_compare.checker import check
from pooldrain_compare.harness.http import problem_detail
from pooldrain_compare.harness.load import Exchange, Outcome, order

MARGIN = END_MARGIN
START = 4.0  # seconds until a process that starts on a busy machine hears of an early signal
AT_ONCE = 1.0  # seconds from a third signal to the end
HARD_EXIT = 128  # exit codes from here on are signals

# Of a process that ends while it starts: it could not, or was told to; before it has handlers, by the signal itself.
_NOT_STARTED = (1, -signal.SIGINT, -signal.SIGTERM, HARD_EXIT + signal.SIGINT, HARD_EXIT + signal.SIGTERM)
# Answers that are given before the database is asked for anything.
_NOT_STORED = frozenset(problem_detail(answer.body) for answer in (REFUSED, POOL_CLOSED.before, POOL_EXHAUSTED.before))

Broken = Iterator[str]


def _played(seen: Evidence) -> Broken:
    """The trial could be run to its end."""
    if seen.trouble:
        yield seen.trouble


def _bounded(seen: Evidence) -> Broken:
    """The process ends within the grace period and its margin; at once, if there was a third signal."""
    if seen.ended is None:
        yield "it had to be killed"
        return
    most = seen.plan.grace_period + MARGIN + (START if seen.plan.early else 0.0)
    if seen.seconds > most:
        yield f"it ended {seen.seconds:.3f} s after the first signal, {most:.3f} s were allowed"
    if (
        seen.ended.code >= HARD_EXIT
        and len(seen.signals) == 3
        and (late := seen.ended.at - seen.signals[2][1]) > AT_ONCE
    ):
        yield f"it ended {late:.3f} s after the third signal"


def _exit_code(seen: Evidence) -> Broken:
    """The exit code agrees with the report; there is none only after a third signal, or if it never was ready."""
    if seen.ended is None:
        return
    code = seen.ended.code
    if seen.report is None and not _was_ready(seen):
        if code not in _NOT_STARTED:
            yield f"it did not start, and its exit code is {code}"
        return
    if code < 0 or (code >= HARD_EXIT and len(seen.signals) < 3):
        yield f"exit code {code}"
    told = seen.report.get("exit_code") if isinstance(seen.report, dict) else None
    if seen.report is None and code < HARD_EXIT:
        yield f"exit code {code}, and no report"
    elif seen.report is not None and told != code:
        yield f"exit code {code}, the report says {told}"


def _stored_once(seen: Evidence) -> Broken:
    """Every acknowledged order is in the table exactly once."""
    stored = Counter(identity for identity, _, _ in seen.rows)
    for identity in seen.load.orders(Outcome.ANSWERED):
        if stored[identity] != 1:
            yield f"order {identity} was acknowledged, and is in the table {stored[identity]} times"


def _no_other_orders(seen: Evidence) -> Broken:
    """No order is in the table twice, half-written, or although its client was told that it is not."""
    asked = {e.order: e for e in seen.load.exchanges if e.order is not None}
    stored = Counter(identity for identity, _, _ in seen.rows)
    for identity, item, quantity in seen.rows:
        if stored[identity] > 1:
            yield f"order {identity} is in the table {stored[identity]} times"
        exchange = asked.get(identity)
        if exchange is None:
            yield f"order {identity} is in the table, and nobody has asked for it"
        elif Order(identity, item, quantity) != parse_order(order(identity).body):
            yield f"order {identity} is half-written: {item!r}, {quantity}"
        elif _told_not_stored(exchange):
            yield f"order {identity} is in the table, and its client was told otherwise: {_outcome(exchange)}"


def _told_not_stored(exchange: Exchange) -> bool:
    return exchange.outcome is Outcome.NOT_SENT or exchange.detail in _NOT_STORED


def _none_lost(seen: Evidence) -> Broken:
    """No request is lost, but what the report lists as cut, and what a third signal ends."""
    if seen.ended is not None and seen.ended.code >= HARD_EXIT:
        return
    cut = {request["request_id"] for report in _reports(seen) for request in report.get("cut_requests", ())}
    for exchange in seen.load.lost:
        if exchange.identity not in cut:
            yield f"request {exchange.identity} ({exchange.route}) is lost: {exchange.reason}"


def _no_sessions(seen: Evidence) -> Broken:
    """No session of the service is left on the database server."""
    if seen.sessions_left:
        yield f"{seen.sessions_left} sessions are left on the database server"


def _no_orphans(seen: Evidence) -> Broken:
    """No process of the service outlives it."""
    if seen.ended is not None and seen.ended.stragglers:
        yield "a process of its group outlived it"


def _no_defects(seen: Evidence) -> Broken:
    """The log is JSON line by line, and has no error in it that nobody expects."""
    if seen.ended is not None and seen.ended.code < 0:
        return  # ended by a signal while the interpreter still started, which then says so in its own way
    for line in seen.log:
        try:
            record: Any = json.loads(line)
        except ValueError:
            yield f"output beside the log: {line}"
            continue
        if record.get("event") == "step_failed" or "traceback" in record:
            yield f"{record['message']} {record.get('traceback', '')}".strip()


def _true_story(seen: Evidence) -> Broken:
    """The transcript follows the rules of the shutdown, and report and exit code agree with it."""
    for violation in check(seen.transcript, seen.report, None if seen.ended is None else seen.ended.code):
        yield str(violation)


def _shown_truly(seen: Evidence) -> Broken:
    """Who looks inside sees no number fall, waits for no answer, and is let go at the end."""
    yield from seen.seen_inside


INVARIANTS: dict[str, Callable[[Evidence], Broken]] = {
    "played": _played,
    "bounded": _bounded,
    "exit code": _exit_code,
    "acknowledged orders": _stored_once,
    "no other orders": _no_other_orders,
    "nothing lost": _none_lost,
    "no sessions": _no_sessions,
    "no orphans": _no_orphans,
    "no defects": _no_defects,
    "transcript": _true_story,
    "seen inside": _shown_truly,
}


def broken_invariants(seen: Evidence) -> list[str]:
    """Every broken invariant, with what breaks it; none for a good trial."""
    return [f"{name}: {broken}" for name, invariant in INVARIANTS.items() for broken in invariant(seen)]


def _was_ready(seen: Evidence) -> bool:
    return any(isinstance(event, dict) and event.get("phase") == "READY" for event in seen.transcript)


def _reports(seen: Evidence) -> list[dict[str, Any]]:
    if not isinstance(seen.report, dict):
        return []
    workers = seen.report.get("workers")
    return workers if isinstance(workers, list) else []


def _outcome(exchange: Exchange) -> str:
    return f"{exchange.outcome.value} {exchange.reason or exchange.detail}"
