"""The numbers that the project set itself, and how far off it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pooldrain_compare.bench.checkouts import POOL_ONLY
from pooldrain_compare.bench.gates import CALL, EMPTY, QUERIED, SERVED
from pooldrain_compare.reports.evidence import Duel, Evidence
from pooldrain_compare.reports.figures import Figure, added, quantity
from pooldrain_compare.reports.sentences import Name, Sentence


@dataclass(frozen=True, slots=True)
class Target:
    """One of them. `find` yields each case's value with where it was measured; the worst counts.

    `why` is shown while it is missed. It is the only thing in the reports that is written by hand, without a number.
    """

    aim: str
    limit: float
    unit: str
    find: Callable[[Evidence], Iterator[tuple[float, Name]]]
    show: Callable[[float, str], Figure] = quantity
    why: Sentence | None = None

    def compare(self, evidence: Evidence) -> TargetResult:
        """How it stands."""
        found = list(self.find(evidence))
        if not found:
            return TargetResult(self, None, None)
        worst, where = max(found, key=lambda each: each[0])
        return TargetResult(self, worst, where if worst else None)  # zero was everywhere


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What came of a target: its worst value, and where that was."""

    target: Target
    worst: float | None
    where: Name | None

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        return None if self.worst is None else self.worst <= self.target.limit

    @property
    def limit(self) -> str:
        """What was aimed at."""
        limit = str(self.target.show(self.target.limit, self.target.unit)).replace(" ", "\u00a0")
        return f"≤\u00a0{limit}" if self.target.limit else limit

    @property
    def measured(self) -> str:
        """The worst that counts."""
        if self.worst is None:
            return "not measured"
        return str(self.target.show(self.worst, self.target.unit))

    @property
    def gap(self) -> Figure | None:
        """By how much it is missed."""
        if self.worst is None or self.met:
            return None
        gap = self.target.show(self.worst - self.target.limit, self.target.unit)
        return Figure(gap.text.removeprefix("+"), gap.value)

    @property
    def why(self) -> str:
        """Why it is missed, if that is known."""
        return "" if self.gap is None or self.target.why is None else str(self.target.why)

    @property
    def text(self) -> str:
        """Met, or missed by how much."""
        if self.worst is None:
            return "not measured"
        return "met" if self.gap is None else f"missed by {self.gap}"


def target_results(evidence: Evidence) -> list[TargetResult]:
    """Every target's."""
    return [target.compare(evidence) for target in _TARGETS]


def checkouts(evidence: Evidence, case: str = POOL_ONLY) -> list[Duel]:
    """A checkout and its checkin, ours and SQLAlchemy's."""
    return [duel for duel in evidence.duels("overhead", "time", case) if duel.partners]


def request_shares(evidence: Evidence, request: str) -> Iterator[tuple[float, Duel]]:
    """What the gate adds within the process, in per cent of such a `request` when the same server serves it."""
    for case in (EMPTY, CALL):
        for duel in evidence.duels("overhead", "time per request", case):
            served = evidence.measurements("overhead", "time per request", case=request, system=duel.theirs.system)
            if served and (bare := statistics.median(served[0].samples)):
                yield duel.added / bare * 100, duel


def _shutdowns(
    statistic: Callable[[Sequence[float]], float], metric: str, case: str = ""
) -> Callable[[Evidence], Iterator[tuple[float, Name]]]:
    """Of our servers, in the cases that begin so."""

    def find(evidence: Evidence) -> Iterator[tuple[float, Name]]:
        for each in evidence.measurements("shutdown", metric, ours=True):
            if each.case.startswith(case):
                yield statistic(each.samples), evidence.situation("shutdown", each)

    return find


def _checkouts(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    for duel in checkouts(evidence):
        yield duel.added, evidence.situation("overhead", duel.ours)


def _requests(request: str) -> Callable[[Evidence], Iterator[tuple[float, Name]]]:
    def find(evidence: Evidence) -> Iterator[tuple[float, Name]]:
        for value, duel in request_shares(evidence, request):
            yield value, evidence.situation("overhead", duel.ours)

    return find


_LAST, _IDLE = "last answer to exit", "signal to exit"
_TWO_PROCESSES = Sentence(
    "with gunicorn two processes end, the worker and then its master, and the kernel takes most of the time to free "
    "the memory of each"
)
_LEDGER = Sentence(
    "the ledger is Python, too: it walks its caller's frames, asks for the running task and books both under a lock"
)
_PYTHON = Sentence(
    "what is left is Python that has to run for each request (to admit it, to know its number and its task, to see its "
    "response to the end), and a request that does nothing takes little more than the framework's own Python"
)
_TARGETS = (
    Target("Requests lost at a shutdown, worst run", 0, "requests", _shutdowns(max, "lost", "busy")),
    Target(
        "Last answer to the end of the process",
        10,
        "ms",
        _shutdowns(statistics.median, _LAST, "busy"),
        why=_TWO_PROCESSES,
    ),
    Target(
        "Idle: SIGTERM to the end of the process",
        15,
        "ms",
        _shutdowns(statistics.median, _IDLE, "idle"),
        why=_TWO_PROCESSES,
    ),
    Target("Sessions left on the database server, worst run", 0, "connections", _shutdowns(max, "connections left")),
    Target("Added to a checkout and its checkin", 3, "us", _checkouts, added, why=_LEDGER),
    Target("Added to a served request that asks the database", 2, "%", _requests(QUERIED), added),
    Target("Added to a served request that does nothing", 2, "%", _requests(SERVED), added, why=_PYTHON),
)
