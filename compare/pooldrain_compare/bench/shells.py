"""Both shells within this process, with nobody listening to their events, as in production without a transcript."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pooldrain_async.pool
import pooldrain_async.runner
import pooldrain_sync.pool
import pooldrain_sync.runner
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.transcript import Event

SERVICE = "bench"
SESSIONS = f"pooldrain:{SERVICE}:"  # what the application names of their database sessions begin with
NEVER_OPENED = DatabaseUrl.parse("sqlite:///never-opened.db")


class Listener:
    """An event sink that wants no details of single checkouts, and passes the rest on."""

    detailed = False

    def __init__(self, heard: Callable[[Event], None] | None = None) -> None:
        self._heard = heard

    def emit(self, event: Event) -> None:
        """Take an event."""
        if self._heard is not None:
            self._heard(event)


def sync_runner(
    url: DatabaseUrl,
    pool: PoolPolicy | None = None,
    *,
    leaks: LeakPolicy | None = None,
    shutdown: ShutdownPolicy | None = None,
    heard: Callable[[Event], None] | None = None,
) -> pooldrain_sync.runner.Runner:
    """A runner of the threaded shell, and its pool, not opened."""
    lock = threading.RLock()
    manager = pooldrain_sync.pool.Pool(
        url, pool or PoolPolicy(), leaks or LeakPolicy(), Listener(heard), service=SERVICE, lock=lock
    )
    return pooldrain_sync.runner.Runner(manager, shutdown or ShutdownPolicy(), lock=lock)


def async_runner(
    url: DatabaseUrl,
    pool: PoolPolicy | None = None,
    *,
    leaks: LeakPolicy | None = None,
    shutdown: ShutdownPolicy | None = None,
    heard: Callable[[Event], None] | None = None,
) -> pooldrain_async.runner.Runner:
    """The same of the asyncio shell."""
    lock = threading.RLock()
    manager = pooldrain_async.pool.Pool(
        url, pool or PoolPolicy(), leaks or LeakPolicy(), Listener(heard), service=SERVICE, lock=lock
    )
    return pooldrain_async.runner.Runner(manager, shutdown or ShutdownPolicy(), lock=lock)
