"""`pooldrain-compare inside`: what it costs to look inside, as ratios of one run, in one table."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.arguments import at_least, seconds

if TYPE_CHECKING:
    from rich.table import Table

    from pooldrain_compare.inside.looking import Looked

ROUNDS, SECONDS = 9, 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--rounds", type=at_least(1), default=ROUNDS, metavar="N", help="of slices (%(default)s)")
    parser.add_argument("--seconds", type=seconds, default=SECONDS, metavar="S", help="of a slice (%(default)g)")


def run(options: argparse.Namespace) -> int:
    """Measure, and print it."""
    from pooldrain_compare.bench.contenders import OURS
    from pooldrain_compare.harness.environment import artefacts, database
    from pooldrain_compare.harness.narrator import result_console
    from pooldrain_compare.inside.looking import look

    console = result_console()
    say = partial(console.print, markup=False)
    with artefacts(None) as files, database(options.database_url, say) as url:
        found = look(OURS, url, files.path, rounds=options.rounds, seconds=options.seconds, say=say)
    console.print(table(found))
    return ExitCode.DRAINED


def table(found: Sequence[Looked]) -> Table:
    """A row for each server and case: requests a second without, and the ratios to that."""
    from rich.table import Table

    from pooldrain_compare.inside.looking import SCRAPED, UNREAD, WITHOUT

    shown = Table(title="What it costs to look inside", title_justify="left")
    for column in ("server", "case", "without, 1/s", "with the listener", "scraped each second"):
        shown.add_column(column)
    for each in found:
        without = f"{statistics.median(each.samples[WITHOUT]):.0f}"
        ratios = (f"{each.ratio(kind):.3f} times" for kind in (UNREAD, SCRAPED))
        shown.add_row(each.server, each.case, without, *ratios)
    return shown
