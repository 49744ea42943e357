"""`pooldrain-compare fuzz`: a campaign, or one scenario again."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pooldrain.exit_codes import INTERRUPTED, ExitCode
from pooldrain_compare.harness.arguments import at_least

if TYPE_CHECKING:
    from rich.console import Console

TRIALS = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--trials", type=at_least(1), default=TRIALS, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", help="draw the same scenarios again (default: a new one)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one scenario that was kept, and nothing else")
    parser.add_argument(
        "--regressions",
        type=Path,
        default=Path("tests/compare/fuzz/regressions"),
        metavar="DIR",
        help="where a scenario that diverges is kept (%(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """0: no divergence; 1: one; 2: bad options; 130: interrupted."""
    from rich.console import Console

    from pooldrain_compare.harness.narrator import campaign_progress

    try:
        # Hypothesis is a development tool, which no extra brings.
        from pooldrain_compare.fuzz import campaign
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error.name} is not installed; make setup\n")
        return ExitCode.NOT_STARTED
    console = Console(highlight=False, soft_wrap=True)
    if options.replay is not None:
        try:
            scenario = campaign.load(options.replay)
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.stderr.write(f"{options.replay} is no scenario: {error}\n")
            return ExitCode.BAD_CONFIGURATION
        return _tell(console, campaign.try_out(scenario), "no divergence")

    number = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    with campaign_progress(console, f"fuzzing, seed {number}") as progress:
        task = progress.add_task("", total=options.trials)
        done = 0

        def told(so_far: int) -> None:
            nonlocal done
            done = so_far
            progress.update(task, completed=so_far)

        try:
            result = campaign.run_campaign(options.trials, number, told=told)
        except KeyboardInterrupt:
            progress.stop()
            console.print(f"interrupted: no divergence in {done} trials, seed {number}", markup=False)
            return INTERRUPTED
    if result.divergence is not None:
        path = campaign.save(result.divergence, options.regressions)
        console.print(f"{path}: replay it with --replay; it is a test from now on", markup=False)
    return _tell(console, [] if result.divergence is None else result.divergence.differences, str(result))


def _tell(console: Console, differences: Sequence[str], summary: str) -> int:
    for difference in differences:
        console.print(difference, markup=False)
    if differences and summary.startswith("no "):
        summary = f"differences: {len(differences)}"
    console.print(summary, markup=False)
    return 1 if differences else 0
