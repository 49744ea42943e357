"""The command `pooldrain`: what is asked of a service from outside."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pooldrain import __version__
from pooldrain.runtime.options.parser import Parser
from pooldrain.runtime.process.exit import run_cli
from pooldrain.runtime.process.missing import require_posix

PROGRAM = "pooldrain"


def main() -> NoReturn:
    """Run the command, and leave with its exit code."""
    require_posix(PROGRAM)
    run_cli(PROGRAM, _run)


def _run() -> int:
    from pooldrain.runtime import plan

    parser = Parser(prog=PROGRAM, description="Ask about services that drain their pools.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    plan.add_arguments(
        commands.add_parser(
            "plan",
            allow_abbrev=False,
            help="does a fleet fit its database?",
            description="The connection budget: what a fleet may open, in a rolling restart as well, and what its "
            "PostgreSQL has room for. Takes the service's own options too (--workers, --pool-size, --max-overflow, "
            "--drain-timeout, ...; see pooldrain-sync --help), its POOLDRAIN_ variables and its configuration file. "
            "Exit code 6 if it does not fit.",
        )
    )
    options, service = parser.parse_known_args(sys.argv[1:])
    return plan.run(options, service, os.environ)
