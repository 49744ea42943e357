"""Puts the threaded service together from its settings."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain.runtime.events import EventLog
from pooldrain.runtime.settings import Settings
from pooldrain_sync.app import Demo, create_app
from pooldrain_sync.middleware import GateMiddleware
from pooldrain_sync.pool import PoolManager
from pooldrain_sync.runner import Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@dataclass(frozen=True, slots=True)
class BuiltService:
    """A service ready to be opened and served."""

    runner: Runner
    app: WSGIApplication  # behind its gate
    demo: Demo

    def open(self) -> None:
        """Open the pool and make the demo's table. Raises StartupError."""
        self.runner.open(self.demo.prepare)


def build(settings: Settings, url: DatabaseUrl) -> BuiltService:
    """The demo service. Opens nothing yet: a forked worker must not inherit connections."""
    lock = threading.RLock()
    events = EventLog(settings.transcript, time.monotonic)
    pool = PoolManager(url, settings.pool, settings.leaks, events, service=settings.service, lock=lock)
    runner = Runner(pool, settings.shutdown, lock=lock)
    demo = Demo(runner)
    return BuiltService(runner, GateMiddleware(create_app(demo), runner), demo)
