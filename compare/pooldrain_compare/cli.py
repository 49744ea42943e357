"""`pooldrain-compare`: the commands demo, parity, fuzz, chaos, fleet, inside, bench and report."""

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
from pooldrain.exit_codes import INTERRUPTED, ExitCode
from pooldrain.printable import printable
from pooldrain.runtime.options.parser import Parser
from pooldrain_compare.bench.results import BENCHMARKS, DEFAULT_DIRECTORY, QUICK_DIRECTORY
from pooldrain_compare.chaos import command as chaos
from pooldrain_compare.demo.observe import CLIENTS, SECONDS
from pooldrain_compare.fleet import command as fleet
from pooldrain_compare.fuzz import command as fuzz
from pooldrain_compare.harness.arguments import at_least, seconds
from pooldrain_compare.harness.processes import ServerProcessError
from pooldrain_compare.harness.servers import SERVERS
from pooldrain_compare.inside import command as inside

PROGRAM = "pooldrain-compare"


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
        return _complain(str(error), ExitCode.BAD_CONFIGURATION)
    except (StartupError, ServerProcessError, OSError, psycopg.Error) as error:
        return _complain(str(error) or type(error).__name__, ExitCode.NOT_STARTED)
    except ModuleNotFoundError as error:
        return _complain(f"{error.name} is not installed; pip install 'pooldrain[compare]'", ExitCode.NOT_STARTED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    return _COMMANDS[options.command](options)


# Imported when needed: the extra may not be installed, which is to be told in one line.


def _demo(options: argparse.Namespace) -> int:
    from pooldrain_compare.demo.command import DemoOptions, run_demo

    return run_demo(
        DemoOptions(
            servers=(options.server,) if options.server else tuple(server.name for server in SERVERS),
            clients=options.clients,
            seconds=options.seconds,
            database_url=options.database_url,
            keep=options.keep,
        )
    )


def _parity(options: argparse.Namespace) -> int:
    from pooldrain_compare.harness.narrator import result_console
    from pooldrain_compare.parity.cases import ParityOptions
    from pooldrain_compare.parity.command import run_parity
    from pooldrain_compare.parity.table import list_scenarios

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
    from pooldrain_compare.bench.run import BenchOptions, run_bench

    return run_bench(
        BenchOptions(
            benchmarks=(options.benchmark,) if options.benchmark else BENCHMARKS,
            runs=options.runs,
            quick=options.quick,
            output=options.output,
            database_url=options.database_url,
        )
    )


def _report(options: argparse.Namespace) -> int:
    from pooldrain_compare.harness.narrator import result_console
    from pooldrain_compare.reports.writing import write_reports

    written = write_reports()
    result_console().print(f"Written: {written[0]}, {written[1]}, {len(written) - 2} plots", markup=False)
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "parity": _parity,
    "fuzz": fuzz.run,
    "chaos": chaos.run,
    "fleet": fleet.run,
    "inside": inside.run,
    "bench": _bench,
    "report": _report,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Run the backends as real processes under real load, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    shared = Parser(add_help=False)
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
        "--clients", type=at_least(2), default=CLIENTS, metavar="N", help="concurrent clients (%(default)s)"
    )
    demo.add_argument(
        "--seconds",
        type=seconds,
        default=SECONDS,
        metavar="S",
        help="load before SIGTERM, for each server (%(default)g)",
    )
    demo.add_argument(
        "--server",
        choices=tuple(server.name for server in SERVERS),
        help="only this one (default: all, one after the other)",
    )
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
    parity.add_argument("--repeat", type=at_least(1), default=1, metavar="N", help="so many rounds (%(default)s)")

    fuzz.add_arguments(
        commands.add_parser(
            "fuzz",
            allow_abbrev=False,
            help="scenarios at random, both shells in this process: does anything differ?",
            description="Draw scenarios, run both shells on each in this process, and compare all that can be seen.",
        )
    )
    chaos.add_arguments(
        commands.add_parser(
            "chaos",
            allow_abbrev=False,
            help="services, load and faults at random: does everything hold that must?",
            description="Draw services, workloads, faults of the database and signals, run them, and check what must "
            "hold.",
        )
    )

    fleet.add_arguments(
        commands.add_parser(
            "fleet",
            parents=[shared],
            allow_abbrev=False,
            help="rolling restarts behind HAProxy and nginx: does a client notice?",
            description="Three instances of each server behind each proxy, with the recipes of deploy/, under load; "
            "every instance restarted in turn. Exit status 0 only when no client noticed a restart of ours, and "
            "nothing was executed twice.",
        )
    )
    inside.add_arguments(
        commands.add_parser(
            "inside",
            parents=[shared],
            allow_abbrev=False,
            help="what it costs to look inside: without the admin listener, with it, and scraped each second",
            description="Put slices of load on each server, in turn without the admin listener, with it, and with it "
            "scraped each second, and print the ratios. Takes 4 minutes; nothing else should run meanwhile.",
        )
    )

    bench = commands.add_parser(
        "bench",
        parents=[shared],
        allow_abbrev=False,
        help="benchmarks, each answering one question",
        description="shutdown: what a SIGTERM costs, ours and every baseline. overhead: what a checkout and a request "
        "cost more. throughput: how fast each backend is, and how far. scale: how drain, dispose, leak scan and cancel "
        "grow. All: 90 minutes, in which nothing else should run on this machine.",
    )
    bench.add_argument(
        "benchmark", nargs="?", choices=BENCHMARKS, metavar="NAME", help=f"only this one: {', '.join(BENCHMARKS)}"
    )
    bench.add_argument(
        "--runs", type=at_least(1), metavar="N", help="rounds of each benchmark (default: its own number)"
    )
    bench.add_argument("--quick", action="store_true", help="a smoke run: short, and its numbers mean nothing")
    bench.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where the JSON files are written ({DEFAULT_DIRECTORY}; with --quick {QUICK_DIRECTORY})",
    )

    commands.add_parser(
        "report",
        allow_abbrev=False,
        help="the reports, from what the benchmarks measured",
        description="Write compare/reports/index.html, README.md and plots from compare/reports/data/*.json. "
        "Run it in the project's directory. The same data give the same files.",
    )
    return parser


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _complain(message: str, status: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {printable(message)}\n")
    return status
