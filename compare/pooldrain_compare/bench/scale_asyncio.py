"""The asyncio pools and shell at a given size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

import asyncpg
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.phases import Phase
from pooldrain.policy import PoolPolicy, ShutdownPolicy
from pooldrain.shutdown import Stop
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_async.runner import Runner
from pooldrain_compare.bench.checkouts import async_engines
from pooldrain_compare.bench.shells import SESSIONS, async_runner
from pooldrain_compare.bench.watch import Watch
from pooldrain_compare.harness.witness import Witness

TIMEOUT = 60.0


class NoServer:
    """A server without clients."""

    def drain(self) -> None:
        """Nothing comes in."""

    def cancel(self) -> None:
        """Nobody waits for a client."""

    async def stop(self, step: Stop) -> None:
        """Nothing is open."""


def disposals(url: str) -> dict[str, Callable[[int], Coroutine[None, None, float]]]:
    """By pool: open so many connections, let them be idle, close them; the seconds of the closing."""

    async def closing(engine: AsyncEngine, number: int, dispose: Callable[[], Awaitable[None]]) -> float:
        connections = [await engine.connect() for _ in range(number)]
        for connection in connections:
            await connection.close()
        started = time.monotonic()
        await dispose()
        return time.monotonic() - started

    async def ours(number: int) -> float:
        pool = async_runner(DatabaseUrl.parse(url), PoolPolicy(pool_size=number, pre_ping=False)).pool
        return await closing(pool.engine, number, lambda: pool.dispose(time.monotonic() + TIMEOUT))

    async def sqlalchemy(number: int) -> float:
        engine = async_engines(DatabaseUrl.parse(url), number)["sqlalchemy-asyncio"]
        return await closing(engine, number, engine.dispose)

    async def psycopg_pool(number: int) -> float:
        pool = AsyncConnectionPool(url, min_size=number, max_size=number, open=False)
        await pool.open()
        await pool.wait(TIMEOUT)
        started = time.monotonic()
        await pool.close()
        return time.monotonic() - started

    async def asyncpg_pool(number: int) -> float:
        pool = await asyncpg.create_pool(url, min_size=number, max_size=number)
        started = time.monotonic()
        await pool.close()
        return time.monotonic() - started

    return {
        "pooldrain-asyncio": ours,
        "sqlalchemy-asyncio": sqlalchemy,
        "psycopg-pool-async": psycopg_pool,
        "asyncpg-pool": asyncpg_pool,
    }


async def stop(url: str, number: int) -> float:
    """Stop a service whose pool of this size is all in use; the seconds from the last request's end to the drain's."""
    watch = Watch()
    policy = PoolPolicy(pool_size=number, pre_ping=False)
    runner = async_runner(DatabaseUrl.parse(url), policy, heard=watch.hear)
    await runner.open()
    held = []
    for _ in range(number):
        request = _admit(runner)
        CURRENT_REQUEST.set(request)
        held.append((request, await runner.pool.engine.connect()))
    CURRENT_REQUEST.set(None)
    runner.signalled("SIGTERM")
    stopping = asyncio.create_task(runner.shut_down(NoServer()))
    await asyncio.to_thread(watch.draining.wait, TIMEOUT)
    last = 0.0
    for request, connection in held:
        await connection.close()
        last = time.monotonic()
        runner.end(request)
    await stopping
    return watch.drained - last


async def cancel(url: str, number: int, witness: Witness) -> float:
    """Stop a service with so many hung requests; the seconds that the cancelling took."""
    watch = Watch()
    policy = PoolPolicy(pool_size=number, pre_ping=False)
    shutdown = ShutdownPolicy(drain_timeout=0.0, cancel_timeout=TIMEOUT)
    runner = async_runner(DatabaseUrl.parse(url), policy, shutdown=shutdown, heard=watch.hear)
    await runner.open()
    tasks = [asyncio.create_task(_hang(runner)) for _ in range(number)]
    await asyncio.to_thread(witness.await_running, SESSIONS, number, TIMEOUT)
    runner.signalled("SIGTERM")
    await runner.shut_down(NoServer())
    await asyncio.wait(tasks, timeout=TIMEOUT)
    return watch.between(Phase.CANCELLING, Phase.RECLAIMING)


def _admit(runner: Runner) -> InFlightRequest:
    request = runner.admit("GET", "/", None, worker=asyncio.current_task())
    assert request is not None, "the gate is open"
    return request


async def _hang(runner: Runner) -> None:
    request = _admit(runner)
    CURRENT_REQUEST.set(request)
    try:
        with suppress(DBAPIError):
            async with runner.pool.engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(3600)"))
    finally:
        runner.end(request)
