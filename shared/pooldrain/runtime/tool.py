"""The command `pooldrain`: what is asked of a service from outside."""

from __future__ import annotations

import os
import sys
import threading
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
    look = commands.add_parser(
        "top",
        allow_abbrev=False,
        help="the live page of a service, in a terminal",
        description="Show who holds which connection now, what is in flight, and how far a drain is; until Ctrl+C. "
        "Exit code 1 if the service could not be seen. A token is taken from POOLDRAIN_ADMIN_TOKEN, or from the URL.",
    )
    look.add_argument("URL", help="of its admin listener: http://127.0.0.1:8001")
    look.add_argument("--once", action="store_true", help="show it once, and leave")
    options, service = parser.parse_known_args(sys.argv[1:])
    if options.command == "plan":
        return plan.run(options, service, os.environ)
    if service:
        parser.error(f"unexpected argument {service[0]}")
    return _top(options.URL, once=options.once)


def _top(url: str, *, once: bool) -> int:
    from pooldrain.admin.top import top
    from pooldrain.runtime.process.signals import SignalWatch

    ended, watch = threading.Event(), SignalWatch()
    watch.install()
    watch.listen(ended.set)
    return top(url, once=once, ended=ended)
