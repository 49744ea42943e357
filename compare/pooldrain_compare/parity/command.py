"""`pooldrain-compare parity`: every scenario on every server, and the proof that all do the same, or the difference.

Each threaded server is compared with the asyncio one that has as many workers. Services run two at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from pooldrain_compare.harness.environment import artefacts, database
from pooldrain_compare.harness.narrator import Narrator, result_console
from pooldrain_compare.parity.cases import CaseResult, ParityOptions, plan, run_cases, stage
from pooldrain_compare.parity.table import accepted_entries, markdown, print_verdicts, worst_of

REPORT = Path("compare/reports/parity.md")


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
        REPORT.write_text(markdown(worst_of(rounds)), encoding="utf-8")
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
    accepted = len(accepted_entries(worst_of(rounds)))
    but = "" if not accepted else f", but for {accepted} accepted difference{'s' * (accepted > 1)}"
    console.print(f"Verdict: identical{but}; {ran}", style="bold green", markup=False, soft_wrap=True)
