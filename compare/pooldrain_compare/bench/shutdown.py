"""What does a SIGTERM cost? Each server with pooldrain against the same server run plainly, interleaved.

Busy: clients without think time ask `GET /`, half of them on kept connections, when the signal comes.
Idle: the signal comes when one request has been answered and nothing is going on.
"""

from __future__ import annotations

import http.client
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain_compare import baselines
from pooldrain_compare.backends import BACKENDS
from pooldrain_compare.baselines import BASELINES
from pooldrain_compare.bench.results import Summary, write_json
from pooldrain_compare.client import LoadClient, Mode, Outcome, constant
from pooldrain_compare.database import Witness
from pooldrain_compare.environment import artefacts, database, witness
from pooldrain_compare.narrator import Narrator, result_console
from pooldrain_compare.processes import ServerProcess, free_port

CLIENTS = 40
LOAD_SECONDS = 0.8
END_TIMEOUT = 60.0
SESSIONS_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class System:
    """A server with or without pooldrain, and the signal that stops it."""

    server: str
    ours: bool
    signum: signal.Signals = signal.SIGTERM

    @property
    def name(self) -> str:
        """As it is called in tables and files."""
        how = "pooldrain" if self.ours else "plain"
        return f"{self.server}, {how}" + ("" if self.signum is signal.SIGTERM else f", {self.signum.name}")

    @property
    def sessions(self) -> str:
        """What the application names of its database sessions begin with."""
        return BACKENDS[self.server].sessions if self.ours else baselines.APPLICATION_NAME

    def process(self, url: str, directory: Path) -> ServerProcess:
        """A process that is not started yet."""
        if self.ours:
            return BACKENDS[self.server].process(url, directory, observed=False)
        port = free_port()
        plain = DatabaseUrl.parse(url).sync_url.render_as_string(hide_password=False)
        return ServerProcess(
            BASELINES[self.server].argv(port),
            log=directory / f"plain-{self.server}.log",
            address=("127.0.0.1", port),
            environment={"DATABASE_URL": plain},
        )


SYSTEMS = (
    *(System(server, ours) for server in BACKENDS for ours in (True, False)),
    System("waitress", False, signal.SIGINT),  # the only signal that plain waitress handles
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one system. Times are milliseconds; "end" is the end of the process."""

    system: str
    answered: int
    refused: int
    lost: int
    lost_kept: int  # of those, on kept connections
    lost_new: int  # on new ones
    in_flight: int  # what the clients waited for when the signal was sent
    busy_exit: int
    answer_to_end: float
    busy_signal_to_end: float
    idle_exit: int
    idle_signal_to_end: float
    sessions_left: int  # on the database server, at the first look after the busy end


def run_shutdown(*, runs: int, quick: bool, database_url: str | None, json_path: Path, clients: int = CLIENTS) -> int:
    """Run the benchmark, print the table, write the JSON. 1 when one of ours lost a request."""
    seconds = 0.3 if quick else LOAD_SECONDS
    samples: list[Sample] = []
    with (
        artefacts(None) as files,
        Narrator() as narrator,
        database(database_url, narrator.say) as url,
        witness(url) as asked,
    ):
        asked.create_orders()
        job = narrator.job("shutdown")
        plan = list(_plan(runs))
        for number, system in enumerate(plan):
            job(f"{system.name}: run {number // len(SYSTEMS) + 1} of {runs}", number / len(plan))
            samples.append(_measure(system, url, files.path, asked, clients, seconds))
    parameters = {"runs": runs, "clients": clients, "load_seconds": seconds, "request": "GET /"}
    write_json(json_path, "shutdown", parameters, [asdict(sample) for sample in samples])
    console = result_console()
    _print(console, samples, runs, clients)
    console.print(f"Samples: {json_path}", soft_wrap=True)
    ours = {system.name for system in SYSTEMS if system.ours}
    return int(any(sample.lost for sample in samples if sample.system in ours))


def _plan(runs: int) -> Iterator[System]:
    """Every system once a run, in alternating order, so that a slow minute hits all alike."""
    for run in range(runs):
        yield from SYSTEMS if run % 2 == 0 else reversed(SYSTEMS)


def _measure(system: System, url: str, directory: Path, asked: Witness, clients: int, seconds: float) -> Sample:
    with system.process(url, directory) as process:
        load = LoadClient(process.address, constant("/"), clients=clients).start()
        try:
            time.sleep(seconds)
            in_flight = load.in_flight
            signal_at = process.signal(system.signum)
            ended = process.wait(END_TIMEOUT)
            sessions = asked.sessions(system.sessions)
            result = load.join(END_TIMEOUT)
        finally:
            load.stop()
    asked.await_none(system.sessions, SESSIONS_TIMEOUT)
    with system.process(url, directory) as process:
        _ask_once(process.address)
        idle_at = process.signal(system.signum)
        idle_ended = process.wait(END_TIMEOUT)
    last = result.last_answer or signal_at
    return Sample(
        system=system.name,
        answered=result.count(Outcome.ANSWERED),
        refused=result.count(Outcome.REFUSED),
        lost=result.count(Outcome.LOST),
        lost_kept=result.count(Outcome.LOST, Mode.KEEP_ALIVE),
        lost_new=result.count(Outcome.LOST, Mode.NEW),
        in_flight=in_flight,
        busy_exit=ended.code,
        # A client may read an answer a moment after the process that wrote it has gone.
        answer_to_end=max(0.0, ended.at - max(last, signal_at)) * 1000,
        busy_signal_to_end=(ended.at - signal_at) * 1000,
        idle_exit=idle_ended.code,
        idle_signal_to_end=(idle_ended.at - idle_at) * 1000,
        sessions_left=sessions,
    )


def _ask_once(address: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*address, timeout=10.0)
    try:
        connection.request("GET", "/", headers={"Connection": "close"})
        connection.getresponse().read()
    finally:
        connection.close()


def _print(console: Console, samples: list[Sample], runs: int, clients: int) -> None:
    table = Table(
        title=f"SIGTERM, {clients} busy clients asking GET /: median (least-greatest) of {runs} runs",
        title_justify="left",
    )
    table.add_column("Server")
    titles = ("Lost", "Refused 503", "Last answer → end, ms", "Idle signal → end, ms", "Exit", "Sessions at end")
    for title in titles:
        table.add_column(title, justify="right")
    for system in SYSTEMS:
        mine = [sample for sample in samples if sample.system == system.name]

        def cell(value: Callable[[Sample], float], form: str = "{:.0f}", mine: list[Sample] = mine) -> str:
            return Summary.of([value(sample) for sample in mine]).text(form)

        table.add_row(
            system.name,
            cell(lambda s: s.lost),
            cell(lambda s: s.refused),
            cell(lambda s: s.answer_to_end, "{:.1f}"),
            cell(lambda s: s.idle_signal_to_end, "{:.1f}"),
            ", ".join(sorted({str(sample.busy_exit) for sample in mine})),
            cell(lambda s: s.sessions_left),
        )
    console.print(table)
