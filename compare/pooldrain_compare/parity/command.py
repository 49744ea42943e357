"""`pooldrain-compare parity`: every scenario on every server, and the proof that all do the same, or the difference.

Each threaded server is compared with the asyncio one that has as many workers. Services run two at a time.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import queue
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pooldrain.errors import ConfigurationError
from pooldrain_compare.harness.environment import artefacts, database
from pooldrain_compare.harness.faults.catalogue import Place
from pooldrain_compare.harness.faults.private_server import PrivateServers
from pooldrain_compare.harness.narrator import Narrator, result_console
from pooldrain_compare.harness.servers import BACKENDS, COMPARED_WITH
from pooldrain_compare.parity.bystander import (
    PostgresBystander,
    SqliteBystander,
    drop_databases,
    make_databases,
)
from pooldrain_compare.parity.comparison import ACCEPTED, Accepted, Difference, differences, facts, failures
from pooldrain_compare.parity.conductor import Observation, play
from pooldrain_compare.parity.latches import Latches
from pooldrain_compare.parity.scenarios import BY_NAME, POSTGRESQL, SCENARIOS, SQLITE, Scenario

AT_A_TIME = 2  # services; more on two cores, and their durations would say little
REPORT = Path("compare/reports/parity.md")
DATABASES = (POSTGRESQL, SQLITE)
SQLITE_SERVERS = tuple(name for name, server in BACKENDS.items() if server.workers == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityOptions:
    """What is to be run; empty for all. `repeat`: how many rounds."""

    scenarios: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    database: str | None = None
    database_url: str | None = None
    keep: Path | None = None
    repeat: int = 1

    @property
    def complete(self) -> bool:
        """Whether everything is run."""
        return not (self.scenarios or self.servers or self.database)


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario on a database, and the servers it is run on."""

    scenario: Scenario
    database: str
    servers: tuple[str, ...]

    @property
    def name(self) -> str:
        """As told in the progress."""
        return f"{self.scenario.name} on {self.database}"


@dataclass(slots=True)
class CaseResult:
    """What came of a case: what is wrong with each server, and each pair's differences."""

    case: Case
    failures: dict[str, list[str]] = field(default_factory=dict)
    differences: dict[str, list[Difference]] = field(default_factory=dict)  # by threaded server

    @property
    def good(self) -> bool:
        """Nothing is wrong, and nothing differs but what is accepted."""
        differing = (each for found in self.differences.values() for each in found)
        return not any(self.failures.values()) and all(each.accepted for each in differing)

    @property
    def accepted(self) -> list[Accepted]:
        """The entries that were needed."""
        found = (each.accepted for differing in self.differences.values() for each in differing)
        return list(dict.fromkeys(entry for entry in found if entry is not None))

    def cell(self, server: str) -> str:
        """What the table says of a server."""
        if server not in self.case.servers:
            return ""
        if self.failures[server]:
            return "FAILED"
        found = self.differences.get(server, [])
        if any(each.accepted is None for each in found):
            return "DIFFERENT"
        return "accepted" if found else "ok"

    def __str__(self) -> str:
        if self.good:
            return "identical, but for an accepted difference" if self.accepted else "identical"
        failed = [name for name, found in self.failures.items() if found]
        differing = [name for name, found in self.differences.items() if any(each.accepted is None for each in found)]
        parts = (f"failed: {', '.join(failed)}" * bool(failed), f"different: {', '.join(differing)}" * bool(differing))
        return "; ".join(filter(None, parts))

    def complaints(self) -> list[str]:
        """Everything that is wrong, readable."""
        name = self.case.name
        lines = [f"{name}, {server}: {each}" for server, found in self.failures.items() for each in found]
        for server, differing in self.differences.items():
            pair = f"{server} and {COMPARED_WITH[server]}"
            wrong = (each.diff(server, COMPARED_WITH[server]) for each in differing if each.accepted is None)
            lines += [f"{name}, {pair} differ in the {diff}" for diff in wrong]
        return lines


