"""Puts the asyncio service together from its settings."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from starlette.types import ASGIApp

from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain.runtime.events import EventLog
from pooldrain.runtime.settings import Settings
from pooldrain_async.app import Demo, create_app
from pooldrain_async.middleware import GateMiddleware
from pooldrain_async.pool import PoolManager
from pooldrain_async.runner import Runner


@dataclass(frozen=True, slots=True)
class BuiltService:
    """A service ready to be opened and served."""

    runner: Runner
    app: ASGIApp  # behind its gate
    demo: Demo

    async def open(self) -> None:
        """Open the pool and make the demo's table. Raises StartupError."""
        await self.runner.open(self.demo.prepare)


def build(settings: Settings, url: DatabaseUrl) -> BuiltService:
    """The demo service. Opens nothing yet: a forked worker must not inherit connections."""
    lock = threading.RLock()
    events = EventLog(settings.transcript, time.monotonic)
    pool = PoolManager(url, settings.pool, settings.leaks, events, service=settings.service, lock=lock)
    runner = Runner(pool, settings.shutdown, lock=lock)
    demo = Demo(runner)
    return BuiltService(runner, GateMiddleware(create_app(demo), runner), demo)
