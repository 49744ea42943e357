"""Puts the asyncio service together from its settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from pooldrain.runtime.options.application import call_factory, load_factory
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.events import EventLog
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_async.app import create_app
from pooldrain_async.middleware import GateMiddleware
from pooldrain_async.pool import Pool
from pooldrain_async.runner import Runner


@dataclass(frozen=True, slots=True)
class BuiltService:
    """A service ready to be opened and served."""

    runner: Runner
    app: ASGIApp  # behind its gate


def build(settings: Settings, url: DatabaseUrl) -> BuiltService:
    """The user's application, or the demo. Opens nothing yet: a forked worker must not inherit connections.

    Raises ConfigurationError if the application cannot be loaded.
    """
    factory: Callable[[Runner], ASGIApp] = load_factory(settings.app) or create_app
    lock = threading.RLock()
    events = EventLog(settings.transcript, time.monotonic)
    pool = Pool(url, settings.pool, settings.leaks, events, service=settings.service, lock=lock)
    runner = Runner(pool, settings.shutdown, lock=lock)
    return BuiltService(runner, GateMiddleware(call_factory(settings.app, factory, runner), runner))
