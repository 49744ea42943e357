"""Puts a service together from its settings, and from what its shell has of each kind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pooldrain.current import set_current_runner
from pooldrain.errors import ConfigurationError
from pooldrain.lifecycle import Lifecycle
from pooldrain.probes import Probes
from pooldrain.runtime.options.application import AppName, Kind, check_application, load_application
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.access import access_log
from pooldrain.runtime.output.events import EventLog
from pooldrain.runtime.process.at_exit import AtExit
from pooldrain.sqla import adoption
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.transcript import ProbesAnswered

logger = logging.getLogger("pooldrain")

RunnerT = TypeVar("RunnerT", bound=Lifecycle[Any, Any])
AppT = TypeVar("AppT")

# What only a pool of our own has; an application that makes its engines itself has said all of it there.
_OWN_POOL = (
    *("database_url", "pool_size", "max_overflow", "pool_timeout"),
    *("pool_recycle", "pre_ping", "min_idle"),
)


@dataclass(frozen=True, slots=True)
class BuiltService(Generic[RunnerT, AppT]):
    """A service ready to be opened and served."""

    runner: RunnerT
    app: AppT  # behind its gate


def assemble(
    settings: Settings,
    url: DatabaseUrl | None,
    *,
    pool: Callable[..., Any],
    runner: Callable[..., RunnerT],
    gate: Callable[[AppT, RunnerT], AppT],
    demo: Callable[[RunnerT], AppT],
) -> BuiltService[RunnerT, AppT]:
    """The user's application, or the demo. Opens nothing yet: a forked worker must not inherit connections.

    `url`: of the service's own pool, which only the demo and a factory that takes the runner have. Raises
    ConfigurationError or StartupError if the application cannot be loaded.
    """
    lock = threading.RLock()
    events = EventLog(settings.transcript, time.monotonic)
    made = runner(None, settings.shutdown, events=events, lock=lock)
    made.probes = Probes(settings.probes, settings.livez_path, settings.readyz_path)
    made.access = access_log(settings.access_log)
    set_current_runner(made)

    def give_pool() -> None:
        own = pool(url, settings.pool, settings.leaks, events, service=settings.service, lock=lock)
        own.processes = settings.workers
        made.own(own)

    if settings.app is None:
        give_pool()
        app = demo(made)
    else:
        app = _users(settings, settings.app, url, made, give_pool)
    return BuiltService(made, gate(app, made))


def _users(
    settings: Settings,
    name: AppName,
    url: DatabaseUrl | None,
    runner: Lifecycle[Any, Any],
    give_pool: Callable[[], None],
) -> Any:
    """The user's application, with the engines that it makes adopted, and its `atexit` functions kept for its end."""
    at_exit = AtExit()
    at_exit.collect()
    runner.at_exit, runner.at_last = at_exit.take, at_exit.take_last
    adoption.adopt_with(lambda engine: runner.adopt(engine, settings.pool, settings.leaks, settings.service))
    adoption.adopt_every_engine()
    loaded = load_application(name, settings.backend, factory=settings.factory, directory=settings.app_dir)
    if loaded.kind is Kind.RUNNER_FACTORY:
        if url is None:
            raise ConfigurationError(
                f"{name} takes the runner, whose pool needs a database: give --database-url, or set DATABASE_URL"
            )
        give_pool()
    app = loaded.make(runner)
    check_application(app, name, settings.backend)
    if runner.names_taken:
        raise ConfigurationError(
            f"{name} has two engines that are called {runner.names_taken[0]}; give each its own logging_name"
        )
    if runner.has_no_pool and (idle := [origin for dest, origin in settings.given if dest in _OWN_POOL]):
        logger.warning("no effect: %s; %s makes its engines itself", ", ".join(idle), name)
    probes = runner.probes
    runner.told_when_ready.append(ProbesAnswered(probes.answered_by, probes.livez, probes.readyz))
    return app
