"""`pooldrain-compare demo`: every server takes real load, gets SIGTERM in the middle of it, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from pooldrain_compare.demo import expectations, observe
from pooldrain_compare.demo.observe import DemoRun
from pooldrain_compare.demo.verdict import Verdict, reach_verdict
from pooldrain_compare.harness.environment import Artefacts, artefacts, database, witness
from pooldrain_compare.harness.load import Mode, Outcome
from pooldrain_compare.harness.narrator import Narrator, result_console
from pooldrain_compare.harness.processes import ServerProcessError
from pooldrain_compare.harness.servers import BACKENDS, SERVERS


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo is asked to do. `seconds`: load before the signal, for each server."""

    servers: tuple[str, ...] = tuple(server.name for server in SERVERS)
    clients: int = observe.CLIENTS
    seconds: float = observe.SECONDS
    database_url: str | None = None
    keep: Path | None = None


def run_demo(options: DemoOptions) -> int:
    """Run it and print the table; the exit status is 0 when nothing was lost, left over or different."""
    console = result_console()
    observations: list[DemoRun] = []
    broken: dict[str, str] = {}
    with artefacts(options.keep) as files:
        with Narrator() as narrator:
            if options.database_url is None:
                narrator.say("PostgreSQL: starting the embedded server")
            with database(options.database_url, narrator.say) as url, witness(url) as asked:
                for name in options.servers:
                    job = narrator.job(name)
                    try:
                        observation = observe.run(
                            BACKENDS[name],
                            url,
                            files.path,
                            asked,
                            job,
                            clients=options.clients,
                            seconds=options.seconds,
                        )
                    except (ServerProcessError, OSError, HTTPException, psycopg.Error) as error:
                        broken[name] = str(error) or type(error).__name__
                        job("failed", 1.0)
                        continue
                    observations.append(observation)
                    _write_result(files.path / f"{name}.result.json", observation)
                    job(f"done, exit code {observation.ended.code}", 1.0)
        result = reach_verdict(observations, broken)
        files.keep = options.keep is not None or not result.good
        print_result(console, observations, result, files)
    return 0 if result.good else 1


def print_result(console: Console, observations: Sequence[DemoRun], result: Verdict, files: Artefacts) -> None:
    """Print the table, what went wrong, and as the last line the verdict."""
    if observations:
        console.print(_table(observations))
    for complaint in result.complaints:
        console.print(complaint, markup=False, soft_wrap=True)
    if files.keep:
        console.print(f"Logs, reports and transcripts are in {files.path}", markup=False, soft_wrap=True)
    style = "bold green" if result.good else "bold red"
    console.print(f"Verdict: {result.sentence}", style=style, markup=False, soft_wrap=True)


def _table(observations: Sequence[DemoRun]) -> Table:
    table = Table(title="Drain and dispose under load", title_justify="left", show_lines=False)
    table.add_column("")
    for observation in observations:
        table.add_column(observation.backend.name, justify="right", overflow="fold")
    for title, show in _ROWS:
        table.add_row(title, *(show(observation) for observation in observations))
    for phase in expectations.PHASES:
        cells = (_milliseconds(expectations.phase_seconds(o).get(phase)) for o in observations)
        table.add_row(f"  {phase}", *cells)
    for title, show in _LAST_ROWS:
        table.add_row(title, *(show(observation) for observation in observations))
    return table


Show = Callable[[DemoRun], str]


def _outcome(outcome: Outcome, mode: Mode | None = None) -> Show:
    return lambda o: str(o.load.count(outcome, mode))


def _in_flight(o: DemoRun) -> str:
    return f"{expectations.in_flight(o)}, {'all' if expectations.in_flight_answered(o) else 'NOT all'} answered 2xx"


def _stored(o: DemoRun) -> str:
    wrong = (*o.orders.missing, *o.orders.repeated, *o.orders.unwanted)
    return f"{o.orders.stored}, each once" if not wrong else f"{o.orders.stored}, {len(wrong)} wrong"


def _leaks(o: DemoRun) -> str:
    sites = expectations.call_sites(o)
    found = [
        "\n".join((f"{holder} × {count}", rule, *map(_short_site, sites.get(holder, ()))))
        for (holder, rule), count in sorted(expectations.leaks(o).items())
    ]
    return "\n".join(found) or "none"


def _short_site(site: str) -> str:
    """`/long/path/app.py:12 in f` as `app.py:12 in f`."""
    return site.rpartition("/")[2]


def _left(o: DemoRun) -> str:
    if o.left.at_exit and not o.left.finally_:
        return f"0 (after {_milliseconds(o.left.seconds)})"
    return str(o.left.finally_)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{max(0.0, seconds) * 1000:.1f} ms"


_ROWS: tuple[tuple[str, Show], ...] = (
    ("Tutorial's outputs", lambda o: "as printed" if all(page.as_printed for page in o.pages) else "different"),
    ("Requests answered", _outcome(Outcome.ANSWERED)),
    ("  on kept connections", _outcome(Outcome.ANSWERED, Mode.KEEP_ALIVE)),
    ("  on new connections", _outcome(Outcome.ANSWERED, Mode.NEW)),
    ("Requests refused, 503", _outcome(Outcome.REFUSED)),
    ("Requests lost", _outcome(Outcome.LOST)),
    ("In flight at SIGTERM", _in_flight),
    ("Orders acknowledged", lambda o: str(o.orders.acknowledged)),
    ("Orders in the database", _stored),
    ("Leaks by name", _leaks),
    ("Connections left on the server", _left),
    ("SIGTERM → process end", lambda o: _milliseconds(o.ended.at - o.signal_at)),
)
_LAST_ROWS: tuple[tuple[str, Show], ...] = (
    ("Last answer → process end", lambda o: _milliseconds(o.answer_to_end)),
    ("Exit code", lambda o: str(o.ended.code)),
)


def _write_result(path: Path, o: DemoRun) -> None:
    result: dict[str, Any] = {
        "server": o.backend.name,
        "requests": {outcome.value: o.load.count(outcome) for outcome in Outcome},
        "statuses": {str(status): count for status, count in sorted(o.load.statuses.items())},
        "reasons": dict(o.load.reasons),
        "stale_connections": o.load.stale,
        "in_flight_seen_by_client": o.in_flight_seen,
        "in_flight_at_signal": expectations.in_flight(o),
        "orders": {"acknowledged": o.orders.acknowledged, "stored": o.orders.stored},
        "sessions_left": {"at_exit": o.left.at_exit, "finally": o.left.finally_},
        "seconds": {"signal_to_end": o.ended.at - o.signal_at, "last_answer_to_end": o.answer_to_end},
        "exit_code": o.ended.code,
        "facts": {name: repr(value) for name, value in expectations.facts(o).items()},
        "failures": expectations.failures(o),
        "lost": [f"{e.route} {e.mode.value} {e.reason}" for e in o.load.lost],
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
