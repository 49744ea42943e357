"""The asyncio shell's pool: opened and filled at start, reclaimed and disposed at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from threading import RLock
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.sqla.async_pool import ClosableAsyncQueuePool
from pooldrain.sqla.connect_options import engine_options
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.hooks import EventSink, silence_collected_warning
from pooldrain.sqla.loops import PATIENCE, loop_of, run_on_loop
from pooldrain.sqla.room import LIMITS, OTHERS
from pooldrain.sqla.tracked_pool import Adopted, TrackedPool
from pooldrain_async.bounded import Work, in_thread
from pooldrain_async.cancellation import cancel


class Pool(TrackedPool):
    """A tracked pool with an engine of this colour."""

    def __init__(
        self,
        url: DatabaseUrl,
        policy: PoolPolicy,
        leaks: LeakPolicy,
        events: EventSink,
        *,
        service: str,
        lock: RLock,
        clock: Callable[[], float] = time.monotonic,
        name: str = "main",
    ) -> None:
        self.engine = create_async_engine(url.async_url, poolclass=ClosableAsyncQueuePool, **engine_options(policy))
        super().__init__(
            self.engine.sync_engine,
            name,
            url=url,
            policy=policy,
            leaks=leaks,
            events=events,
            service=service,
            lock=lock,
            clock=clock,
            skip=(__file__,),
        )
        silence_collected_warning()

    async def open(self) -> None:
        """Connect, ask `SELECT 1`, fill the pool to `min_idle`. Raises StartupError, with the password masked."""
        started = self._clock()
        self.lifetime.filling = True
        asked: list[Sequence[Any]] = []
        try:
            async with AsyncExitStack() as connections:
                for number in range(max(self.policy.prewarm, 1)):
                    connection = await connections.enter_async_context(self.engine.connect())
                    if number == 0:
                        await connection.execute(text("SELECT 1"))
                        if self.url.dialect == "postgresql" and not self.pooler.found:  # a pooler has limits of its own
                            asked = [(await connection.execute(text(query))).all() for query in (LIMITS, OTHERS)]
        except (SQLAlchemyError, OSError) as error:
            raise self.cannot_open(error) from error
        finally:
            self.lifetime.filling = False
        if self.policy.prewarm == 0 and (record := self.pool.take_idle()) is not None:
            await greenlet_spawn(self.pool.discard, record)  # the connection of the test
        self.tell_shortage(*asked)
        self.opened(started)

    def cancellations(self, requests: list[InFlightRequest], work: Iterable[Checkout], timeout: float) -> list[Work]:
        """What cancels, on the server, each statement that these requests, and this work, run from this pool."""
        drivers = self.drivers(requests, work)
        return [partial(cancel, driver, timeout, on_loop=self.on_loop) for driver in drivers]

    async def reclaim(self, checkout: Checkout) -> bool:
        """Close a checked-out connection; False if its holder did so first, or if it cannot be done."""
        held = self.take_from_holder(checkout)
        if isinstance(held, bool):
            return held
        record = checkout.key
        assert isinstance(record, ConnectionPoolEntry), "the only keys that there are"
        await self._end(held.invalidate, record, PATIENCE)
        return True

    async def dispose(self, deadline: float) -> None:
        """Close every pooled connection; begin with none after `deadline` (monotonic seconds)."""
        while (idle := await greenlet_spawn(self._discard_ours, deadline)) is not None:
            record, discard = idle
            await self._end(discard, record, deadline - self._clock())

    def _discard_ours(self, deadline: float) -> tuple[ConnectionPoolEntry, Callable[[], None]] | None:
        """Close those of the running loop, in one greenlet for all; the first that has to be closed elsewhere."""
        here = asyncio.get_running_loop()
        while self._clock() < deadline and (idle := self.take_idle()) is not None:
            record, discard = idle
            if not self.on_loop or loop_of(record) not in (None, here):
                return idle
            discard()
        return None

    async def _end(self, work: Callable[[], None], record: ConnectionPoolEntry, timeout: float) -> None:
        """Close a connection: one of threads in a thread, one of another loop on that; from outside, if it is gone."""
        if not self.on_loop:
            await in_thread(work)
        elif (loop := loop_of(record)) in (None, asyncio.get_running_loop()):
            await greenlet_spawn(work)
        elif not await in_thread(partial(run_on_loop, work, loop, timeout)):
            self.end_from_outside(record)


class AdoptedPool(Adopted, Pool):
    """The pool of an engine of either colour that the application has made; it opens what it needs."""

    own_files = (__file__,)

    async def open(self) -> None:
        """Nothing: no connection is opened that the application has not asked for."""
