"""The two pictures of the first screen: what a SIGTERM costs, and how fast each server is beside itself as it comes."""

from __future__ import annotations

from collections.abc import Iterator

from pooldrain_compare.bench.summary import Summary
from pooldrain_compare.bench.throughput import NOTHING, READ
from pooldrain_compare.reports.charts import Chart, Row, ranges
from pooldrain_compare.reports.evidence import Evidence
from pooldrain_compare.reports.metrics import metric
from pooldrain_compare.reports.saving import lost_at_sigterm
from pooldrain_compare.reports.targets import stock_ratios

_WORK = {NOTHING: "nothing", READ: "SELECT"}


def overview(evidence: Evidence) -> list[Chart]:
    """Those of the two for which there are samples."""
    return [*_lost(evidence), *_beside_stock(evidence)]


def _lost(evidence: Evidence) -> Iterator[Chart]:
    found = lost_at_sigterm(evidence)
    if found:
        rows = [_row(evidence, "shutdown", system, "", samples) for system, samples in found.items()]
        rows.sort(key=lambda row: (not row.ours, row.summary.median))
        yield ranges("overview-lost", "Requests lost at a SIGTERM", metric("lost").direction, "requests", rows)


def _beside_stock(evidence: Evidence) -> Iterator[Chart]:
    rows: list[Row] = []
    for case, work in _WORK.items():
        ratios: dict[str, list[float]] = {}
        for ratio, duel in stock_ratios(evidence, case):
            ratios.setdefault(duel.ours.system, []).append(ratio * 100)
        rows += [_row(evidence, "throughput", system, f", {work}", samples) for system, samples in ratios.items()]
    if rows:
        rows.sort(key=lambda row: row.label)
        about = "a request that does nothing, one SELECT; stock is 100 %"
        yield ranges("overview-throughput", "Requests per second beside stock", about, "%", rows)


def _row(evidence: Evidence, benchmark: str, system: str, work: str, samples: list[float]) -> Row:
    summary = Summary.of(samples)
    info = evidence.results[benchmark].systems[system]
    return Row(system, info.label + work, info.ours, summary)
