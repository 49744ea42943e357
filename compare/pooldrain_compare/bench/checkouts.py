"""What does a checkout cost? Through the ledger with call sites, through SQLAlchemy's bare pool, through other pools.

Where only the pools are compared, the driver's rollback at checkin is left out on both sides: it costs more than
either pool and is the same in both; time is processor time, which other processes do not lengthen. Nowhere are
connections tested at checkout.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool
from sqlalchemy.util import greenlet_spawn

from pooldrain.policy import PoolPolicy
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_compare.bench.recorder import Bench, Point, rounds
from pooldrain_compare.bench.shells import async_runner, sync_runner
from pooldrain_compare.bench.timing import at_await_depth, at_depth, no_collection, time_awaits, time_calls

DEPTH = "frames above the checkout"
POOL_ONLY = "checkout and checkin, the pool alone"
MEMORY = "memory of a checkout"
IDLE = "checkout and checkin"
QUERY = "checkout, SELECT 1, checkin"


def engines(url: DatabaseUrl, size: int) -> dict[str, sqlalchemy.Engine]:
    """The threads' engines: ours and SQLAlchemy's, alike but for the pool."""
    return {
        "pooldrain-threads": sync_runner(url, _policy(size)).pool.engine,
        "sqlalchemy-threads": sqlalchemy.create_engine(url.sync_url, poolclass=QueuePool, **_arguments(size)),
    }


def async_engines(url: DatabaseUrl, size: int) -> dict[str, AsyncEngine]:
    """The same for asyncio."""
    bare = create_async_engine(url.async_url, poolclass=AsyncAdaptedQueuePool, **_arguments(size))
    return {"pooldrain-asyncio": async_runner(url, _policy(size)).pool.engine, "sqlalchemy-asyncio": bare}


def _policy(size: int) -> PoolPolicy:
    return PoolPolicy(pool_size=size, pre_ping=False)


def _arguments(size: int) -> dict[str, Any]:
    return {"pool_size": size, "max_overflow": 20, "pool_timeout": 30.0, "pool_recycle": 3600}


# --- the pools alone, without a database server -----------------------------------------------------------


def measure_pools(
    bench: Bench, runs: int, loops: int, depths: tuple[int, ...], progress: Callable[[float], None]
) -> None:
    """Checkout and checkin by depth of the call stack, in both colours."""
    url = _scratch(bench.directory)
    threaded = engines(url, 10)
    pools = {name: _prepare(engine) for name, engine in threaded.items()}
    steps = [(name, depth) for depth in depths for name in pools]
    for number, (_, (name, depth)) in enumerate(rounds(steps, runs)):
        progress(number / runs / len(steps) / 2)
        taken = at_depth(depth, partial(time_calls, _borrow(pools[name]), loops))
        bench.recorder.add(Point(POOL_ONLY, name, "time", "us", depth, DEPTH), taken)
    for engine in threaded.values():
        engine.dispose()
    asyncio.run(_measure_async_pools(bench, url, runs, loops, depths, progress))


async def _measure_async_pools(
    bench: Bench, url: DatabaseUrl, runs: int, loops: int, depths: tuple[int, ...], progress: Callable[[float], None]
) -> None:
    both = async_engines(url, 10)
    pools = {name: await greenlet_spawn(_prepare, engine.sync_engine) for name, engine in both.items()}
    steps = [(name, depth) for depth in depths for name in pools]
    for number, (_, (name, depth)) in enumerate(rounds(steps, runs)):
        progress(0.5 + number / runs / len(steps) / 2)
        # In SQLAlchemy's greenlet, where a checkout always happens; the caller's frames are outside of it.
        work = partial(greenlet_spawn, time_calls, _borrow(pools[name]), loops)
        bench.recorder.add(Point(POOL_ONLY, name, "time", "us", depth, DEPTH), await at_await_depth(depth, work))
    for engine in both.values():
        await engine.dispose()


def measure_memory(bench: Bench, runs: int, checkouts: int, depths: tuple[int, ...]) -> None:
    """Bytes that one checkout keeps while it is out."""
    url = _scratch(bench.directory)
    threaded = engines(url, checkouts)
    pools = {name: _prepare(engine) for name, engine in threaded.items()}
    for _, (name, depth) in rounds([(name, depth) for depth in depths for name in pools], runs):
        held = at_depth(depth, partial(_memory, pools[name], checkouts))
        bench.recorder.add(Point(MEMORY, name, "memory", "bytes", depth, DEPTH), held)
    for engine in threaded.values():
        engine.dispose()
    asyncio.run(_measure_async_memory(bench, url, runs, checkouts, depths))


async def _measure_async_memory(
    bench: Bench, url: DatabaseUrl, runs: int, checkouts: int, depths: tuple[int, ...]
) -> None:
    both = async_engines(url, checkouts)
    pools = {name: await greenlet_spawn(_prepare, engine.sync_engine) for name, engine in both.items()}
    for _, (name, depth) in rounds([(name, depth) for depth in depths for name in pools], runs):
        work = partial(greenlet_spawn, _memory, pools[name], checkouts)
        bench.recorder.add(Point(MEMORY, name, "memory", "bytes", depth, DEPTH), await at_await_depth(depth, work))
    for engine in both.values():
        await engine.dispose()


def _scratch(directory: Path) -> DatabaseUrl:
    return DatabaseUrl.parse(f"sqlite:///{directory / 'pools.db'}")


def _prepare(engine: sqlalchemy.Engine) -> Pool:
    with engine.connect():  # connects, and lets SQLAlchemy ask the database what it can
        pass
    vars(engine.dialect)["do_rollback"] = _nothing
    return engine.pool


def _nothing(connection: Any) -> None:
    pass


def _borrow(pool: Pool) -> Callable[[int], None]:
    def work(loops: int) -> None:
        connect = pool.connect
        for _ in range(loops):
            connect().close()

    return work


def _memory(pool: Pool, checkouts: int) -> float:
    for connection in [pool.connect() for _ in range(checkouts)]:  # opened before anything is counted
        connection.close()
    with no_collection():
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            held = [pool.connect() for _ in range(checkouts)]
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    for connection in held:
        connection.close()
    return (after - before) / checkouts


# --- on PostgreSQL, with other people's pools -------------------------------------------------------------

Loop = Callable[[int], object]
AsyncLoop = Callable[[int], Awaitable[object]]


def measure_databases(bench: Bench, runs: int, loops: int, progress: Callable[[float], None]) -> None:
    """An empty checkout and one with a query, on the real server, as each pool's documentation shows it."""
    with threaded_loops(bench.url) as work:
        steps = list(work)
        for number, (_, step) in enumerate(rounds(steps, runs)):
            progress(number / runs / len(steps) / 2)
            case, name = step
            bench.recorder.add(Point(case, name, "time", "us"), time_calls(work[step], loops, perf_counter))
    asyncio.run(_measure_async_databases(bench, runs, loops, progress))


