"""Which backend should I run? Requests per second and waiting times against concurrency, and where the pool saturates.

All servers run at the same time, each with a pool of its own on the same database, and one at a time gets load: a slice
of it, on kept connections, without think time. The client shares the machine with the server and the database.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import psutil

from pooldrain_compare.baselines import THREADS
from pooldrain_compare.bench.asking import ask
from pooldrain_compare.bench.contenders import CONTENDERS, server_infos
from pooldrain_compare.bench.recorder import Bench, Point, rounds
from pooldrain_compare.bench.results import Results, Unit
from pooldrain_compare.harness.load import Exchange, LoadClient, Mode, Outcome, Request, Workload, constant, order
from pooldrain_compare.harness.processes import ServerProcess

QUESTION = "Which backend should I run: how fast is each, and how far?"
SYSTEMS = (
    *("pooldrain-gunicorn", "plain-gunicorn", "pooldrain-waitress", "plain-waitress"),
    *("granian-wsgi", "cheroot", "pooldrain-uvicorn", "plain-uvicorn", "granian-asgi"),
)
THREADED = ("pooldrain-gunicorn", "plain-gunicorn")  # the ones whose threads are varied
DEFAULT_THREADS = THREADS  # ours; the baselines are given as many
ORDERS = "bench-"  # what ids of orders begin with
NOTHING, READ, QUERY, WRITE = "nothing", "read", "5 ms query", "write"
BY_CLIENTS, BY_THREADS = "clients", "threads"
MEMORY = "memory after load"
JOIN_TIMEOUT = 60.0
LOOK_TIMEOUT = 2.0
# These serve as many kept connections as they have threads, and let the others wait: with more, their latency would be
# that of the few.
ONE_CONNECTION_A_THREAD = ("cheroot",)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    runs: int
    seconds: float  # of a slice of load that count
    warm_seconds: float  # and before it, that do not
    clients: tuple[int, ...]
    threads: tuple[int, ...]  # of the threaded servers, at `thread_clients`
    thread_clients: int
    systems: tuple[str, ...] = SYSTEMS
    pool_size: int = 10
    max_overflow: int = 20


FULL = Size(
    runs=5,
    seconds=0.5,
    warm_seconds=0.1,
    clients=(1, 8, 64, 256),
    threads=(4, 16, THREADS, 64),
    thread_clients=64,
)
QUICK = replace(
    FULL,
    runs=1,
    seconds=0.15,
    warm_seconds=0.05,
    clients=(8,),
    threads=(4,),
    thread_clients=16,
    systems=("pooldrain-gunicorn", "plain-gunicorn", "pooldrain-uvicorn", "plain-uvicorn"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One slice of load. `threads`: None where it is the number of clients that is varied."""

    case: str
    system: str
    clients: int
    threads: int | None = None

    @property
    def server(self) -> tuple[str, int]:
        """Which of the running servers it is for."""
        return self.system, self.threads or THREADS

    def point(self, metric: str, unit: Unit) -> Point:
        """Where a number of it goes."""
        x, x_name = (self.clients, BY_CLIENTS) if self.threads is None else (self.threads, BY_THREADS)
        return Point(self.case, self.system, metric, unit, x, x_name)


def measure(bench: Bench, *, runs: int | None) -> Results:
    """Measure everything."""
    size = QUICK if bench.quick else FULL
    size = replace(size, runs=runs or size.runs)
    steps = plan(size)
    bench.require_connections(len({step.server for step in steps}) * size.pool_size + size.max_overflow)
    with ExitStack() as stack:
        servers: dict[tuple[str, int], ServerProcess] = {}
        for name, threads in dict.fromkeys(step.server for step in steps):
            bench.progress(f"starting: {name}, {threads} threads", 0.0)
            process = CONTENDERS[name].process(bench.url, bench.directory, threads=threads)
            servers[name, threads] = stack.enter_context(process)
        try:
            total = size.runs * len(steps)
            for number, (this, step) in enumerate(rounds(steps, size.runs)):
                bench.progress(f"run {this + 1} of {size.runs}: {step.case}, {step.clients} clients", number / total)
                _measure(bench, size, step, servers[step.server])
            for name in size.systems:
                point = Point(MEMORY, name, "memory", "MB")
                bench.recorder.add(point, _Usage(servers[name, THREADS].pid).memory)
        finally:
            bench.witness.remove_orders(ORDERS)
    bench.progress("done", 1.0)
    return bench.results("throughput", QUESTION, size, server_infos(*SYSTEMS))


