"""Applications that break the backend they run in, to see that the parity suite notices.

`sync_…` and `async_…` factories, for `--app`. `…_without_STEP` removes one step from the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import psycopg
from sqlalchemy import event

from pooldrain import shutdown
from pooldrain.phases import Phase
from pooldrain.shutdown import Done
from pooldrain_compare.parity.app import loop, threads
from pooldrain_sync.runner import Runner

STEPS = {
    step.__name__.lower(): step
    for step in (
        shutdown.Announce,
        shutdown.Drain,
        shutdown.Cancel,
        shutdown.Reclaim,
        shutdown.Dispose,
        shutdown.Stop,
        shutdown.Close,
    )
}


def sync_with_header(runner: Runner) -> Any:
    """One header more."""
    app = threads.create_app(runner)

    def sending(environ: Any, start_response: Any) -> Iterable[bytes]:
        def starting(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("x-more", "1")], *rest)

        return app(environ, starting)

    return sending


def sync_losing_rows(runner: Runner) -> Any:
    """What is committed is rolled back, once the demo's table is made."""

    def rolling_back(connection: Any) -> None:
        connection.connection.rollback()

    app = threads.create_app(runner)
    runner.on_open(lambda: event.listen(runner.pool.engine, "commit", rolling_back))
    return app


def sync_skipping_a_phase(runner: Runner) -> Any:
    """A phase is not told."""
    enter = runner.enter

    def entering(phase: Phase) -> None:
        if phase is not Phase.RECLAIMING:
            enter(phase)

    vars(runner)["enter"] = entering
    return threads.create_app(runner)


def sync_connecting_while_disposing(runner: Runner) -> Any:
    """A connection that no pool knows of is opened, held for a moment, and closed."""
    dispose = runner._dispose

    def disposing(deadline: float) -> Done:
        url = runner.pool.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, application_name="pooldrain:late") as connection:
            connection.execute("SELECT pg_sleep(0.3)")
        return dispose(deadline)

    vars(runner)["_dispose"] = disposing
    return threads.create_app(runner)


def _sync_without(step: type, runner: Any) -> Any:
    perform = runner._perform

    def performing(at: Any, server: Any) -> Any:
        return Done(runner.clock()) if isinstance(at, step) else perform(at, server)

    runner._perform = performing
    return _application(threads, step)(runner)


def _async_without(step: type, runner: Any) -> Any:
    perform = runner._perform

    async def performing(at: Any, server: Any) -> Any:
        return Done(runner.clock()) if isinstance(at, step) else await perform(at, server)

    runner._perform = performing
    return _application(loop, step)(runner)


def _application(module: ModuleType, step: type) -> Any:
    """The application of the scenario that needs the step: what the stop does shows only if the end is slow."""
    return module.create_slow_stop if step is shutdown.Stop else module.create_app


def __getattr__(name: str) -> Callable[[Any], Any]:
    colour, without, step = name.partition("_without_")
    if not without or step not in STEPS:
        raise AttributeError(name)
    return partial(_sync_without if colour == "sync" else _async_without, STEPS[step])
