"""What came of the suite, for people: the table in the terminal, the catalogue, and `compare/reports/parity.md`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pooldrain_compare.harness.servers import BACKENDS
from pooldrain_compare.parity.cases import CaseResult
from pooldrain_compare.parity.comparison import Accepted
from pooldrain_compare.parity.scenarios import SCENARIOS


def worst_of(rounds: Sequence[Sequence[CaseResult]]) -> list[CaseResult]:
    """Of each case the first result that is not good, or the last."""
    return [next((each for each in same if not each.good), same[-1]) for same in zip(*rounds, strict=True)]


def print_verdicts(console: Console, rounds: Sequence[Sequence[CaseResult]]) -> None:
    """The table, the accepted differences, and what is wrong."""
    worst = worst_of(rounds)
    table = Table(title="Drain and dispose, scenario by scenario", title_justify="left")
    table.add_column("scenario")
    table.add_column("database")
    for server in BACKENDS:
        table.add_column(server, overflow="fold")
    for result in worst:
        cells = (result.cell(server) for server in BACKENDS)
        style = None if result.good else "bold red"
        table.add_row(result.case.scenario.name, result.case.database, *cells, style=style)
    console.print(table)
    for entry in accepted_entries(worst):
        console.print(f"Accepted, {entry.scenario}: {entry.reason}", markup=False, soft_wrap=True)
    for number, results in enumerate(rounds, 1):
        for result in results:
            for complaint in result.complaints():
                where = f"round {number}: " if len(rounds) > 1 else ""
                console.print(where + complaint, markup=False, soft_wrap=True)


def accepted_entries(results: Sequence[CaseResult]) -> list[Accepted]:
    """The differences that were found and are accepted, each once."""
    return list(dict.fromkeys(entry for result in results for entry in result.accepted))


def list_scenarios(console: Console) -> None:
    """The catalogue: name, what it shows, where it runs."""
    for scenario in SCENARIOS:
        servers = [name for name, server in BACKENDS.items() if server.workers in scenario.workers]
        console.print(f"{scenario.name}: {scenario.shows}", style="bold", markup=False, soft_wrap=True)
        console.print(f"    {', '.join(servers)}; {', '.join(scenario.databases)}", markup=False, soft_wrap=True)


def markdown(results: Sequence[CaseResult]) -> str:
    """The report that is kept in the repository."""
    names = {result.case.scenario.name for result in results}
    good = sum(result.good for result in results)
    lines = [
        "# Parity",
        "",
        "Written by `pooldrain-compare parity`, which runs each scenario as real processes on a real database and",
        "compares every threaded server with the asyncio one that has as many workers: the normal form of the",
        "transcripts, every HTTP answer (status, headers but for Date and Server, body), the reports, the exit code,",
        "what the database saw, and durations within the scenario's bands.",
        "",
        f"{len(names)} scenarios, {len(results)} cases, {good} identical or accepted.",
        "",
        f"| scenario | what it shows | database | {' | '.join(BACKENDS)} | verdict |",
        f"|---|---|---|{'---|' * len(BACKENDS)}---|",
    ]
    for result in results:
        cells = " | ".join(result.cell(server) or "-" for server in BACKENDS)
        scenario = result.case.scenario
        lines.append(f"| {scenario.name} | {scenario.shows} | {result.case.database} | {cells} | {result} |")
    lines += ["", "`-`: not run there, because the scenario is about one worker, about two, or about PostgreSQL.", ""]
    lines += ["## Accepted differences", ""]
    entries = accepted_entries(results)
    for entry in entries:
        lines += [f"- {entry.scenario}, {', '.join(entry.servers)}: {', '.join(entry.facts)}. {entry.reason}"]
    if not entries:
        lines.append("None.")
    return "\n".join([*lines, ""])
