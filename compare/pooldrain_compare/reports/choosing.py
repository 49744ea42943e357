"""Which backend to run: who is fastest, from how many clients on, and where the pool is used up."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pooldrain_compare.bench.results import Measurement
from pooldrain_compare.bench.summary import Summary
from pooldrain_compare.bench.throughput import BY_CLIENTS, BY_THREADS
from pooldrain_compare.reports.evidence import Evidence, curve
from pooldrain_compare.reports.figures import Figure, apart, at, number, plain, quantity, times
from pooldrain_compare.reports.metrics import capitalised
from pooldrain_compare.reports.sentences import Name, Sentence, listing


def choice(evidence: Evidence) -> list[Sentence]:
    """Who is fastest, from how many clients on, and by how much."""
    mine = evidence.measurements("throughput", "throughput", ours=True)
    cases = list(dict.fromkeys(each.case for each in mine if each.x is not None))
    boards = {case: _board([each for each in mine if each.case == case]) for case in cases}
    boards = {case: board for case, board in boards.items() if any(len(each) > 1 for each in board.values())}
    if not boards:
        return []
    wins = Counter(_fastest(each) for board in boards.values() for each in board.values())
    (best, count), *rest = wins.most_common()
    found = [
        Sentence(
            "{who} answered the most requests per second in {count} of {all} combinations of work and load{others}.",
            who=evidence.who("throughput", best),
            count=number(count),
            all=number(sum(wins.values())),
            others=_others(evidence, rest),
        )
    ]
    found += [_crossover(evidence, case, board, mine) for case, board in boards.items()]
    more = (_tail(evidence), _threads(evidence), _saturation(evidence), _safety(evidence))
    return [*found, *(each for each in more if each)]


def _safety(evidence: Evidence) -> Sentence | None:
    """Whether safety decides, too."""
    lost = evidence.measurements("shutdown", "lost", ours=True)
    if not lost or any(max(each.samples) for each in lost if each.case.startswith("busy")):
        return None
    return Sentence(
        "None of them lost a request at a shutdown: choose by speed and by how your application is written."
    )


def _others(evidence: Evidence, wins: Sequence[tuple[str, int]]) -> Sentence:
    """Who won the rest."""
    parts = [
        Sentence("{who} in {count}", who=evidence.who("throughput", name), count=number(count)) for name, count in wins
    ]
    return Sentence(", {parts}", parts=listing(parts)) if parts else Sentence("")


_Board = dict[float, dict[str, Summary]]  # for each x what each system reached


def _board(measurements: Sequence[Measurement]) -> _Board:
    board: _Board = {}
    for each in measurements:
        if each.x is not None:
            board.setdefault(each.x, {})[each.system] = Summary.of(each.samples)
    return dict(sorted(board.items()))


def _fastest(entries: dict[str, Summary]) -> str:
    return max(entries, key=lambda name: entries[name].median)


@dataclass(slots=True)
class _Lead:
    """Who has the greatest median, from where, to where, and whether it can be told apart from all others anywhere."""

    who: str
    first: float
    last: float
    clear: bool

    @property
    def range(self) -> Figure:
        """Where."""
        one, more = plain(self.first), f"{plain(self.first)}–{plain(self.last)}"
        return Figure(one if self.first == self.last else more, self.last)

    @property
    def doubt(self) -> Sentence:
        """What is to be said of a lead that may be chance."""
        return Sentence("" if self.clear else " (within the noise)")


def _leads(board: _Board) -> list[_Lead]:
    leads: list[_Lead] = []
    for x, entries in board.items():
        best = _fastest(entries)
        clear = all(apart(entries[best], entries[other]) for other in entries if other != best)
        if leads and leads[-1].who == best:
            leads[-1].last = x
            leads[-1].clear |= clear
        else:
            leads.append(_Lead(best, x, x, clear))
    return leads


def _crossover(evidence: Evidence, case: str, board: _Board, measurements: Sequence[Measurement]) -> Sentence:
    x_name = Name(next(each.x_name or "" for each in measurements if each.case == case))
    leads = _leads(board)
    if len(leads) == 1:
        leader = evidence.who("throughput", leads[0].who)
        who = Sentence("{who} leads throughout{doubt}", who=leader, doubt=leads[0].doubt)
    else:
        parts = [
            Sentence("{who} at {x}{doubt}", who=evidence.who("throughput", each.who), x=each.range, doubt=each.doubt)
            for each in leads
        ]
        who = Sentence("leading are {parts}", parts=listing(parts))
    peaks = {
        name: max(((entries[name].median, x) for x, entries in board.items() if name in entries))
        for name in dict.fromkeys(name for entries in board.values() for name in entries)
    }
    top = max(peaks, key=lambda name: peaks[name])
    low = min(peaks, key=lambda name: peaks[name])
    return Sentence(
        "{case}, by {x_name}: {who}; the peak is {rate} with {x} ({top}), {ratio} times that of {low}.",
        case=Name(capitalised(case)),
        x_name=x_name,
        who=who,
        rate=quantity(peaks[top][0], "1/s"),
        x=Figure(at(peaks[top][1], x_name.text), peaks[top][1]),
        top=evidence.who("throughput", top),
        ratio=times(peaks[top][0] / peaks[low][0] if peaks[low][0] else math.inf),
        low=evidence.who("throughput", low),
    )


def _tail(evidence: Evidence) -> Sentence | None:
    mine = evidence.measurements("throughput", "p99", ours=True)
    boards = [_board([each for each in mine if each.case == case]) for case in dict.fromkeys(m.case for m in mine)]
    wins = Counter(
        min(entries.items(), key=lambda entry: entry[1].median)[0]
        for board in boards
        for entries in board.values()
        if len(entries) > 1
    )
    if not wins:
        return None
    best, count = wins.most_common(1)[0]
    return Sentence(
        "{who} has the lowest latency ({tail}) in {count} of {all}.",
        tail=Name("p99"),
        who=evidence.who("throughput", best),
        count=number(count),
        all=number(sum(wins.values())),
    )


def _threads(evidence: Evidence) -> Sentence | None:
    """How many threads serve most."""
    parts = []
    mine = [each for each in evidence.measurements("throughput", "throughput", ours=True) if each.x_name == BY_THREADS]
    for case, system in dict.fromkeys((each.case, each.system) for each in mine):
        points = curve([each for each in mine if (each.case, each.system) == (case, system)])
        (best, top), (least, low) = max(points, key=lambda each: each[1].median), points[0]
        if best == least or not low.median:
            continue
        parts.append(
            Sentence(
                "{ratio} times as many with {best} threads as with {least} ({case}, {who})",
                ratio=times(top.median / low.median),
                best=number(best),
                least=number(least),
                case=Name(case),
                who=evidence.who("throughput", system),
            )
        )
    return Sentence("Requests per second by threads: {parts}.", parts=listing(parts)) if parts else None


def _saturation(evidence: Evidence) -> Sentence | None:
    """From how many clients on every connection of the pool is in use."""
    used = [
        each
        for each in evidence.measurements("throughput", "connections in use", ours=True)
        if each.x_name == BY_CLIENTS
    ]
    limit = evidence.parameter("throughput", "pool_size") + evidence.parameter("throughput", "max_overflow")
    if not used or not limit:
        return None
    full = sorted(
        ((each.x or 0.0, each) for each in used if statistics.median(each.samples) >= limit), key=lambda pair: pair[0]
    )
    first: dict[str, tuple[float, Measurement]] = {}
    for x, each in full:
        first.setdefault(each.case, (x, each))
    parts = [
        Sentence(
            "{case} from {x} on ({who})",
            case=Name(case),
            x=Figure(at(x, each.x_name), x),
            who=evidence.who("throughput", each.system),
        )
        for case, (x, each) in first.items()
    ]
    if parts:
        return Sentence(
            "All {limit} connections of the pool are in use, {parts}.",
            limit=number(limit),
            parts=listing(parts),
        )
    return Sentence(
        "No load used up the {limit} connections of the pool: {most} at most (median).",
        limit=number(limit),
        most=number(max(statistics.median(each.samples) for each in used)),
    )
