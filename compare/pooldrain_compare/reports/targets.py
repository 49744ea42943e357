"""The numbers that the project set itself, and how far off it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pooldrain_compare.bench.checkouts import POOL_ONLY
from pooldrain_compare.bench.contenders import OURS
from pooldrain_compare.bench.gates import CALL, EMPTY, QUERIED, SERVED
from pooldrain_compare.bench.shutdown import BARE
from pooldrain_compare.bench.summary import ratio
from pooldrain_compare.bench.throughput import BY_THREADS, DEFAULT_THREADS, NOTHING, READ
from pooldrain_compare.bench.throughput import MEMORY as SERVER_MEMORY
from pooldrain_compare.reports.evidence import Duel, Evidence, curve, growth
from pooldrain_compare.reports.figures import Figure, added, quantity, times
from pooldrain_compare.reports.reasons import LEDGER, LOOP, unexplained
from pooldrain_compare.reports.sentences import Name, Sentence


@dataclass(frozen=True, slots=True)
class Target:
    """One of them. `find` yields each case's value with where it was measured; the worst counts.

    `least`: the limit is one from below. `why` is shown while it is missed. With `reasons` it is all that is written by
    hand in the reports, without a number.
    """

    aim: str
    limit: float
    unit: str
    find: Callable[[Evidence], Iterator[tuple[float, Name]]]
    show: Callable[[float, str], Figure] = quantity
    why: Sentence | None = None
    least: bool = False

    def compare(self, evidence: Evidence) -> TargetResult:
        """How it stands."""
        found = list(self.find(evidence))
        if not found:
            return TargetResult(self, None, None)
        worst, where = (min if self.least else max)(found, key=lambda each: each[0])
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
        if self.worst is None:
            return None
        return self.worst >= self.target.limit if self.target.least else self.worst <= self.target.limit

    @property
    def limit(self) -> str:
        """What was aimed at."""
        limit = str(self.target.show(self.target.limit, self.target.unit)).replace(" ", "\u00a0")
        bound = "≥" if self.target.least else "≤"
        return f"{bound}\u00a0{limit}" if self.target.limit else limit

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
        gap = self.target.show(abs(self.worst - self.target.limit), self.target.unit)
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
    statistic: Callable[[Sequence[float]], float], metric: str, case: str = "", systems: Sequence[str] = OURS
) -> Callable[[Evidence], Iterator[tuple[float, Name]]]:
    """Of these of our servers, in the cases that begin so."""

    def find(evidence: Evidence) -> Iterator[tuple[float, Name]]:
        for each in evidence.measurements("shutdown", metric, ours=True):
            if each.case.startswith(case) and each.case != BARE and each.system in systems:
                yield statistic(each.samples), evidence.situation("shutdown", each)

    return find


def _beside_a_bare_process(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    """How many times as long as one of its size that does nothing an idle server takes to be gone."""
    for bare in evidence.measurements("shutdown", _IDLE, case=BARE):
        for each in evidence.measurements("shutdown", _IDLE, case="idle", system=bare.system):
            if (times_as_long := ratio(each, bare)) is not None:
                yield times_as_long, evidence.situation("shutdown", each)


def stock_ratios(evidence: Evidence, *cases: str, system: str = "") -> Iterator[tuple[float, Duel]]:
    """Requests per second, ours to the same server without pooldrain, with a few clients and with many."""
    for case in cases:
        for duel in evidence.duels("throughput", "throughput", case):
            paired = duel.paired_ratio
            if duel.partners and paired is not None and system in ("", duel.ours.system) and (duel.ours.x or 0) > 1:
                yield paired, duel


def _stock(*cases: str, system: str) -> Callable[[Evidence], Iterator[tuple[float, Name]]]:
    def find(evidence: Evidence) -> Iterator[tuple[float, Name]]:
        for times_as_fast, duel in stock_ratios(evidence, *cases, system=system):
            yield times_as_fast, evidence.situation("throughput", duel.ours)

    return find


def _best_threads(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    """Ours with the threads that it has by default, to stock gunicorn with whatever number suits it best."""
    every = [each for each in evidence.measurements("throughput", "throughput") if each.x_name == BY_THREADS]
    every = [each for each in every if each.case.startswith(READ)]
    stock = [statistics.median(each.samples) for each in every if each.system == "plain-gunicorn"]
    for each in every:
        if max(stock, default=0.0) and each.system == "pooldrain-gunicorn" and each.x == DEFAULT_THREADS:
            yield statistics.median(each.samples) / max(stock), evidence.situation("throughput", each)


def _granian(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    """CPU of a request that does nothing, ours to granian's."""
    every = evidence.measurements("throughput", "CPU per request", case=NOTHING)
    rival = {each.x: statistics.median(each.samples) for each in every if each.system == "granian-wsgi"}
    for each in every:
        if each.system == "pooldrain-gunicorn" and (each.x or 0) > 1 and rival.get(each.x):
            yield statistics.median(each.samples) / rival[each.x], evidence.situation("throughput", each)


