"""Leaks and numbers of an engine in a process that has its own server: `pooldrain.track(engine)`. Without the drain."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from pooldrain.current import current_runner
from pooldrain.ledger import PINNED_LOOK, Holding
from pooldrain.policy import LeakPolicy
from pooldrain.snapshot import EngineCounters, EngineStatus
from pooldrain.sqla.adoption import track_alone
from pooldrain.sqla.pool import Closable
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain.status import PoolStatus

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


logger = logging.getLogger("pooldrain")


class Tracked:
    """What is known of one engine's pool. From any thread."""

    def __init__(self, pool: TrackedPool) -> None:
        self._pool = pool

    @property
    def name(self) -> str:
        """The engine's: its `logging_name`, else its URL without the password."""
        return self._pool.name

    @property
    def status(self) -> PoolStatus:
        """The pool's numbers of this moment."""
        return self._pool.status

    @property
    def checkouts(self) -> tuple[Holding, ...]:
        """Who has a connection now: call site, age in seconds, last statement, leak rule if one applied; by age."""
        return self._pool.holdings()

    @property
    def leaks(self) -> dict[str, int]:
        """How many leaks were found, by rule."""
        return {rule.value: number for rule, number in self._pool.ledger.counts.items()}

    def seen(self) -> EngineStatus:
        """The same, JSON-ready: an engine's entry in `/status` of the admin listener."""
        return self._pool.seen()

    def counters(self) -> EngineCounters:
        """What only grows, JSON-ready: an engine's entry in the totals of `/status`."""
        return self._pool.counters()


def track(engine: Engine | AsyncEngine, leaks: LeakPolicy | None = None) -> Tracked:
    """Track an engine of either colour from now on: its leaks are logged by name, its numbers can be asked for.

    For a process that runs under a server of its own; one that a pooldrain command runs has its engines tracked
    already. To be called once, before the engine is used: connections that are out at this moment stay unknown.
    `leaks`: with a `leak_age` (seconds) a checkout that is older is reported as overdue, too. Nothing is ever closed or
    refused. Raises ValueError for an engine that is tracked already with other rules.
    """
    made: Any = engine
    plain: Engine = getattr(made, "sync_engine", made)
    if (known := _known(plain)) is None:
        known = track_alone(plain, leaks or LeakPolicy())
        _WATCH.add(known)
    elif leaks is not None and known.ledger.policy != leaks:
        raise ValueError(f"the engine {known.name} is tracked already, with other rules for leaks")
    return Tracked(known)


def _known(engine: Engine) -> TrackedPool | None:
    """Who tracks it already: this function, the plugin of its URL, or the service of this process."""
    if not isinstance(engine.pool, Closable):
        return None
    alone = vars(engine).get("pooldrain")
    if isinstance(alone, TrackedPool):
        return alone
    runner = current_runner()
    pools: list[TrackedPool] = [] if runner is None else list(runner.pools)
    return next((pool for pool in pools if pool.lifetime is engine.pool.lifetime), None)


class _Watch:
    """Looks for what time alone makes a leak, in one thread for all engines, as long as there are any."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[TrackedPool] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._running = False

    def add(self, pool: TrackedPool) -> None:
        with self._lock:
            self._pools.add(pool)
            if not self._running:
                self._running = True
                threading.Thread(target=self._look, name="pooldrain-watch", daemon=True).start()

    def _look(self) -> None:
        while True:
            with self._lock:
                pools = list(self._pools)
                if not pools:
                    self._running = False
                    return
            pause = max(0.001, min(map(_look_at, pools)))
            pools.clear()  # or they would live for as long as this thread sleeps
            time.sleep(pause)

    def forget(self) -> None:
        """In a forked child: the thread is not there."""
        self._lock, self._running = threading.Lock(), False
        for pool in list(self._pools):
            self.add(pool)


def _look_at(pool: TrackedPool) -> float:
    try:
        return pool.look()
    except Exception:
        logger.exception("the watch over the pool %s has failed", pool.name)
        return PINNED_LOOK


_WATCH = _Watch()
os.register_at_fork(after_in_child=_WATCH.forget)
