"""What does a SIGTERM cost? Ours and every baseline, each stopped while busy, idle, with a hung request, with leaks.

Busy: when the signal comes, clients without think time are asking, every second one of them on a kept connection.
In every other case nothing is going on but what the case is about.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from pooldrain_compare.bench import bare
from pooldrain_compare.bench.asking import END_TIMEOUT, ask
from pooldrain_compare.bench.contenders import CONTENDERS, OURS, PAIRED, PARTNERS, Contender, server_infos
from pooldrain_compare.bench.recorder import Bench, Point, rounds
from pooldrain_compare.bench.results import Results, Unit
from pooldrain_compare.harness.load import LoadClient, LoadResult, Mode, Outcome, constant
from pooldrain_compare.harness.processes import Ended, ServerProcess, ServerProcessError

QUESTION = "What does a SIGTERM cost: requests, time, connections?"
LOOK_TIMEOUT = 0.1  # a database session ends a moment after its client; so long it may take before it counts as left
SETTLE_TIMEOUT = 3.0
HANGS_MS = 600_000


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    runs: int
    clients: int
    load_seconds: float  # before the signal
    leaks: int
    bound_seconds: int  # what servers are told to give a hung request, where they can be told
    every_system: bool  # or a pair alone


FULL = Size(runs=15, clients=40, load_seconds=0.4, leaks=5, bound_seconds=1, every_system=True)
QUICK = replace(FULL, runs=1, clients=8, load_seconds=0.2, every_system=False)

_QUICK_SYSTEMS = ("pooldrain-gunicorn", "plain-gunicorn")
BARE = "idle, a bare process of its size"
_SIGINT_SYSTEMS = ("pooldrain-waitress", "plain-waitress")


@dataclass(frozen=True, slots=True)
class Case:
    """One way to be stopped."""

    name: str
    systems: tuple[str, ...]
    stop: Callable[[Bench, Size, str, str], None]  # measures one run of one system in the case of this name


def measure(bench: Bench, *, runs: int | None) -> Results:
    """Measure everything."""
    size = QUICK if bench.quick else FULL
    size = replace(size, runs=runs or size.runs)
    plan = [step for case in cases(size) for step in _steps(case)]
    total = size.runs * len(plan)
    for number, (this, (case, name)) in enumerate(rounds(plan, size.runs)):
        bench.progress(f"run {this + 1} of {size.runs}: {case.name}, {name}", number / total)
        try:
            case.stop(bench, size, case.name, name)
        except (ServerProcessError, TimeoutError) as error:
            if name in PARTNERS:  # ours
                raise
            reason = str(error).splitlines()[0]
            bench.recorder.note(Point(case.name, name, "signal to exit", "ms"), f"run {this + 1}: {reason}")
            bench.witness.end_sessions(CONTENDERS[name].sessions)
    bench.progress("done", 1.0)
    return bench.results("shutdown", QUESTION, size, server_infos())


def _steps(case: Case) -> list[tuple[Case, str]]:
    return [(case, name) for name in case.systems]


def cases(size: Size) -> list[Case]:
    """What is measured, and of whom."""
    everybody = PAIRED if size.every_system else _QUICK_SYSTEMS
    return [
        Case("busy, GET /", everybody, partial(_busy, target="/")),
        Case("busy, 50 ms query", everybody, partial(_busy, target="/work?ms=50")),
        Case("idle", everybody, _idle),
        Case(BARE, OURS if size.every_system else OURS[:1], _bare),
        Case("hung request", everybody, _hung),
        Case("5 leaked connections", everybody, _leaky),
        # The only signal that plain waitress handles.
        Case(
            "busy, GET /, SIGINT",
            _SIGINT_SYSTEMS if size.every_system else (),
            partial(_busy, target="/", signum=signal.SIGINT),
        ),
    ]


def _busy(
    bench: Bench, size: Size, case: str, name: str, *, target: str, signum: signal.Signals = signal.SIGTERM
) -> None:
    contender = CONTENDERS[name]
    with contender.process(bench.url, bench.directory) as process:
        load = LoadClient(process.address, constant(target), clients=size.clients).start()
        try:
            time.sleep(size.load_seconds)
            signal_at = process.signal(signum)
            ended = process.wait(END_TIMEOUT)
            left = _left(bench, contender)
            result = load.join(END_TIMEOUT)
        finally:
            load.stop()
    _record_requests(bench, case, name, result, signal_at)
    last = result.last_answer or signal_at
    # A client may read an answer a moment after the process that wrote it has gone.
    answer_to_exit = max(0.0, ended.at - max(last, signal_at))
    _record(bench, case, name, "last answer to exit", "ms", answer_to_exit * 1000)
    _record_end(bench, case, name, ended, signal_at, left)


def _idle(bench: Bench, size: Size, case: str, name: str) -> None:
    contender = CONTENDERS[name]
    with contender.process(bench.url, bench.directory) as process:
        ask(process.address, "/db-test")
        _stop_and_record(bench, case, name, contender, process)


def _bare(bench: Bench, size: Size, case: str, name: str) -> None:
    _record(bench, case, name, "signal to exit", "ms", bare.milliseconds(bench, name))


def _leaky(bench: Bench, size: Size, case: str, name: str) -> None:
    contender = CONTENDERS[name]
    with contender.process(bench.url, bench.directory) as process:
        for _ in range(size.leaks):
            ask(process.address, "/db-test-leak")
        _stop_and_record(bench, case, name, contender, process)


def _hung(bench: Bench, size: Size, case: str, name: str) -> None:
    contender = CONTENDERS[name]
    with contender.process(bench.url, bench.directory, bound=size.bound_seconds) as process:
        load = LoadClient(process.address, constant(f"/work?ms={HANGS_MS}"), clients=1).start()
        try:
            bench.witness.await_running(contender.sessions, 1, END_TIMEOUT)
            load.stop()  # after this request
            signal_at = _stop_and_record(bench, case, name, contender, process)
            result = load.join(END_TIMEOUT)
        finally:
            load.stop()
    _record_requests(bench, case, name, result, signal_at)


def _stop_and_record(bench: Bench, case: str, name: str, contender: Contender, process: ServerProcess) -> float:
    signal_at = process.signal()
    ended = process.wait(END_TIMEOUT)
    _record_end(bench, case, name, ended, signal_at, _left(bench, contender))
    return signal_at


def _left(bench: Bench, contender: Contender) -> int:
    """Connections that the service left open on the server; ended now, for the next run's sake."""
    left = bench.witness.await_none(contender.sessions, LOOK_TIMEOUT).finally_
    if left:
        bench.witness.end_sessions(contender.sessions)
        bench.witness.await_none(contender.sessions, SETTLE_TIMEOUT)
    return left