def plan(options: ParityOptions) -> list[Case]:
    """The cases, in the order of the catalogue. A threaded server brings its asyncio partner along."""
    _known("scenario", options.scenarios, BY_NAME)
    _known("server", options.servers, BACKENDS)
    wanted = set(options.servers) or set(BACKENDS)
    wanted |= {COMPARED_WITH[name] for name in wanted if name in COMPARED_WITH}
    cases = []
    for scenario in SCENARIOS:
        if options.scenarios and scenario.name not in options.scenarios:
            continue
        for name in scenario.databases:
            if options.database not in (None, name):
                continue
            servers = tuple(
                server
                for server, backend in BACKENDS.items()
                if server in wanted
                and backend.workers in scenario.workers
                and (name == POSTGRESQL or server in SQLITE_SERVERS)
            )
            if servers:
                cases.append(Case(scenario, name, servers))
    if not cases:
        raise ConfigurationError("there is no such combination of scenario, server and database; see parity --list")
    return cases


def _known(kind: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"there is no {kind} {name}{hint}; see parity --list")


def compare_case(
    case: Case, observations: dict[str, Observation], accepted: Sequence[Accepted] = ACCEPTED
) -> CaseResult:
    """Judge what was seen of a case."""
    result = CaseResult(case)
    for name, observation in observations.items():
        result.failures[name] = failures(observation)
    for ours, theirs in COMPARED_WITH.items():
        if ours in observations and theirs in observations:
            found = differences(observations[ours], observations[theirs], accepted)
            result.differences[ours] = found
            seen = {each.fact for each in found}
            for entry in accepted:
                if entry.scenario == case.scenario.name and ours in entry.servers:
                    stale = [fact for fact in entry.facts if fact not in seen]
                    result.failures[ours] += [f"the accepted difference in {fact!r} is none any more" for fact in stale]
    return result


class Stage:
    """What services run on: a PostgreSQL with a few databases, each used by one service at a time."""

    def __init__(self, databases: Sequence[str], directory: Path, servers: PrivateServers) -> None:
        self.directory = directory
        self._servers = servers
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for each in databases:
            self._free.put(each)

    def run(self, case: Case, server: str, directory: Path, app: str | None = None) -> Observation:
        """Run a case on one server. `app`: another application than the scenario's own."""
        shutil.rmtree(directory, ignore_errors=True)  # of an earlier run that was kept
        directory.mkdir(parents=True)
        with Latches() as latches:
            if case.database == SQLITE:
                file = directory / "database.sqlite"
                bystander = SqliteBystander(file, latches)
                return play(case.scenario, BACKENDS[server], bystander, latches, directory, database=SQLITE, app=app)
            if case.scenario.has_faults:
                return self._run_with_faults(case, server, latches, directory, app)
            url = self._free.get()
            try:
                with contextlib.closing(PostgresBystander(url)) as watching:
                    return play(
                        case.scenario, BACKENDS[server], watching, latches, directory, database=POSTGRESQL, app=app
                    )
            finally:
                self._free.put(url)

    def _run_with_faults(
        self, case: Case, server: str, latches: Latches, directory: Path, app: str | None
    ) -> Observation:
        with (
            self._servers.borrow() as private,
            Place(private) as place,
            contextlib.closing(PostgresBystander(place.own_url, place.url)) as watching,
        ):
            return play(
                case.scenario,
                BACKENDS[server],
                watching,
                latches,
                directory,
                database=POSTGRESQL,
                app=app,
                place=place,
            )


@contextlib.contextmanager
def stage(url: str, directory: Path) -> Generator[Stage]:
    """A stage on this server; its databases are dropped at the end. Faults get servers of their own."""
    databases = make_databases(url, f"parity_{uuid.uuid4().hex[:12]}", AT_A_TIME)
    try:
        with PrivateServers() as servers:
            yield Stage(databases, directory, servers)
    finally:
        drop_databases(url, databases)


Told = Callable[[CaseResult], None]


def run_cases(on: Stage, cases: Sequence[Case], told: Told, *, directory: Path, keep: bool = True) -> list[CaseResult]:
    """Run cases, and tell each result when it is there. `keep`: also the artefacts of what is good."""
    results = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        places = [(case, directory / case.scenario.name / case.database) for case in cases]
        runs = [
            {server: pool.submit(on.run, case, server, place / server) for server in case.servers}
            for case, place in places
        ]
        try:
            for (case, place), started in zip(places, runs, strict=True):
                observations = {server: run.result() for server, run in started.items()}
                result = compare_case(case, observations)
                if keep or not result.good:
                    _leave_artefacts(place, observations, result)
                else:
                    shutil.rmtree(place)
                results.append(result)
                told(result)
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _leave_artefacts(place: Path, observations: dict[str, Observation], result: CaseResult) -> None:
    for server, observation in observations.items():
        text = json.dumps(facts(observation), indent=1, ensure_ascii=False) + "\n"
        (place / server / "facts.json").write_text(text, "utf-8")
    (place / "verdict.txt").write_text("\n".join([str(result), *result.complaints(), ""]), "utf-8")