async def _measure_async_databases(bench: Bench, runs: int, loops: int, progress: Callable[[float], None]) -> None:
    async with asyncio_loops(bench.url) as work:
        steps = list(work)
        for number, (_, step) in enumerate(rounds(steps, runs)):
            progress(0.5 + number / runs / len(steps) / 2)
            case, name = step
            bench.recorder.add(Point(case, name, "time", "us"), await time_awaits(work[step], loops, perf_counter))


@contextmanager
def threaded_loops(url: str) -> Generator[dict[tuple[str, str], Loop]]:
    """What is looped, by case and pool."""
    both = engines(DatabaseUrl.parse(url), 10)
    with ConnectionPool(url, min_size=10, max_size=30, open=True) as pool:
        pool.wait()

        def idle(loops: int) -> None:
            for _ in range(loops):
                with pool.connection():
                    pass

        def query(loops: int) -> None:
            for _ in range(loops):
                with pool.connection() as connection:
                    connection.execute("SELECT 1").fetchone()

        work = {(IDLE, name): _idle(engine) for name, engine in both.items()} | {(IDLE, "psycopg-pool"): idle}
        work |= {(QUERY, name): _query(engine) for name, engine in both.items()} | {(QUERY, "psycopg-pool"): query}
        for loop in work.values():
            loop(20)
        yield work
    for engine in both.values():
        engine.dispose()


def _idle(engine: sqlalchemy.Engine) -> Loop:
    def work(loops: int) -> None:
        for _ in range(loops):
            with engine.connect():
                pass

    return work


def _query(engine: sqlalchemy.Engine) -> Loop:
    statement = text("SELECT 1")

    def work(loops: int) -> None:
        for _ in range(loops):
            with engine.connect() as connection:
                connection.execute(statement).scalar()

    return work


@asynccontextmanager
async def asyncio_loops(url: str) -> AsyncGenerator[dict[tuple[str, str], AsyncLoop]]:
    """What is looped, by case and pool."""
    both = async_engines(DatabaseUrl.parse(url), 10)
    async with (
        AsyncConnectionPool(url, min_size=10, max_size=30, open=False) as pool,
        asyncpg.create_pool(url, min_size=10, max_size=30) as other,
    ):
        await pool.wait()

        async def idle(loops: int) -> None:
            for _ in range(loops):
                async with pool.connection():
                    pass

        async def query(loops: int) -> None:
            for _ in range(loops):
                async with pool.connection() as connection:
                    await (await connection.execute("SELECT 1")).fetchone()

        async def other_idle(loops: int) -> None:
            for _ in range(loops):
                async with other.acquire():
                    pass

        async def other_query(loops: int) -> None:
            for _ in range(loops):
                async with other.acquire() as connection:
                    await connection.fetchval("SELECT 1")

        work: dict[tuple[str, str], AsyncLoop] = {(IDLE, name): _async_idle(engine) for name, engine in both.items()}
        work |= {(IDLE, "psycopg-pool-async"): idle, (IDLE, "asyncpg-pool"): other_idle}
        work |= {(QUERY, name): _async_query(engine) for name, engine in both.items()}
        work |= {(QUERY, "psycopg-pool-async"): query, (QUERY, "asyncpg-pool"): other_query}
        for loop in work.values():
            await loop(20)
        yield work
    for engine in both.values():
        await engine.dispose()


def _async_idle(engine: AsyncEngine) -> AsyncLoop:
    async def work(loops: int) -> None:
        for _ in range(loops):
            async with engine.connect():
                pass

    return work


def _async_query(engine: AsyncEngine) -> AsyncLoop:
    statement = text("SELECT 1")

    async def work(loops: int) -> None:
        for _ in range(loops):
            async with engine.connect() as connection:
                (await connection.execute(statement)).scalar()

    return work