def _record_end(bench: Bench, case: str, name: str, ended: Ended, signal_at: float, left: int) -> None:
    _record(bench, case, name, "signal to exit", "ms", (ended.at - signal_at) * 1000)
    _record(bench, case, name, "connections left", "connections", left)
    bench.recorder.note(Point(case, name, "signal to exit", "ms"), f"exit code {ended.code}")
    if ended.stragglers:
        bench.recorder.note(Point(case, name, "signal to exit", "ms"), "a process of its group outlived it")


def _record_requests(bench: Bench, case: str, name: str, result: LoadResult, signal_at: float) -> None:
    """What became of the requests; answers and refusals since the signal only, before it there is nothing to see."""
    since = replace(result, exchanges=[e for e in result.exchanges if e.ended_at > signal_at])
    _record(bench, case, name, "lost", "requests", result.count(Outcome.LOST))
    cut = since.statuses.get(504, 0)  # told that it was, which is no answer that anybody has asked for
    _record(bench, case, name, "refused", "requests", since.count(Outcome.REFUSED) + cut)
    _record(bench, case, name, "answered", "requests", since.count(Outcome.ANSWERED) - cut)
    for status, number in sorted(since.statuses.items()):
        if status not in (503, 504) and not 200 <= status < 300:
            bench.recorder.note(Point(case, name, "answered", "requests"), f"status {status}: {number}")
    if result.clients > 1:
        _record(bench, case, name, "lost on kept connections", "requests", result.count(Outcome.LOST, Mode.KEEP_ALIVE))
        _record(bench, case, name, "lost on new connections", "requests", result.count(Outcome.LOST, Mode.NEW))


def _record(bench: Bench, case: str, name: str, metric: str, unit: Unit, sample: float) -> None:
    bench.recorder.add(Point(case, name, metric, unit), sample)