# --- the command ----------------------------------------------------------------------------------------------


def run_parity(options: ParityOptions) -> int:
    """Run it and print the table; the exit status is 0 when everything is identical or accepted."""
    cases = plan(options)
    console = result_console()
    rounds: list[list[CaseResult]] = []
    started = time.monotonic()
    with artefacts(options.keep) as files:
        with Narrator() as narrator:
            if options.database_url is None:
                narrator.say("PostgreSQL: starting the embedded server")
            with database(options.database_url, narrator.say) as url, stage(url, files.path) as on:
                for number in range(1, options.repeat + 1):
                    title = "parity" if options.repeat == 1 else f"round {number}"
                    directory = files.path if options.repeat == 1 else files.path / f"round-{number}"
                    job = narrator.job(title)
                    told = _Progress(job, len(cases))
                    rounds.append(run_cases(on, cases, told, directory=directory, keep=options.keep is not None))
                    job("done", 1.0)
        good = all(result.good for each in rounds for result in each)
        files.keep = options.keep is not None or not good
        print_verdicts(console, rounds)
        if files.keep:
            console.print(f"Logs, reports, transcripts and facts are in {files.path}", markup=False, soft_wrap=True)
    if options.complete:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(markdown(_worst(rounds)), encoding="utf-8")
        console.print(f"Written: {REPORT}", markup=False, soft_wrap=True)
    _print_result(console, rounds, time.monotonic() - started)
    return 0 if good else 1


class _Progress:
    def __init__(self, job: Callable[[str, float], None], total: int) -> None:
        self._job = job
        self._total = total
        self._done = 0

    def __call__(self, result: CaseResult) -> None:
        self._done += 1
        self._job(f"{result.case.name} {'ok' if result.good else str(result).upper()}", self._done / self._total)


def _worst(rounds: Sequence[Sequence[CaseResult]]) -> list[CaseResult]:
    """Of each case the first result that is not good, or the last."""
    return [next((each for each in same if not each.good), same[-1]) for same in zip(*rounds, strict=True)]


def print_verdicts(console: Console, rounds: Sequence[Sequence[CaseResult]]) -> None:
    """The table, the accepted differences, and what is wrong."""
    worst = _worst(rounds)
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
    for entry in _entries(worst):
        console.print(f"Accepted, {entry.scenario}: {entry.reason}", markup=False, soft_wrap=True)
    for number, results in enumerate(rounds, 1):
        for result in results:
            for complaint in result.complaints():
                where = f"round {number}: " if len(rounds) > 1 else ""
                console.print(where + complaint, markup=False, soft_wrap=True)


def _print_result(console: Console, rounds: Sequence[Sequence[CaseResult]], seconds: float) -> None:
    total = sum(len(each.case.servers) for results in rounds for each in results)
    bad = sorted({result.case.scenario.name for results in rounds for result in results if not result.good})
    count = len({result.case.scenario.name for result in rounds[0]})
    times = f" {len(rounds)} times in a row" if len(rounds) > 1 else ""
    ran = f"{count} scenarios{times}, {total} services started, in {seconds:.0f} s"
    if bad:
        console.print(
            f"Verdict: NOT identical in {', '.join(bad)}; {ran}", style="bold red", markup=False, soft_wrap=True
        )
        return
    accepted = len(_entries(_worst(rounds)))
    but = "" if not accepted else f", but for {accepted} accepted difference{'s' * (accepted > 1)}"
    console.print(f"Verdict: identical{but}; {ran}", style="bold green", markup=False, soft_wrap=True)


def _entries(results: Sequence[CaseResult]) -> list[Accepted]:
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
    entries = _entries(results)
    for entry in entries:
        lines += [f"- {entry.scenario}, {', '.join(entry.servers)}: {', '.join(entry.facts)}. {entry.reason}"]
    if not entries:
        lines.append("None.")
    return "\n".join([*lines, ""])
