"""The report as a whole: what stands where, for the page and for the README alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pooldrain_compare.bench.results import BENCHMARKS, Measurement, Results
from pooldrain_compare.bench.summary import Summary
from pooldrain_compare.reports.answers import Answer, answers
from pooldrain_compare.reports.charts import Chart, Line, Row, lines, ranges
from pooldrain_compare.reports.evidence import Duel, Evidence, curve
from pooldrain_compare.reports.figures import at, plain, quantity, spread, times
from pooldrain_compare.reports.growing import growths
from pooldrain_compare.reports.metrics import capitalised, metric, titled
from pooldrain_compare.reports.overview import overview
from pooldrain_compare.reports.reasons import reason
from pooldrain_compare.reports.rivals import beaten, lead, price
from pooldrain_compare.reports.sentences import Sentence
from pooldrain_compare.reports.targets import TargetResult, target_results

_PURPOSE = {
    "shutdown": "What does a SIGTERM cost?",
    "overhead": "What does pooldrain cost while nothing is shut down?",
    "throughput": "How much does each server answer, and how fast?",
    "scale": "How does it grow?",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table: a text, smaller print below it, the system it is about."""

    text: str
    small: str = ""
    system: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    wordy: bool = False  # words more than numbers


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark: its question, what came of it in sentences, plots, tables, and how it was run."""

    name: str
    question: str
    missing: bool
    warning: str
    sentences: list[Sentence]
    charts: list[Chart]
    tables: list[Table]
    facts: list[tuple[str, str]]  # parameters, noise
    recipes: list[tuple[str, str, str]]  # system, label, how it was run


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. On the first screen: the answers' headlines, and the pictures of the overview."""

    overview: list[Chart]
    lead: list[Sentence]
    warnings: list[str]
    answers: list[Answer]
    targets: list[TargetResult]
    better: Table
    sections: list[Section]
    machines: list[str]
    versions: list[tuple[str, str]]
    parity: bool
    data: list[str]

    @property
    def charts(self) -> list[Chart]:
        """Every plot."""
        return [*self.overview, *(chart for section in self.sections for chart in section.charts)]


def build(evidence: Evidence, *, parity: bool) -> Report:
    """Put it together. `parity`: whether there is a parity report to link to."""
    sections = [_section(evidence, name) for name in BENCHMARKS]
    environments = [results.environment for results in evidence.results.values()]
    return Report(
        overview=overview(evidence),
        lead=lead(evidence),
        warnings=_warnings(sections),
        answers=answers(evidence),
        targets=target_results(evidence),
        better=_better(evidence),
        sections=sections,
        machines=list(
            dict.fromkeys(f"{each.system}, {each.cores} cores, Python {each.python}" for each in environments)
        ),
        versions=sorted({pair for each in environments for pair in each.versions.items()}),
        parity=parity,
        data=[f"data/{name}.json" for name in evidence.results],
    )


def _section(evidence: Evidence, name: str) -> Section:
    results = evidence.results.get(name)
    if results is None:
        return Section(name, _PURPOSE[name], True, "", [], [], [], [], [])
    return Section(
        name=name,
        question=results.question,
        missing=False,
        warning=_warning(results),
        sentences=growths(evidence) if name == "scale" else [],  # the others answer the questions
        charts=_charts(evidence, name),
        tables=_tables(evidence, name),
        facts=[
            *((_words(key), _value(value)) for key, value in results.parameters.items()),
            ("noise", _noise(results)),
        ],
        recipes=[(system, info.label, info.recipe) for system, info in results.systems.items()],
    )


def _warnings(sections: Sequence[Section]) -> list[str]:
    """Each said once, of all it is about."""
    about: dict[str, list[str]] = {}
    for section in sections:
        if section.warning:
            about.setdefault(section.warning, []).append(section.name)
    return [f"{', '.join(names)}: {warning}" for warning, names in about.items()]


def _warning(results: Results) -> str:
    parts = []
    if results.quick:
        parts.append("this is a smoke run, whose numbers mean nothing")
    if results.noise.too_noisy:
        parts.append("the machine was too noisy to tell small differences")
    return "; ".join(parts) + "." * bool(parts)


def _noise(results: Results) -> str:
    spins = Summary.of(results.noise.spin_ms)
    return f"a fixed loop took {spread(spins, 'ms')}, {len(results.noise.spin_ms)} times through the run"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- plots ----------------------------------------------------------------------------------------------