def _memory(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    for duel in evidence.duels("throughput", "memory", SERVER_MEMORY):
        if duel.partners:
            yield duel.added, evidence.situation("throughput", duel.ours)


def _growth(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    """The power of its number with which each cost grows."""
    every = [each for each in evidence.measurements("scale", ours=True) if each.x is not None]
    for key in dict.fromkeys((each.case, each.metric, each.system) for each in every):
        own = [each for each in every if (each.case, each.metric, each.system) == key]
        power = growth(curve(own))
        if power is not None:
            yield power, evidence.situation("scale", own[-1])


def _better(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    duels = [duel for name in evidence.results for duel in evidence.duels(name)]
    if duels:
        yield sum(duel.lost for duel in duels), Name("all comparisons")


def _unexplained(evidence: Evidence) -> Iterator[tuple[float, Name]]:
    duels = [duel for name in evidence.results for duel in evidence.duels(name)]
    if duels:
        yield sum(unexplained(evidence, duel) for duel in duels), Name("all comparisons")


def _ratio(value: float, unit: str) -> Figure:
    return Figure(f"{times(value)}×", value)


def _power(value: float, unit: str) -> Figure:
    return Figure(f"n^{value:.2f}", value)


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
_THREADS_END = Sentence(
    "the steps of the shutdown take a few milliseconds of Python, and the kernel ends each thread; a bare process has "
    "neither"
)
_PYTHON = Sentence(
    "what is left is Python that has to run for each request (to admit it, to know its number and its task, to see its "
    "response to the end), and a request that does nothing takes little more than the framework's own Python"
)
_EXITS = ("pooldrain-waitress", "pooldrain-uvicorn")
_TARGETS = (
    Target("Requests lost at a shutdown, worst run", 0, "requests", _shutdowns(max, "lost", "busy")),
    Target("Sessions left on the database server, worst run", 0, "connections", _shutdowns(max, "connections left")),
    Target(
        "Requests per second on gunicorn to those of stock gunicorn, a request that does nothing",
        2.5,
        "",
        _stock(NOTHING, system="pooldrain-gunicorn"),
        _ratio,
        least=True,
    ),
    Target(
        "The same, a request that asks the database, stock gunicorn with its best number of threads",
        1.5,
        "",
        _best_threads,
        _ratio,
        least=True,
    ),
    Target(
        "Requests per second on waitress to those of stock waitress",
        1.0,
        "",
        _stock(NOTHING, READ, system="pooldrain-waitress"),
        _ratio,
        least=True,
    ),
    Target(
        "Requests per second on uvicorn to those of stock uvicorn",
        1.0,
        "",
        _stock(NOTHING, READ, system="pooldrain-uvicorn"),
        _ratio,
        why=LOOP,
        least=True,
    ),
    Target("CPU of a request that does nothing, on gunicorn to granian's (WSGI)", 1.3, "", _granian, _ratio),
    Target("Memory of a server more than stock", 8, "MB", _memory, added),
    Target(
        "Last answer to the end of the process, waitress and uvicorn",
        6,
        "ms",
        _shutdowns(statistics.median, _LAST, "busy", _EXITS),
        why=_THREADS_END,
    ),
    Target(
        "Last answer to the end of the process, gunicorn",
        9,
        "ms",
        _shutdowns(statistics.median, _LAST, "busy", ("pooldrain-gunicorn",)),
        why=_TWO_PROCESSES,
    ),
    Target(
        "Idle: SIGTERM to the end of the process",
        15,
        "ms",
        _shutdowns(statistics.median, _IDLE, "idle"),
        why=_TWO_PROCESSES,
    ),
    Target(
        "Idle: SIGTERM to the end of the process, to a bare process of its size",
        2,
        "",
        _beside_a_bare_process,
        _ratio,
        why=_THREADS_END,
    ),
    Target("No cost grows faster than its number", 1.15, "", _growth, _power),
    Target("Added to a checkout and its checkin", 2, "us", _checkouts, added, why=LEDGER),
    Target("Added to a served request that asks the database", 2, "%", _requests(QUERIED), added),
    Target("Added to a served request that does nothing", 2, "%", _requests(SERVED), added, why=_PYTHON),
    Target("Comparisons in which a baseline is better", 10, "comparisons", _better),
    Target("Those of them without a known reason", 0, "comparisons", _unexplained),
)
