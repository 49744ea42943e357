"""`python -m pooldrain_compare.chaos`: a campaign of trials, or one of them again."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pooldrain.runtime.process.missing import told_if_missing

with told_if_missing("chaos", "compare"):
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from pooldrain_compare.chaos import campaign
    from pooldrain_compare.harness.environment import artefacts
    from pooldrain_compare.harness.narrator import result_console

TRIALS = 100
JOBS = 2
TOLD_EVERY = 25  # trials, where there is no terminal to show a bar


def main(argv: Sequence[str] | None = None) -> int:
    """0: no invariant was broken; 1: one was; 2: bad options; 130: interrupted."""
    options = _parser().parse_args(argv)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    numbers = range(1, options.trials + 1) if options.only is None else [options.only]
    console = result_console()
    columns = (TextColumn("chaos, seed {task.fields[seed]}"), BarColumn(), MofNCompleteColumn())
    with artefacts(options.keep) as files:
        files.keep = False
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True
        ) as progress:
            task = progress.add_task("", total=len(numbers), seed=seed)

            def told(verdict: campaign.Verdict) -> None:
                progress.advance(task)
                done = int(progress.tasks[task].completed)
                if not console.is_terminal and done % TOLD_EVERY == 0:
                    console.print(f"{done} of {len(numbers)} trials of seed {seed} done", markup=False)
                if verdict.broken:
                    files.keep = True
                    campaign.tell_broken(console, verdict, files.path)

            try:
                result = campaign.run_campaign(
                    seed, numbers, told, directory=files.path, jobs=options.jobs, keep=options.keep is not None
                )
            except KeyboardInterrupt:
                progress.stop()
                console.print(f"interrupted: seed {seed}", markup=False)
                return 130
        campaign.tell(console, result)
    return 1 if result.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pooldrain_compare.chaos",
        description="Draw services, workloads, faults of the database and signals, run them, and check what must hold.",
        allow_abbrev=False,
    )
    parser.add_argument("--trials", type=_positive, default=TRIALS, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", help="draw the same trials again (default: new ones)")
    parser.add_argument("--only", type=_positive, metavar="K", help="only trial K of the seed")
    parser.add_argument("--jobs", type=_positive, default=JOBS, metavar="N", help="trials at a time (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the artefacts of all trials there")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped on SIGTERM, too
    sys.exit(main())
