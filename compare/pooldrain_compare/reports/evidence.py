"""What has been measured, and how two systems compare in it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pooldrain_compare.bench.contenders import PARTNERS
from pooldrain_compare.bench.results import BENCHMARKS, Measurement, Results, load
from pooldrain_compare.bench.summary import Summary, ratio
from pooldrain_compare.reports.figures import apart, at
from pooldrain_compare.reports.metrics import metric
from pooldrain_compare.reports.sentences import Name


@dataclass(frozen=True, slots=True)
class Duel:
    """One of ours and a baseline in the same situation. `ratio`: theirs to ours; None when ours is zero."""

    benchmark: str
    ours: Measurement
    theirs: Measurement

    @property
    def ours_summary(self) -> Summary:
        """What ours comes to."""
        return Summary.of(self.ours.samples)

    @property
    def theirs_summary(self) -> Summary:
        """What theirs comes to."""
        return Summary.of(self.theirs.samples)

    @property
    def ratio(self) -> float | None:
        """Theirs to ours, of the medians."""
        ours = self.ours_summary.median
        return self.theirs_summary.median / ours if ours else None

    @property
    def partners(self) -> bool:
        """Whether theirs is the same as ours without pooldrain."""
        return PARTNERS.get(self.ours.system) == self.theirs.system

    @property
    def paired_ratio(self) -> float | None:
        """Ours to theirs: the median of the pairs' ratios."""
        return ratio(self.ours, self.theirs)

    @property
    def added(self) -> float:
        """What ours has more than theirs: the median of the pairs' differences."""
        pairs = zip(self.ours.samples, self.theirs.samples, strict=False)
        return statistics.median(mine - other for mine, other in pairs)

    @property
    def lead(self) -> float:
        """How many times better theirs is; below 1 ours is."""
        ours, theirs = self.ours_summary.median, self.theirs_summary.median
        if ours == theirs:
            return 1.0
        if metric(self.ours.metric).better == "more":
            ours, theirs = theirs, ours
        return ours / theirs if theirs else math.inf

    @property
    def lost(self) -> bool:
        """Whether theirs is better, and the two can be told apart."""
        return self.lead > 1.0 and apart(self.ours_summary, self.theirs_summary)


class Evidence:
    """The results of all benchmarks there are."""

    def __init__(self, results: Mapping[str, Results]) -> None:
        self.results = {name: results[name] for name in BENCHMARKS if name in results}
        self._measured: dict[tuple[str, str | None], list[Measurement]] = {}  # by benchmark and metric; None: any
        for name, every in self.results.items():
            for each in every.measurements:
                if each.samples:
                    self._measured.setdefault((name, each.metric), []).append(each)
                    self._measured.setdefault((name, None), []).append(each)

    @classmethod
    def read(cls, directory: Path) -> Evidence:
        """All files of results in a directory; raises BadResultsError."""
        return cls({name: load(path) for name in BENCHMARKS if (path := directory / f"{name}.json").is_file()})

    def measurements(
        self,
        benchmark: str,
        metric_name: str | None = None,
        *,
        ours: bool | None = None,
        case: str | None = None,
        system: str | None = None,
    ) -> list[Measurement]:
        """Those with samples, in the order of the file."""
        found = self._measured.get((benchmark, metric_name), [])
        return [
            each
            for each in found
            if case in (None, each.case)
            and system in (None, each.system)
            and ours in (None, self.results[benchmark].systems[each.system].ours)
        ]

    def label(self, benchmark: str, system: str) -> str:
        """What a system is called."""
        return self.results[benchmark].systems[system].label

    def who(self, benchmark: str, system: str) -> Name:
        """The same, for a sentence."""
        return Name(self.label(benchmark, system))

    def situation(self, benchmark: str, measurement: Measurement) -> Name:
        """Who, where, and at which x."""
        x = "" if measurement.x is None else at(measurement.x, measurement.x_name)
        parts = (self.label(benchmark, measurement.system), measurement.case, x)
        return Name(", ".join(filter(None, parts)))

    def parameter(self, benchmark: str, name: str) -> float:
        """A number that a benchmark was run with; 0 when there is none."""
        value = self.results[benchmark].parameters.get(name) if benchmark in self.results else None
        return value if isinstance(value, int | float) else 0

    def duels(self, benchmark: str, metric_name: str | None = None, case: str | None = None) -> Iterator[Duel]:
        """Every baseline against its counterpart, wherever it is known which way is better."""
        for theirs in self.measurements(benchmark, metric_name, ours=False, case=case):
            if metric(theirs.metric).better and (ours := self.counterpart(benchmark, theirs)):
                yield Duel(benchmark, ours, theirs)

    def counterpart(self, benchmark: str, theirs: Measurement) -> Measurement | None:
        """What a baseline is held against: ours on the same server or pool, or else the best of its colour."""
        systems = self.results[benchmark].systems
        ours = [
            each
            for each in self.measurements(benchmark, theirs.metric, ours=True, case=theirs.case)
            if each.x == theirs.x and systems[each.system].colour == systems[theirs.system].colour
        ]
        for each in ours:
            if PARTNERS.get(each.system) == theirs.system:
                return each
        if not ours:
            return None
        best = max if metric(theirs.metric).better == "more" else min
        return best(ours, key=lambda each: statistics.median(each.samples))


def curve(measurements: Sequence[Measurement]) -> list[tuple[float, Summary]]:
    """The points of one system over `x`, from the least."""
    points = [(each.x, Summary.of(each.samples)) for each in measurements if each.x is not None]
    return sorted(points, key=lambda point: point[0])


def growth(points: Sequence[tuple[float, Summary]]) -> float | None:
    """The power of x with which the median grows from the first point to the last; None when that cannot be told."""
    if len(points) < 2:
        return None
    (first, low), (last, high) = points[0], points[-1]
    if not (0 < first < last and low.median > 0 and high.median > 0):
        return None
    return math.log(high.median / low.median) / math.log(last / first)
