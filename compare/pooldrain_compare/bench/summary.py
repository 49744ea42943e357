"""What was measured, on the terminal: medians with least and greatest, and beside ours the ratio to its partner."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from pooldrain_compare.bench.contenders import PARTNERS
from pooldrain_compare.bench.results import Measurement, Results


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, least and greatest of some samples."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise; raises StatisticsError when there is no sample."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def __str__(self) -> str:
        """`1.5 (1.2-2.0)`."""
        if self.least == self.greatest:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.least)}-{_short(self.greatest)})"


def ratio(ours: Measurement, theirs: Measurement) -> float | None:
    """The median of the pairs' ratios, one pair a round; None when none can be told."""
    pairs = [ours / theirs for ours, theirs in zip(ours.samples, theirs.samples, strict=False) if theirs]
    return statistics.median(pairs) if pairs else None


def print_results(console: Console, results: Results) -> None:
    """A table for each case."""
    for case in dict.fromkeys(m.case for m in results.measurements):
        mine = results.select(case=case)
        if flat := [m for m in mine if m.x is None]:
            metrics = dict.fromkeys((m.metric, m.unit) for m in flat)
            table = _table(case, "", [_title(metric, unit) for metric, unit in metrics])
            _fill(table, results, "", [[m for m in flat if m.metric == metric] for metric, _ in metrics])
            console.print(table)
        varied = [m for m in mine if m.x is not None]
        for x_name in dict.fromkeys(m.x_name for m in varied):
            these = [m for m in varied if m.x_name == x_name]
            xs = sorted({m.x for m in these if m.x is not None})
            table = _table(case, f"by {x_name}", [_short(x) for x in xs])
            for metric, unit in dict.fromkeys((m.metric, m.unit) for m in these):
                columns = [[m for m in these if (m.metric, m.x) == (metric, x)] for x in xs]
                _fill(table, results, f"{_title(metric, unit)}: ", columns)
                table.add_section()
            console.print(table)
    if results.noise.too_noisy:
        console.print("This machine was too noisy to tell small differences.", style="bold red")


def _title(metric: str, unit: str) -> str:
    return metric if unit in ("requests", "connections") else f"{metric}, {unit}"


def _table(case: str, corner: str, columns: Iterable[str]) -> Table:
    table = Table(title=case, title_justify="left")
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _fill(table: Table, results: Results, prefix: str, columns: Iterable[Sequence[Measurement]]) -> None:
    for name, info in results.systems.items():
        row = [_cell(name, column) for column in columns]
        if any(row):
            table.add_row(f"{prefix}{info.label}", *row)


def _cell(name: str, measurements: Sequence[Measurement]) -> str:
    mine = next((m for m in measurements if m.system == name), None)
    if mine is None:
        return ""
    if not mine.samples:
        return "-"
    partner = next((m for m in measurements if m.system == PARTNERS.get(name)), None)
    compared = None if partner is None else ratio(mine, partner)
    return f"{Summary.of(mine.samples)}{'' if compared is None else f' ×{_short(compared)}'}"


def _short(value: float) -> str:
    """Three digits that count."""
    if value and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:.0f}"
