"""`pooldrain-compare fleet`: rolling restarts of every contender behind every proxy, and one table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.fleet.contenders import CONTENDERS
from pooldrain_compare.fleet.proxies import PROXIES
from pooldrain_compare.harness.arguments import at_least

if TYPE_CHECKING:
    from rich.table import Table

    from pooldrain_compare.fleet.rolling import FleetResult

ROUNDS = 3
JOBS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--rounds", type=at_least(1), default=ROUNDS, metavar="N", help="of restarts (%(default)s)")
    for flag, there_are in (("--server", list(CONTENDERS)), ("--proxy", list(PROXIES))):
        told = f"only these: {', '.join(there_are)}"
        parser.add_argument(flag, nargs="+", choices=there_are, default=there_are, metavar="NAME", help=told)
    parser.add_argument("--jobs", type=at_least(1), default=JOBS, metavar="N", help="fleets at a time (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and configurations there")


def run(options: argparse.Namespace) -> int:
    """0: nobody noticed a restart of ours; 1: somebody did, or something did not start."""
    from pooldrain_compare.harness.narrator import result_console

    console = result_console()
    results = restart_fleets(
        options.server,
        options.proxy,
        rounds=options.rounds,
        jobs=options.jobs,
        url=options.database_url,
        keep=options.keep,
    )
    console.print(table(results))
    failed = [result for result in results if result.contender.ours and not result.clean]
    for result in failed:
        told = "; ".join(result.reasons) or "see the table"
        console.print(f"{result.contender.name} behind {result.proxy}: {told}", markup=False)
    verdict = "somebody noticed a restart of ours" if failed else "nobody noticed a restart of ours"
    console.print(f"Verdict: {verdict}", markup=False)
    return ExitCode.NOT_STARTED if failed else ExitCode.DRAINED


def restart_fleets(
    servers: Sequence[str], proxies: Sequence[str], *, rounds: int, jobs: int, url: str | None, keep: Path | None = None
) -> list[FleetResult]:
    """Rolling restarts of these, `jobs` at a time; their results in this order. Raises StartupError and others."""
    from pooldrain_compare.fleet.rolling import restart_all
    from pooldrain_compare.fleet.table import drop_table, make_table
    from pooldrain_compare.harness.environment import artefacts, database
    from pooldrain_compare.harness.narrator import result_console

    pairs = [(CONTENDERS[server], PROXIES[proxy]) for proxy in proxies for server in servers]
    say = partial(result_console().print, markup=False)
    with artefacts(keep) as files, database(url, say) as found:
        make_table(found)
        try:
            with ThreadPoolExecutor(jobs) as pool:
                futures = [pool.submit(restart_all, *pair, found, files.path, rounds) for pair in pairs]
                return [future.result() for future in futures]
        finally:
            drop_table(found)


def table(results: Sequence[FleetResult]) -> Table:
    """What the clients saw."""
    from rich.table import Table

    told = Table(title="Rolling restarts, each instance in turn, under load")
    for heading in ("proxy", "server", "restarts", "requests", "not 2xx", "lost", "executed twice", "exit codes"):
        told.add_column(heading, justify="left" if heading in ("proxy", "server") else "right")
    for result in results:
        numbers = (result.restarts, result.requests, result.not_2xx, result.lost, result.twice)
        codes, style = " ".join(map(str, result.exit_codes)), "bold" if result.contender.ours else ""
        told.add_row(result.proxy, result.contender.name, *map(str, numbers), codes, style=style)
    return told
