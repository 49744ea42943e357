"""How drain, dispose, the books, cancelling and the end of a process grow.

Drain and dispose by pool size, leak scan and status page by checkouts, cancel by hung queries; the end of a process by
connections, requests in flight and leaks.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pooldrain import answers, status
from pooldrain.lifecycle import Lifecycle
from pooldrain.policy import LeakPolicy
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain.stacks import StackWalker
from pooldrain_compare.bench import exits, scale_asyncio, scale_threads
from pooldrain_compare.bench.contenders import OURS, PARTNERS, pool_infos, server_infos
from pooldrain_compare.bench.recorder import Bench, Point, rounds
from pooldrain_compare.bench.results import Results
from pooldrain_compare.bench.shells import NEVER_OPENED, async_runner, sync_runner
from pooldrain_compare.bench.timing import time_calls

QUESTION = "How do drain, dispose, leak scan and cancel grow with size?"
STOP, BOOKS, CANCEL = "drain and dispose", "many checkouts", "hung queries"
PAGE = "/pool-status?detail=1"
POOL_SIZE, CHECKOUTS, QUERIES = "pool size", "checkouts", "queries"
NEVER = 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    runs: int
    pool_sizes: tuple[int, ...]
    checkouts: tuple[int, ...]
    queries: tuple[int, ...]
    idle_connections: tuple[int, ...]  # of a server's clients
    in_flight: tuple[int, ...]
    leaks: tuple[int, ...]


FULL = Size(
    runs=5,
    pool_sizes=(10, 50, 100, 200, 400),
    checkouts=(10, 100, 1_000, 10_000),
    queries=(1, 10, 100),
    idle_connections=(1, 10, 100, 1_000, 10_000),
    in_flight=(1, 10, 100, 1_000),
    leaks=(1, 10, 100, 400),
)
QUICK = Size(
    runs=1,
    pool_sizes=(10, 30),
    checkouts=(10, 1_000),
    queries=(1, 10),
    idle_connections=(1, 100),
    in_flight=(1, 10),
    leaks=(1, 10),
)


def measure(bench: Bench, *, runs: int | None) -> Results:
    """Measure everything."""
    size = QUICK if bench.quick else FULL
    size = replace(size, runs=runs or size.runs)
    cancelling = 2 * max(size.queries)  # a cancellation is a connection, too
    bench.require_connections(max(*size.pool_sizes, *size.leaks, cancelling))

    def stage(start: float, share: float) -> Callable[[str, float], None]:
        return lambda doing, done: bench.progress(doing, start + done * share)

    _measure_stops(bench, size.runs, size.pool_sizes, stage(0.0, 0.4))
    _measure_books(bench, size.runs, size.checkouts, stage(0.4, 0.1))
    _measure_cancels(bench, size.runs, size.queries, stage(0.5, 0.1))
    holdings = {
        exits.CONNECTIONS: size.idle_connections,
        exits.REQUESTS: size.in_flight,
        exits.LEAKS: size.leaks,
    }
    exits.measure(bench, size.runs, holdings, stage(0.6, 0.4))
    bench.progress("done", 1.0)
    return bench.results("scale", QUESTION, size, pool_infos() | server_infos(*OURS))


def _measure_stops(bench: Bench, runs: int, sizes: Sequence[int], progress: Callable[[str, float], None]) -> None:
    """The drain of ours: every connection is in use, then all come back. Closing: every connection is idle."""
    threads = scale_threads.disposals(bench.url)
    loops = scale_asyncio.disposals(bench.url)
    steps = [(number, name) for number in sizes for name in (*threads, *loops)]
    for done, (_, (number, name)) in enumerate(rounds(steps, runs)):
        progress(f"pool size: {number}, {name}", done / runs / len(steps))
        took = threads[name](number) if name in threads else asyncio.run(loops[name](number))
        bench.recorder.add(Point(STOP, name, "dispose", "ms", number, POOL_SIZE), took * 1000)
        if name in PARTNERS:  # ours
            if name in threads:
                drained = scale_threads.stop(bench.url, number)
            else:
                drained = asyncio.run(scale_asyncio.stop(bench.url, number))
            bench.recorder.add(Point(STOP, name, "drain", "ms", number, POOL_SIZE), drained * 1000)


def _measure_cancels(bench: Bench, runs: int, queries: Sequence[int], progress: Callable[[str, float], None]) -> None:
    """From the drain's end to the last hung request's."""
    steps = [(number, name) for number in queries for name in ("pooldrain-threads", "pooldrain-asyncio")]
    for done, (_, (number, name)) in enumerate(rounds(steps, runs)):
        progress(f"cancel: {number}, {name}", done / runs / len(steps))
        if name == "pooldrain-threads":
            took = scale_threads.cancel(bench.url, number, bench.witness)
        else:
            took = asyncio.run(scale_asyncio.cancel(bench.url, number, bench.witness))
        bench.recorder.add(Point(CANCEL, name, "cancel", "ms", number, QUERIES), took * 1000)


def _measure_books(bench: Bench, runs: int, checkouts: Sequence[int], progress: Callable[[str, float], None]) -> None:
    """The scan for overdue checkouts and the page that shows all of them, with synthetic checkouts in the ledger."""
    steps = [(number, name) for number in checkouts for name in ("pooldrain-threads", "pooldrain-asyncio")]
    for done, (_, (number, name)) in enumerate(rounds(steps, runs)):
        progress(f"checkouts: {number}, {name}", done / runs / len(steps))
        runner: Lifecycle[Any, Any]
        pool: TrackedPool
        leaks = LeakPolicy(leak_age=NEVER)
        if name == "pooldrain-threads":
            threaded = sync_runner(NEVER_OPENED, leaks=leaks)
            runner, pool = threaded, threaded.pool
        else:
            looped = async_runner(NEVER_OPENED, leaks=leaks)
            runner, pool = looped, looped.pool
        _fill(pool, number)
        _add_time(bench, Point(BOOKS, name, "leak scan", "ms", number, CHECKOUTS), pool.report_overdue)
        _add_time(bench, Point(BOOKS, name, PAGE, "ms", number, CHECKOUTS), partial(_page, runner, pool))


def _fill(pool: TrackedPool, checkouts: int) -> None:
    stack = StackWalker(()).capture(sys._getframe())
    for _ in range(checkouts):
        pool.ledger.check_out(object(), time.monotonic(), stack, None, object)


def _add_time(bench: Bench, point: Point, work: Callable[[], object]) -> None:
    bench.recorder.add(point, time_calls(lambda loops: work(), 1) / 1000)


def _page(runner: Lifecycle[Any, Any], pool: TrackedPool) -> answers.Answer:
    page = status.pool_status_page(
        pool.status, connection_leak=True, accepting=runner.gate.accepting, active=runner.unanswered()
    )
    return answers.answer(page | status.pool_status_detail(pool.holdings(), pool.ledger.counts, runner.phase))
