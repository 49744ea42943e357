"""The cases of the suite: which scenario on which servers and database; run, two services at a time, and compared."""

from __future__ import annotations

import contextlib
import difflib
import json
import queue
import shutil
import uuid
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pooldrain.errors import ConfigurationError
from pooldrain_compare.harness.faults.catalogue import Place
from pooldrain_compare.harness.faults.private_server import PrivateServers
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
