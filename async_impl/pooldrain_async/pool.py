"""The asyncio shell's pool: opened and filled at start, reclaimed and disposed at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from threading import RLock

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.sqla.async_pool import ClosableAsyncQueuePool
from pooldrain.sqla.connect_options import engine_options
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.hooks import EventSink, silence_collected_warning
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain_async.bounded import Work
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
        try:
            async with AsyncExitStack() as connections:
                for number in range(max(self.policy.prewarm, 1)):
                    connection = await connections.enter_async_context(self.engine.connect())
                    if number == 0:
                        await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError) as error:
            raise self.cannot_open(error) from error
        if self.policy.prewarm == 0 and (record := self.pool.take_idle()) is not None:
            await greenlet_spawn(self.pool.discard, record)  # the connection of the test
        self.opened(started)

    def cancellations(self, requests: list[InFlightRequest], timeout: float) -> list[Work]:
        """What cancels, on the server, each statement that these requests are running from this pool."""
        return [partial(cancel, driver, timeout) for driver in self.drivers(requests)]

    async def reclaim(self, checkout: Checkout) -> bool:
        """Close a checked-out connection; False if its holder did so first, or if it cannot be done."""
        held = self.take_from_holder(checkout)
        if isinstance(held, bool):
            return held
        await greenlet_spawn(held.invalidate)
        return True

    async def dispose(self, deadline: float) -> None:
        """Close every pooled connection; begin with none after `deadline` (monotonic seconds)."""
        pool = self.pool
        while self._clock() < deadline and (record := pool.take_idle()) is not None:
            await greenlet_spawn(pool.discard, record)
