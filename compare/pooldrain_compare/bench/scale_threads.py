"""The threaded pools and shell at a given size."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from psycopg_pool import ConnectionPool
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.phases import Phase
from pooldrain.policy import PoolPolicy, ShutdownPolicy
from pooldrain.shutdown import Stop
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_compare.bench.checkouts import engines
from pooldrain_compare.bench.shells import SESSIONS, sync_runner
from pooldrain_compare.bench.watch import Watch
from pooldrain_compare.harness.witness import Witness
from pooldrain_sync.runner import Runner

TIMEOUT = 60.0


class NoServer:
    """A server without clients."""

    def drain(self) -> None:
        """Nothing comes in."""

    def cancel(self) -> None:
        """Nobody waits for a client."""

    def stop(self, step: Stop) -> None:
        """Nothing is open."""


def disposals(url: str) -> dict[str, Callable[[int], float]]:
    """By pool: open so many connections, let them be idle, close them; the seconds of the closing."""

    def closing(engine: Engine, number: int, dispose: Callable[[], None]) -> float:
        connections = [engine.connect() for _ in range(number)]
        for connection in connections:
            connection.close()
        started = time.monotonic()
        dispose()
        return time.monotonic() - started

    def ours(number: int) -> float:
        pool = sync_runner(DatabaseUrl.parse(url), PoolPolicy(pool_size=number, pre_ping=False)).pool
        return closing(pool.engine, number, lambda: pool.dispose(time.monotonic() + TIMEOUT))

    def sqlalchemy(number: int) -> float:
        engine = engines(DatabaseUrl.parse(url), number)["sqlalchemy-threads"]
        return closing(engine, number, engine.dispose)

    def psycopg_pool(number: int) -> float:
        pool = ConnectionPool(url, min_size=number, max_size=number, open=True)
        pool.wait(TIMEOUT)
        started = time.monotonic()
        pool.close()
        return time.monotonic() - started

    return {"pooldrain-threads": ours, "sqlalchemy-threads": sqlalchemy, "psycopg-pool": psycopg_pool}


def stop(url: str, number: int) -> float:
    """Stop a service whose pool of this size is all in use; the seconds from the last request's end to the drain's."""
    watch = Watch()
    policy = PoolPolicy(pool_size=number, pre_ping=False)
    runner = sync_runner(DatabaseUrl.parse(url), policy, heard=watch.hear)
    runner.open()
    held = []
    for _ in range(number):
        request = _admit(runner)
        CURRENT_REQUEST.set(request)
        held.append((request, runner.pool.engine.connect()))
    CURRENT_REQUEST.set(None)
    stopping = _shut_down(runner)
    assert watch.draining.wait(TIMEOUT), "the drain has begun"
    last = 0.0
    for request, connection in held:
        connection.close()
        last = time.monotonic()
        runner.finish(request)
    stopping.join(TIMEOUT)
    return watch.drained - last


def cancel(url: str, number: int, witness: Witness) -> float:
    """Stop a service with so many hung requests; the seconds that the cancelling took."""
    watch = Watch()
    policy = PoolPolicy(pool_size=number, pre_ping=False)
    shutdown = ShutdownPolicy(drain_timeout=0.0, cancel_timeout=TIMEOUT)
    runner = sync_runner(DatabaseUrl.parse(url), policy, shutdown=shutdown, heard=watch.hear)
    runner.open()
    threads = [threading.Thread(target=_hang, args=(runner,)) for _ in range(number)]
    for thread in threads:
        thread.start()
    witness.await_running(SESSIONS, number, TIMEOUT)
    _shut_down(runner).join(TIMEOUT)
    for thread in threads:
        thread.join(TIMEOUT)
    return watch.between(Phase.CANCELLING, Phase.RECLAIMING)


def _admit(runner: Runner) -> InFlightRequest:
    request = runner.admit("GET", "/", None)
    assert request is not None, "the gate is open"
    return request


def _hang(runner: Runner) -> None:
    request = _admit(runner)
    CURRENT_REQUEST.set(request)
    try:
        with suppress(DBAPIError), runner.pool.engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(3600)"))
    finally:
        runner.finish(request)


def _shut_down(runner: Runner) -> threading.Thread:
    runner.signalled("SIGTERM")
    thread = threading.Thread(target=runner.shut_down, args=(NoServer(),))
    thread.start()
    return thread
