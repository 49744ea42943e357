"""What does a checkout cost? Checkout and checkin through ledger and call sites, against SQLAlchemy's bare pool.

Only the pools are compared: the driver's rollback at checkin is left out on both sides, since it costs more
than either pool and is the same in both.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool
from sqlalchemy.util import greenlet_spawn

import pooldrain_async.pool
import pooldrain_sync.pool
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain.transcript import Event

DEPTHS = (1, 30)  # frames between the loop and the checkout: a bare loop, and a web framework's stack


@dataclass(frozen=True, slots=True)
class PoolSample:
    """Microseconds for one checkout and checkin, measured one right after the other."""

    colour: str
    depth: int
    bare: float
    ours: float

    @property
    def added(self) -> float:
        """What ours costs more."""
        return self.ours - self.bare


class Silence:
    """An event sink that wants no details, as in production without a transcript."""

    detailed = False

    def emit(self, event: Event) -> None:
        """Take an event and say nothing."""


def measure_pools(directory: Path, rounds: int, loops: int, progress: Callable[[str, float], None]) -> list[PoolSample]:
    """Pairs of bare and ours, in alternating order, in both colours."""
    url = DatabaseUrl.parse(f"sqlite:///{directory / 'pools.db'}")
    samples = _threaded(url, rounds, loops, lambda done: progress("pools: threads", done / 4))
    samples += asyncio.run(_asyncio(url, rounds, loops, lambda done: progress("pools: asyncio", 0.25 + done / 4)))
    return samples


# Without pre-ping and recycling by age: both would be the same work in both pools.
_POLICY = PoolPolicy(pre_ping=False)
_ARGUMENTS: dict[str, Any] = {"pool_size": 10, "max_overflow": 20, "pool_timeout": 30.0, "pool_recycle": 3600}


def _threaded(url: DatabaseUrl, rounds: int, loops: int, progress: Callable[[float], None]) -> list[PoolSample]:
    manager = pooldrain_sync.pool.PoolManager(
        url, _POLICY, LeakPolicy(), Silence(), service="bench", lock=threading.RLock()
    )
    bare = sqlalchemy.create_engine(url.sync_url, poolclass=QueuePool, **_ARGUMENTS)
    try:
        pools = _prepare(bare), _prepare(manager.engine)
        return _pairs("threads", pools, rounds, loops, progress)
    finally:
        bare.dispose()
        manager.engine.dispose()


async def _asyncio(url: DatabaseUrl, rounds: int, loops: int, progress: Callable[[float], None]) -> list[PoolSample]:
    manager = pooldrain_async.pool.PoolManager(
        url, _POLICY, LeakPolicy(), Silence(), service="bench", lock=threading.RLock()
    )
    bare = create_async_engine(url.async_url, poolclass=AsyncAdaptedQueuePool, **_ARGUMENTS)

    def work() -> list[PoolSample]:  # in SQLAlchemy's greenlet, where a checkout always happens
        pools = _prepare(bare.sync_engine), _prepare(manager.engine.sync_engine)
        return _pairs("asyncio", pools, rounds, loops, progress)

    try:
        return await greenlet_spawn(work)
    finally:
        await bare.dispose()
        await manager.engine.dispose()


def _prepare(engine: sqlalchemy.Engine) -> Pool:
    with engine.connect():  # connects, and lets SQLAlchemy ask the database what it can
        pass
    vars(engine.dialect)["do_rollback"] = _nothing
    return engine.pool


def _nothing(connection: Any) -> None:
    pass


def _pairs(
    colour: str, pools: tuple[Pool, Pool], rounds: int, loops: int, progress: Callable[[float], None]
) -> list[PoolSample]:
    samples = []
    for number in range(rounds):
        progress(number / rounds)
        for depth in DEPTHS:
            order = (0, 1) if number % 2 == 0 else (1, 0)
            times = {which: _at_depth(depth, pools[which], loops) for which in order}
            samples.append(PoolSample(colour, depth, times[0], times[1]))
    return samples


def _at_depth(depth: int, pool: Pool, loops: int) -> float:
    if depth > 1:
        return _at_depth(depth - 1, pool, loops)
    connect = pool.connect
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in range(loops):
            connect().close()
        return (time.perf_counter() - started) / loops * 1e6
    finally:
        gc.enable()
