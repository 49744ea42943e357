"""Puts a service together from its settings, and from what its shell has of each kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pooldrain.runtime.options.application import call_factory, load_factory
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.events import EventLog
from pooldrain.sqla.database_url import DatabaseUrl

RunnerT = TypeVar("RunnerT")
AppT = TypeVar("AppT")


@dataclass(frozen=True, slots=True)
class BuiltService(Generic[RunnerT, AppT]):
    """A service ready to be opened and served."""

    runner: RunnerT
    app: AppT  # behind its gate


def assemble(
    settings: Settings,
    url: DatabaseUrl,
    *,
    pool: Callable[..., object],
    runner: Callable[..., RunnerT],
    gate: Callable[[AppT, RunnerT], AppT],
    demo: Callable[[RunnerT], AppT],
) -> BuiltService[RunnerT, AppT]:
    """The user's application, or the demo. Opens nothing yet: a forked worker must not inherit connections.

    Raises ConfigurationError if the application cannot be loaded.
    """
    factory: Callable[[RunnerT], AppT] = load_factory(settings.app) or demo
    lock = threading.RLock()
    events = EventLog(settings.transcript, time.monotonic)
    main = pool(url, settings.pool, settings.leaks, events, service=settings.service, lock=lock)
    made = runner(main, settings.shutdown, lock=lock)
    return BuiltService(made, gate(call_factory(settings.app, factory, made), made))
