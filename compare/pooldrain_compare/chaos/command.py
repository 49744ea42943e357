"""`pooldrain-compare chaos`: a campaign of trials, or one of them again."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from pooldrain.exit_codes import INTERRUPTED
from pooldrain_compare.harness.arguments import at_least

if TYPE_CHECKING:
    from pooldrain_compare.chaos.campaign import TrialResult

TRIALS = 100
JOBS = 2
TOLD_EVERY = 25  # trials, where there is no terminal to show a bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--trials", type=at_least(1), default=TRIALS, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", help="draw the same trials again (default: new ones)")
    parser.add_argument("--only", type=at_least(1), metavar="K", help="only trial K of the seed")
    parser.add_argument("--jobs", type=at_least(1), default=JOBS, metavar="N", help="trials at a time (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the artefacts of all trials there")


def run(options: argparse.Namespace) -> int:
    """0: no invariant was broken; 1: one was; 2: bad options; 130: interrupted."""
    from pooldrain_compare.chaos import campaign
    from pooldrain_compare.harness.environment import artefacts
    from pooldrain_compare.harness.narrator import campaign_progress, result_console

    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    numbers = range(1, options.trials + 1) if options.only is None else [options.only]
    console = result_console()
    with artefacts(options.keep) as files:
        files.keep = False
        with campaign_progress(console, f"chaos, seed {seed}") as progress:
            task = progress.add_task("", total=len(numbers))

            def told(result: TrialResult) -> None:
                progress.advance(task)
                done = int(progress.tasks[task].completed)
                if not console.is_terminal and done % TOLD_EVERY == 0:
                    console.print(f"{done} of {len(numbers)} trials of seed {seed} done", markup=False)
                if result.broken:
                    files.keep = True
                    campaign.tell_broken(console, result, files.path)

            try:
                result = campaign.run_campaign(
                    seed, numbers, told, directory=files.path, jobs=options.jobs, keep=options.keep is not None
                )
            except KeyboardInterrupt:
                progress.stop()
                console.print(f"interrupted: seed {seed}", markup=False)
                return INTERRUPTED
        campaign.tell(console, result)
    return 1 if result.broken else 0
