"""The threaded shell's pool: opened and filled at start, reclaimed and disposed at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from threading import RLock
from typing import Any

import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.sqla.connect_options import engine_options
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.hooks import EventSink
from pooldrain.sqla.loops import PATIENCE, loop_of, run_on_loop
from pooldrain.sqla.pool import ClosableQueuePool
from pooldrain.sqla.room import LIMITS, OTHERS
from pooldrain.sqla.tracked_pool import Adopted, TrackedPool
from pooldrain_sync.bounded import Work
from pooldrain_sync.cancellation import cancel


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
        self.engine = sqlalchemy.create_engine(url.sync_url, poolclass=ClosableQueuePool, **engine_options(policy))
        super().__init__(
            self.engine,
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

    def open(self) -> None:
        """Connect, ask `SELECT 1`, fill the pool to `min_idle`. Raises StartupError, with the password masked."""
        started = self._clock()
        self.lifetime.filling = True
        asked: list[Sequence[Any]] = []
        try:
            with ExitStack() as connections:
                for number in range(max(self.policy.prewarm, 1)):
                    connection = connections.enter_context(self.engine.connect())
                    if number == 0:
                        connection.execute(text("SELECT 1"))
                        if self.url.dialect == "postgresql" and not self.pooler.found:  # a pooler has limits of its own
                            asked = [connection.execute(text(query)).all() for query in (LIMITS, OTHERS)]
        except (SQLAlchemyError, OSError) as error:
            raise self.cannot_open(error) from error
        finally:
            self.lifetime.filling = False
        if self.policy.prewarm == 0 and (record := self.pool.take_idle()) is not None:
            self.pool.discard(record)  # the connection of the test
        self.tell_shortage(*asked)
        self.opened(started)

    def cancellations(self, requests: list[InFlightRequest], work: Iterable[Checkout], timeout: float) -> list[Work]:
        """What cancels, on the server, each statement that these requests, and this work, run from this pool."""
        return [partial(cancel, driver, timeout) for driver in self.drivers(requests, work)]

    def reclaim(self, checkout: Checkout) -> bool:
        """Close a checked-out connection; False if its holder did so first, or if it cannot be done."""
        held = self.take_from_holder(checkout)
        if isinstance(held, bool):
            return held
        record = checkout.key
        assert isinstance(record, ConnectionPoolEntry), "the only keys that there are"
        self._end(held.invalidate, record, PATIENCE)
        return True

    def dispose(self, deadline: float) -> None:
        """Close every pooled connection; begin with none after `deadline` (monotonic seconds)."""
        while self._clock() < deadline and (idle := self.take_idle()) is not None:
            record, discard = idle
            self._end(discard, record, deadline - self._clock())

    def _end(self, work: Callable[[], None], record: ConnectionPoolEntry, timeout: float) -> None:
        """Close a connection: one of an asyncio engine on its own loop; from outside, if that is gone."""
        if not self.on_loop:
            work()
        elif not run_on_loop(work, loop_of(record), timeout):
            self.end_from_outside(record)


class AdoptedPool(Adopted, Pool):
    """The pool of an engine of either colour that the application has made; it opens what it needs."""

    own_files = (__file__,)

    def open(self) -> None:
        """Nothing: no connection is opened that the application has not asked for."""