def _groups(measurements: Sequence[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """By metric and case, both in the order in which they come."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        groups.setdefault((each.metric, each.case), []).append(each)
    metrics = list(dict.fromkeys(name for name, _ in groups))
    return dict(sorted(groups.items(), key=lambda item: metrics.index(item[0][0])))


def _charts(evidence: Evidence, benchmark: str) -> list[Chart]:
    groups = _groups([each for each in evidence.measurements(benchmark) if metric(each.metric).drawn])
    charts: list[Chart] = []
    for (name, case), group in groups.items():
        if name == "signal to exit" and ("last answer to exit", case) in groups:
            continue  # it tells of the load, too
        if len({sample for each in group for sample in each.samples}) == 1:
            continue  # all the same: a table says it better
        # Plots of load share a scale, so that they can be compared.
        like = [
            Summary.of(each.samples)
            for (other, elsewhere), more in groups.items()
            if other == name and elsewhere.startswith("busy") and case.startswith("busy")
            for each in more
        ]
        charts += _drawn(evidence, benchmark, group, like)
    return charts


def _drawn(
    evidence: Evidence, benchmark: str, group: Sequence[Measurement], like: Sequence[Summary]
) -> Iterator[Chart]:
    """One metric of one case: over x, and what has none."""
    first = group[0]
    title, where = titled(first.metric, first.case)
    about = " · ".join(filter(None, (where, metric(first.metric).direction)))
    file = f"{benchmark}-{_slug(first.metric)}-{_slug(first.case)}"
    systems = evidence.results[benchmark].systems
    series = [each for each in group if each.x is not None]
    if series:
        drawn = [
            Line(name, systems[name].label, systems[name].ours, curve(own))
            for name, own in _by_system(series, systems).items()
        ]
        yield lines(file, title, about, first.unit, series[0].x_name or "", drawn, like)
    single = [each for each in group if each.x is None]
    if single:
        rows = [
            Row(each.system, systems[each.system].label, systems[each.system].ours, Summary.of(each.samples))
            for every in _by_system(single, systems).values()
            for each in every
        ]
        yield ranges(file + "-each" * bool(series), title, about, first.unit, rows, like)


def _by_system(measurements: Sequence[Measurement], systems: Iterable[str]) -> dict[str, list[Measurement]]:
    """In the order of `systems`."""
    found = {name: [each for each in measurements if each.system == name] for name in systems}
    return {name: own for name, own in found.items() if own}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# --- tables ---------------------------------------------------------------------------------------------


def _tables(evidence: Evidence, benchmark: str) -> list[Table]:
    every = evidence.results[benchmark].measurements
    single = [each for each in every if each.x is None]
    series = [each for each in every if each.x is not None]
    tables = [
        _case_table(evidence, benchmark, case, [each for each in single if each.case == case])
        for case in dict.fromkeys(each.case for each in single)
    ]
    return tables + [_series_table(evidence, benchmark, *key, group) for key, group in _groups(series).items()]


def _case_table(evidence: Evidence, benchmark: str, case: str, measurements: Sequence[Measurement]) -> Table:
    """One case: a row a system, a column a metric."""
    names = list(dict.fromkeys(each.metric for each in measurements))
    rows = []
    for system, own in _by_system(measurements, evidence.results[benchmark].systems).items():
        found = {each.metric: each for each in own}
        rows.append(
            [
                Cell(evidence.label(benchmark, system), system=system),
                *(_cell(evidence, benchmark, found.get(name)) for name in names),
            ]
        )
    header = ["System", *(metric(name).title for name in names)]
    return Table(capitalised(case) + _runs(measurements), header, rows)


def _series_table(
    evidence: Evidence, benchmark: str, name: str, case: str, measurements: Sequence[Measurement]
) -> Table:
    """One metric of one case over x: a row a system, a column an x."""
    xs = sorted({each.x for each in measurements if each.x is not None})
    rows = []
    for system, own in _by_system(measurements, evidence.results[benchmark].systems).items():
        found = {each.x: each for each in own}
        rows.append(
            [
                Cell(evidence.label(benchmark, system), system=system),
                *(_cell(evidence, benchmark, found.get(x)) for x in xs),
            ]
        )
    header = [f"{measurements[0].x_name}", *(plain(x) for x in xs)]
    caption = ", ".join(filter(None, titled(name, case))) + _runs(measurements)
    return Table(caption, header, rows)


def _cell(evidence: Evidence, benchmark: str, measurement: Measurement | None) -> Cell:
    """Ratio first, then the median; least and greatest below."""
    if measurement is None:
        return Cell("–")
    if not measurement.samples:
        return Cell("not measured", measurement.note)
    summary = Summary.of(measurement.samples)
    text = str(quantity(summary.median, measurement.unit))
    if not evidence.results[benchmark].systems[measurement.system].ours and metric(measurement.metric).better:
        ours = evidence.counterpart(benchmark, measurement)
        if ours is not None and (mine := Summary.of(ours.samples).median) and summary.median:
            text = f"{times(summary.median / mine)}× · {text}"
    small = "" if summary.least == summary.greatest else spread(summary, measurement.unit).partition("(")[2].rstrip(")")
    return Cell(text, "; ".join(filter(None, (small, measurement.note))))


def _runs(measurements: Sequence[Measurement]) -> str:
    counts = sorted({len(each.samples) for each in measurements if each.samples})
    if not counts:
        return ""
    span = plain(counts[0]) if len(counts) == 1 else f"{plain(counts[0])}–{plain(counts[-1])}"
    return f" (median, least–greatest of {span} {'run' if counts == [1] else 'runs'})"


def _better(evidence: Evidence) -> Table:
    """What the first paragraph sums up."""
    header = ["Baseline", "What", "Where", "Better by", "It", "pooldrain", "Why"]
    return Table("The clearest first", header, [_beaten(evidence, duel) for duel in beaten(evidence)], wordy=True)


def _beaten(evidence: Evidence, duel: Duel) -> list[Cell]:
    what, where = titled(duel.ours.metric, duel.ours.case)
    x = "" if duel.ours.x is None else at(duel.ours.x, duel.ours.x_name)
    return [
        Cell(evidence.label(duel.benchmark, duel.theirs.system), system=duel.theirs.system),
        Cell(what),
        Cell(", ".join(filter(None, (where, x)))),
        Cell("" if math.isinf(duel.lead) else f"{times(duel.lead)}×"),
        Cell(spread(duel.theirs_summary, duel.theirs.unit) + str(price(evidence, duel))),
        Cell(spread(duel.ours_summary, duel.ours.unit), evidence.label(duel.benchmark, duel.ours.system)),
        Cell(str(reason(evidence, duel) or "")),
    ]
