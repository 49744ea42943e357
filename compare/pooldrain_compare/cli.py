"""`pooldrain-compare`: the demo, the parity suite and the benchmarks."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psycopg

from pooldrain import __version__
from pooldrain.errors import ConfigurationError, StartupError
from pooldrain_compare.backends import BACKENDS
from pooldrain_compare.bench.results import DEFAULT_DIRECTORY
from pooldrain_compare.processes import ServerProcessError
from pooldrain_compare.scenario import CLIENTS, SECONDS

PROGRAM = "pooldrain-compare"
DEFAULT_RUNS = 10
QUICK_RUNS = 1


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit status."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command. 0: all is well; 1: it is not, or something did not start; 2: bad options; 130: interrupted."""
    before = signal.signal(signal.SIGTERM, _interrupt)  # what was started is stopped on SIGTERM, too
    sys.setswitchinterval(0.0005)  # the thread that waits for a process's end must not wait for the load's thread
    try:
        return _run(argv)
    except ConfigurationError as error:
        return _complain(str(error), 2)
    except (StartupError, ServerProcessError, OSError, psycopg.Error) as error:
        return _complain(str(error) or type(error).__name__, 1)
    except ModuleNotFoundError as error:
        return _complain(f"{error.name} is not installed; pip install 'pooldrain[compare]'", 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    return {"demo": _demo, "parity": _parity, "bench": _bench}[options.command](options)


# Imported when needed: the extra may not be installed, which is to be told in one line.


def _demo(options: argparse.Namespace) -> int:
    from pooldrain_compare.demo import DemoOptions, run_demo

    return run_demo(
        DemoOptions(
            servers=(options.server,) if options.server else tuple(BACKENDS),
            clients=options.clients,
            seconds=options.seconds,
            database_url=options.database_url,
            keep=options.keep,
        )
    )


def _parity(options: argparse.Namespace) -> int:
    from pooldrain_compare.narrator import result_console
    from pooldrain_compare.parity import ParityOptions, list_scenarios, run_parity

    if options.list:
        list_scenarios(result_console())
        return 0
    return run_parity(
        ParityOptions(
            scenarios=tuple(options.scenario),
            servers=tuple(options.server),
            database=options.database,
            database_url=options.database_url,
            keep=options.keep,
            repeat=options.repeat,
        )
    )


def _bench(options: argparse.Namespace) -> int:
    from pooldrain_compare.bench.overhead import run_overhead
    from pooldrain_compare.bench.shutdown import run_shutdown

    runs = options.runs or (QUICK_RUNS if options.quick else DEFAULT_RUNS)
    path = options.json or DEFAULT_DIRECTORY / f"{options.benchmark}.json"
    if options.benchmark == "shutdown":
        return run_shutdown(runs=runs, quick=options.quick, database_url=options.database_url, json_path=path)
    return run_overhead(runs=runs, quick=options.quick, json_path=path)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Run the backends as real processes under real load, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    shared = _Parser(add_help=False)
    shared.add_argument("--database-url", metavar="URL", help="a PostgreSQL (default: an embedded one)")

    demo = commands.add_parser(
        "demo",
        parents=[shared],
        allow_abbrev=False,
        help="SIGTERM under load, on every server, side by side",
        description="Walk through the tutorial, run mixed load, send SIGTERM in the middle of it, on each server in "
        "turn; print what became of every request, order and connection. Exit status 0 only when nothing was lost, "
        "left over, or different between the servers.",
    )
    demo.add_argument(
        "--clients", type=_at_least(2), default=CLIENTS, metavar="N", help="concurrent clients (%(default)s)"
    )
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=SECONDS,
        metavar="S",
        help="load before SIGTERM, for each server (%(default)g)",
    )
    demo.add_argument("--server", choices=tuple(BACKENDS), help="only this one (default: all, one after the other)")
    demo.add_argument("--keep", type=Path, metavar="DIR", help="keep logs, reports and transcripts there")

    parity = commands.add_parser(
        "parity",
        parents=[shared],
        allow_abbrev=False,
        help="every scenario on every server: do all drain and dispose alike?",
        description="Run each scenario of the catalogue as real processes, and compare every threaded server with the "
        "asyncio one: transcripts, answers, exit codes, what the database saw, durations. Exit status 0 only when all "
        "are identical, or differ in what is accepted with a reason. A complete run writes compare/reports/parity.md.",
    )
    parity.add_argument(
        "--scenario", action="extend", nargs="+", default=[], metavar="NAME", help="only these (see --list)"
    )
    parity.add_argument(
        "--server",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these (gunicorn, gunicorn-2-workers, waitress), and the asyncio server each is compared with",
    )
    parity.add_argument("--database", choices=("postgresql", "sqlite"), help="only on this one (default: both)")
    parity.add_argument("--list", action="store_true", help="show the catalogue and run nothing")
    parity.add_argument("--keep", type=Path, metavar="DIR", help="keep logs, reports, transcripts and facts there")
    parity.add_argument("--repeat", type=_at_least(1), default=1, metavar="N", help="so many rounds (%(default)s)")

    bench = commands.add_parser("bench", allow_abbrev=False, help="benchmarks, each answering one question")
    benchmarks = bench.add_subparsers(dest="benchmark", required=True, metavar="NAME", parser_class=_Parser)
    measured = _Parser(add_help=False)
    measured.add_argument("--runs", type=_at_least(1), metavar="N", help=f"runs of each system ({DEFAULT_RUNS})")
    measured.add_argument("--quick", action="store_true", help=f"a smoke run: short, {QUICK_RUNS} run")
    measured.add_argument(
        "--json", type=Path, metavar="FILE", help=f"where the samples are written ({DEFAULT_DIRECTORY}/NAME.json)"
    )
    benchmarks.add_parser(
        "shutdown",
        parents=[shared, measured],
        allow_abbrev=False,
        help="what a SIGTERM costs, with pooldrain and without",
        description="Lost requests, last answer to process end, idle signal to process end: each server with pooldrain "
        "and the same server run plainly, interleaved.",
    )
    benchmarks.add_parser(
        "overhead",
        parents=[measured],
        allow_abbrev=False,
        help="what a checkout and a request cost more",
        description="Checkout and checkin through the ledger, and requests through the gate, against bare ones.",
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {number}")
        return number

    return whole


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}") from None
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 3600 seconds, not {text}")
    return seconds


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _complain(message: str, status: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {message}\n")
    return status