def plan(size: Size) -> list[Step]:
    """One round's slices: whoever is compared stands side by side."""
    by_clients = [
        Step(case, system, clients)
        for case, clients in itertools.product((NOTHING, READ, QUERY, WRITE), size.clients)
        for system in size.systems
        if system not in ONE_CONNECTION_A_THREAD or clients <= THREADS
    ]
    by_threads = [
        Step(f"{case}, {size.thread_clients} clients", system, size.thread_clients, threads)
        for case, threads in itertools.product((NOTHING, READ, QUERY), size.threads)
        for system in THREADED
    ]
    return by_clients + by_threads


def _workload(case: str) -> Workload:
    if case.startswith(WRITE):
        return _orders(f"{ORDERS}{time.monotonic_ns()}")
    targets = {NOTHING: "/ping", READ: "/db-test", QUERY: "/work?ms=5"}
    return constant(next(target for name, target in targets.items() if case.startswith(name)))


def _orders(prefix: str) -> Workload:
    def requests(client: int) -> Iterator[Request]:
        for number in itertools.count():
            yield order(f"{prefix}-{client}-{number}")

    return requests


def _measure(bench: Bench, size: Size, step: Step, server: ServerProcess) -> None:
    usage = _Usage(server.pid)
    load = LoadClient(server.address, _workload(step.case), clients=step.clients, modes=(Mode.KEEP_ALIVE,)).start()
    try:
        time.sleep(size.warm_seconds)
        started, cpu = time.monotonic(), usage.cpu_seconds
        time.sleep(size.seconds / 2)
        in_use = _connections_in_use(server)
        time.sleep(max(0.0, started + size.seconds - time.monotonic()))
        ended, cpu = time.monotonic(), usage.cpu_seconds - cpu
    finally:
        load.stop()
    exchanges = load.join(JOIN_TIMEOUT).exchanges
    counted = [e for e in exchanges if started <= e.ended_at <= ended]
    answered = [e for e in counted if e.status in (200, 201)]
    seconds = ended - started
    add = bench.recorder.add
    add(step.point("throughput", "1/s"), len(answered) / seconds)
    for percent, milliseconds in percentiles(answered).items():
        add(step.point(f"p{percent}", "ms"), milliseconds)
    add(step.point("CPU", "%"), cpu / seconds * 100)
    if answered:
        add(step.point("CPU per request", "us"), cpu / len(answered) * 1e6)
    if in_use is not None:
        add(step.point("connections in use", "connections"), in_use)
    failed = [e for e in counted if e.outcome is not Outcome.NOT_SENT and e not in answered]
    add(step.point("failed", "requests"), len(failed))


def _connections_in_use(server: ServerProcess) -> int | None:
    """What the pool says in the middle of the load; None when the server is too busy to answer soon."""
    try:
        answer = json.loads(ask(server.address, "/", LOOK_TIMEOUT))
    except TimeoutError:
        return None
    in_use: int = answer["pool_status"]["checkedout"]
    return in_use


def percentiles(exchanges: Sequence[Exchange]) -> dict[int, float]:
    """p50, p95 and p99 of the time from the last byte sent to the last byte read, in ms; nothing for too few."""
    times = [(e.ended_at - e.sent_at) * 1000 for e in exchanges if e.sent_at is not None]
    if len(times) < 2:
        return {}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {percent: cuts[percent - 1] for percent in (50, 95, 99)}


class _Usage:
    """What a server and the processes below it use."""

    def __init__(self, pid: int) -> None:
        leader = psutil.Process(pid)
        self._processes = [leader, *leader.children(recursive=True)]

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far."""
        times = [process.cpu_times() for process in self._processes]
        return sum(time.user + time.system for time in times)

    @property
    def memory(self) -> float:
        """Megabytes that would be free without them; pages that they share count once."""
        return sum(_memory(process) for process in self._processes) / 1e6


def _memory(process: psutil.Process) -> float:
    full = process.memory_full_info()
    return float(getattr(full, "pss", full.uss))
