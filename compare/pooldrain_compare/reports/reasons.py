"""Why a baseline is better, where it is: rules over what was measured, and the words of each, without a number."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from pooldrain_compare.bench.checkouts import MEMORY
from pooldrain_compare.bench.gates import CALL, EMPTY, SERVED
from pooldrain_compare.bench.throughput import NOTHING
from pooldrain_compare.reports.evidence import Duel, Evidence
from pooldrain_compare.reports.sentences import Sentence

LEDGER = Sentence(
    "the ledger is Python, too: it walks its caller's frames, asks for the running task and books both under a lock"
)
LOOP = Sentence("the gate is one coroutine more for each request, which only a request that does nothing shows")

# Connections of which the database server's processes end before the next ones are closed.
FEW = 10


@dataclass(frozen=True, slots=True)
class Reason:
    """One of them, and whether it is that of a comparison."""

    text: Sentence
    fits: Callable[[Evidence, Duel], bool]


def reason(evidence: Evidence, duel: Duel) -> Sentence | None:
    """Why the baseline is better; None if no reason is known."""
    return next((each.text for each in _REASONS if each.fits(evidence, duel)), None)


def unexplained(evidence: Evidence, duel: Duel) -> bool:
    """Whether the baseline is better without a known reason."""
    return duel.lost and reason(evidence, duel) is None


def requests_lost(evidence: Evidence, duel: Duel) -> float:
    """How many requests the baseline lost in that shutdown (median); none elsewhere."""
    lost = evidence.measurements("shutdown", "lost", case=duel.theirs.case, system=duel.theirs.system)
    return statistics.median(lost[0].samples) if duel.benchmark == "shutdown" and lost else 0.0


def _loses_requests(evidence: Evidence, duel: Duel) -> bool:
    return requests_lost(evidence, duel) > 0


def _shuts_down(_: Evidence, duel: Duel) -> bool:
    return duel.benchmark == "shutdown"


def _is_the_gate(_: Evidence, duel: Duel) -> bool:
    return duel.ours.case in (EMPTY, CALL, SERVED)


def _remembers(_: Evidence, duel: Duel) -> bool:
    return duel.ours.case == MEMORY


def _checks_out(_: Evidence, duel: Duel) -> bool:
    return duel.benchmark == "overhead" and duel.ours.metric == "time" and duel.partners


def _closes_many(_: Evidence, duel: Duel) -> bool:
    return duel.ours.metric == "dispose" and (duel.ours.x or 0) > FEW


def _has_no_sqlalchemy(_: Evidence, duel: Duel) -> bool:
    return duel.theirs.system.startswith(("psycopg-pool", "asyncpg"))


def _is_another_memory(_: Evidence, duel: Duel) -> bool:
    return duel.benchmark == "throughput" and duel.ours.metric == "memory"


def _is_granian(_: Evidence, duel: Duel) -> bool:
    return duel.benchmark == "throughput" and duel.theirs.system.startswith("granian")


def _lets_some_wait(evidence: Evidence, duel: Duel) -> bool:
    """Whether the baseline has the lower median, and the higher p99."""
    if duel.ours.metric not in ("p50", "p95"):
        return False
    slowest = [
        each
        for each in evidence.duels("throughput", "p99", duel.ours.case)
        if (each.ours.system, each.theirs.system, each.ours.x) == (duel.ours.system, duel.theirs.system, duel.ours.x)
    ]
    return any(each.lead < 1 for each in slowest)


def _is_nothing_on_a_loop(_: Evidence, duel: Duel) -> bool:
    return duel.ours.system == "pooldrain-uvicorn" and duel.ours.case == NOTHING and duel.partners


def _is_waitress(_: Evidence, duel: Duel) -> bool:
    return duel.benchmark == "throughput" and duel.ours.system == "pooldrain-waitress" and duel.partners


_REASONS = (
    Reason(Sentence("it waits for nobody: what it has begun is lost with it"), _loses_requests),
    Reason(
        Sentence("it ends without closing its pool, without naming a leak, and without a report of how it ended"),
        _shuts_down,
    ),
    Reason(Sentence("this is the price of the gate alone: to admit a request, and to see it to its end"), _is_the_gate),
    Reason(Sentence("who holds a connection, since when and from where, is kept until it is back"), _remembers),
    Reason(LEDGER, _checks_out),
    Reason(
        Sentence(
            "with each connection a process of the database server ends, on the same processors: when they are free "
            "for the rest is chance, and differs from run to run"
        ),
        _closes_many,
    ),
    Reason(Sentence("there is no SQLAlchemy in between, which makes most of the difference"), _has_no_sqlalchemy),
    Reason(
        Sentence("pooldrain's own modules; and, with gunicorn, a master that knows the database's driver"),
        _is_another_memory,
    ),
    Reason(
        Sentence("it lets some clients wait for long, and so serves the others sooner: its slowest are slower"),
        _lets_some_wait,
    ),
    Reason(Sentence("its HTTP is Rust, beside the interpreter and on the other processor"), _is_granian),
    Reason(LOOP, _is_nothing_on_a_loop),
    Reason(
        Sentence(
            "gate, ledger and run slots are more Python for each request, and waitress's parser and channels, which "
            "take most of the time, are the same on both sides"
        ),
        _is_waitress,
    ),
)
