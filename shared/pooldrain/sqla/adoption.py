"""Adopts the engines that an application makes: their pools become closable, and are tracked.

SQLAlchemy tells its plugins of every engine that asks for them. A pooldrain command has every engine ask
(`adopt_every_engine`); in any other process `create_engine(url, plugins=["pooldrain"])` does, by our entry point. The
pool, which is new and empty, becomes closable in place: another class, of the same settings, events and logger.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy
from sqlalchemy.engine import URL, CreateEnginePlugin
from sqlalchemy.pool import Pool, QueuePool

from pooldrain.ledger import MAIN_POOL
from pooldrain.policy import LeakPolicy, PoolPolicy
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.hooks import silence_collected_warning
from pooldrain.sqla.pool import Closable, ClosablePool, ClosableQueuePool, Lifetime, Threaded, Unqueued
from pooldrain.sqla.tracked_pool import Adopted
from pooldrain.transcript import Event

logger = logging.getLogger("pooldrain")

Adopter = Callable[[sqlalchemy.Engine], None]


class EnginePlugin(CreateEnginePlugin):
    """SQLAlchemy's view of the adoption."""

    def update_url(self, url: URL) -> URL:
        """The URL has nothing for us."""
        return url

    def engine_created(self, engine: sqlalchemy.Engine) -> None:
        """An engine is complete."""
        adopt(engine)


def adopt_every_engine() -> None:
    """Have each engine that is made in this process adopted, from now on."""
    original = URL._instantiate_plugins
    if getattr(original, "adopts", False):
        return

    def with_ours(self: URL, kwargs: Mapping[str, Any]) -> tuple[URL, list[Any], dict[str, Any]]:
        url, plugins, rest = original(self, kwargs)
        return url, [*plugins, EnginePlugin(url, rest)], rest

    vars(with_ours)["adopts"] = True
    setattr(URL, "_instantiate_plugins", with_ours)  # noqa: B010 - a method of a class that is not ours


def adopt(engine: sqlalchemy.Engine) -> None:
    """Make an engine's pool closable, and have it tracked. One that is closable already is left as it is."""
    pool = engine.pool
    if isinstance(pool, Closable):
        if pool.lifetime.tracker is not None:  # another engine on a pool that is tracked
            pool.lifetime.tracker.listen_to_statements(engine)
        return
    make_closable(pool, on_loop=engine.dialect.is_async)
    _adopter(engine)


def adopt_with(adopter: Adopter | None) -> None:
    """Have engines tracked by `adopter`, a service say; None: by themselves."""
    global _adopter  # noqa: PLW0603 - a process has one service
    _adopter = adopter or _track_alone


def make_closable(pool: Pool, *, on_loop: bool) -> None:
    """Turn a pool, in place, into one that can be closed; what it was asked for stays as it is."""
    if on_loop:
        own = pool.logger
        silence_collected_warning(own.name if isinstance(own, logging.Logger) else own.logger.name)
    kind = (type(pool), on_loop)
    pool.__class__ = _CLASSES.get(kind) or _CLASSES.setdefault(kind, _closable_class(*kind))
    assert isinstance(pool, Closable)
    if isinstance(pool, ClosablePool):
        before = pool._pool
        pool._pool = pool.make_queue(before.maxsize, use_lifo=before.use_lifo)
        while not before.empty():  # a pool that its application has made and used before
            pool._pool.put_nowait(before.get(False))
    pool.join(Lifetime())
    pool._creator = pool._creator  # wraps it anew, with the look whether the pool is closed


def _closable_class(kind: type[Pool], on_loop: bool) -> type[Closable]:
    if on_loop:
        from pooldrain.sqla.async_pool import (  # greenlet, which an engine of threads lacks
            ClosableAsyncQueuePool,
            OnLoop,
        )

        queued: type[ClosablePool] = ClosableAsyncQueuePool
        colour: type[Closable] = OnLoop
    else:
        queued, colour = ClosableQueuePool, Threaded
    bases = (queued, kind) if issubclass(kind, QueuePool) else (colour, Unqueued, kind)
    attributes = {"__module__": kind.__module__, "_sqla_logger_namespace": f"{kind.__module__}.{kind.__name__}"}
    made: type[Closable] = type(kind.__name__, bases, attributes)
    return made


_CLASSES: dict[tuple[type[Pool], bool], type[Closable]] = {}  # those made so far


# --- names --------------------------------------------------------------------------------------------------


def given_name(engine: sqlalchemy.Engine) -> str | None:
    """What its application calls an engine: its `logging_name`, that of its pool; None: nothing."""
    pool_name: str | None = engine.pool._orig_logging_name
    return engine.logging_name or pool_name


def fallback_name(engine: sqlalchemy.Engine) -> str:
    """What an engine is called whose application calls it nothing: by its bind's key, or its URL, masked.

    To be asked while the engine is being made.
    """
    return _bind_key() or DatabaseUrl.of_engine(engine.url).masked


def _bind_key() -> str | None:
    """The bind that Flask-SQLAlchemy is making an engine for: it knows it, and tells nobody."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_globals.get("__name__", "").startswith("flask_sqlalchemy") and "bind_key" in frame.f_locals:
            key = frame.f_locals["bind_key"]
            return "default" if key is None else str(key)
    return None


# --- without a service --------------------------------------------------------------------------------------


class _Log:
    """Events of an engine that belongs to no service: those with a message go to the log."""

    detailed = False

    def emit(self, event: Event) -> None:
        message = event.message()
        if message is not None:
            logger.log(event.level, "%s", message, extra={"event": event.as_dict()})


def track_alone(engine: sqlalchemy.Engine, leaks: LeakPolicy) -> Adopted:
    """Track an engine in a process without a service: its leaks are told, and who forks leaves it alone."""
    if not isinstance(engine.pool, Closable):
        make_closable(engine.pool, on_loop=engine.dialect.is_async)
    pool = Adopted(
        engine,
        given_name(engine) or fallback_name(engine),
        PoolPolicy(),
        leaks,
        _Log(),
        service=MAIN_POOL,
        lock=threading.RLock(),
        clock=time.monotonic,
    )
    vars(engine)["pooldrain"] = pool  # lives as long as its engine
    return pool


def _track_alone(engine: sqlalchemy.Engine) -> None:
    track_alone(engine, LeakPolicy())


_adopter: Adopter = _track_alone
