"""Engines that an application makes are adopted: closable and tracked, and otherwise as they were asked for."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine, engine_from_config, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.util import greenlet_spawn

from pooldrain.errors import PoolClosed
from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.sqla import adoption
from pooldrain.sqla.pool import Closable, ClosablePool, PoolExhausted
from pooldrain.transcript import Event
from pooldrain_sync.pool import AdoptedPool
from pooldrain_sync.runner import Runner

# Connections that go with their engines are what some of these tests are about; Python 3.13 warns of sqlite3's.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


class Log:
    """Events, kept."""

    detailed = True

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def emit(self, event: Event) -> None:
        self.seen.append(event)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event.as_dict() for event in self.seen if event.name == name]


class World:
    """A service without a pool of its own, that adopts what is made."""

    def __init__(self) -> None:
        self.events = Log()
        self.runner = Runner(None, ShutdownPolicy(), events=self.events, lock=threading.RLock())

    def adopt(self, engine: Engine) -> None:
        self.runner.adopt(engine, PoolPolicy(), LeakPolicy(), "test")

    def close(self) -> None:
        """What the shutdown does to the pools."""
        self.runner.close_pools()
        for pool in self.runner.pools:
            pool.dispose(deadline=time.monotonic() + 30)

    @property
    def books(self) -> list[tuple[int, int]]:
        return [(counts.opened, counts.closed) for counts in self.runner.pool_counts()]


@pytest.fixture(name="world")
def _world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(sqlalchemy.engine.URL, "_instantiate_plugins", sqlalchemy.engine.URL._instantiate_plugins)
    world = World()
    adoption.adopt_with(world.adopt)
    adoption.adopt_every_engine()
    yield world
    adoption.adopt_with(None)
    world.runner.pools.clear()
    gc.collect()  # here, and not in a test that is not about it


@pytest.fixture(name="url")
def _url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'adopted.db'}"


class Custom(QueuePool):
    """An application's own pool."""

    calls = 0

    def _do_get(self) -> Any:
        self.calls += 1
        return super()._do_get()


POOLS: dict[str, type[Pool]] = {
    kind.__name__: kind for kind in (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool, Custom)
}
every_pool = pytest.mark.parametrize("kind", POOLS.values(), ids=POOLS)


def select(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()


# -- what is adopted


@every_pool
def test_every_kind_of_pool_becomes_closable_and_stays_of_its_kind(world: World, url: str, kind: type[Pool]) -> None:
    engine = create_engine(url, poolclass=kind)
    assert isinstance(engine.pool, Closable)
    assert isinstance(engine.pool, kind)
    assert isinstance(engine.pool, ClosablePool) == issubclass(kind, QueuePool)
    assert select(engine) == 1
    assert world.events.named("engine_adopted")[0]["pool_class"] == kind.__name__


@every_pool
def test_a_closed_pool_of_every_kind_gives_nothing_and_keeps_nothing(world: World, url: str, kind: type[Pool]) -> None:
    engine = create_engine(url, poolclass=kind)
    select(engine)
    world.close()
    with pytest.raises(PoolClosed):
        engine.connect()
    engine.dispose()
    with pytest.raises(PoolClosed):
        engine.connect()
    (opened, closed), *_ = world.books
    assert opened == closed == 1


@every_pool
def test_what_comes_back_after_the_closing_is_closed(world: World, url: str, kind: type[Pool]) -> None:
    engine = create_engine(url, poolclass=kind)
    connection = engine.connect()
    world.close()
    connection.close()
    assert world.books == [(1, 1)]


@every_pool
def test_a_leak_of_every_kind_of_pool_is_named_with_its_engine(world: World, url: str, kind: type[Pool]) -> None:
    engine = create_engine(url, poolclass=kind, logging_name="shop")
    request = world.runner.admit("GET", "/leak", None)
    assert request is not None
    token = CURRENT_REQUEST.set(request)
    connection = engine.connect()
    connection.execute(text("SELECT 42"))
    CURRENT_REQUEST.reset(token)
    world.runner.finish(request)
    (leak,) = world.events.named("leak")
    assert (leak["rule"], leak["holding"]["pool"], leak["holding"]["holder"]) == ("unreturned", "shop", "GET /leak")
    assert "test_adoption.py" in leak["holding"]["call_site"]
    assert leak["holding"]["statement"] == "SELECT 42"
    connection.close()


def test_engines_are_adopted_however_they_are_made(world: World, url: str) -> None:
    engines = [
        create_engine(url),
        engine_from_config({"sqlalchemy.url": url}),
        create_async_engine(url.replace("sqlite", "sqlite+aiosqlite")).sync_engine,
        create_async_engine("sqlite+aiosqlite://").sync_engine,  # in memory: a StaticPool
        create_engine("sqlite://"),  # a SingletonThreadPool
    ]
    assert all(isinstance(engine.pool, Closable) for engine in engines)
    assert len(world.runner.pools) == len(engines)
    assert isinstance(engines[2].pool, AsyncAdaptedQueuePool)


def test_an_engine_may_ask_to_be_adopted_by_our_entry_points_name(url: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine(url, plugins=["pooldrain"])
    assert isinstance(engine.pool, Closable)
    with caplog.at_level(logging.WARNING, "pooldrain"):
        connection = engine.connect()
        del connection
        gc.collect()
    assert "leak (collected)" in caplog.text
    assert f"of {url}" in caplog.text
    engine.dispose()


def test_an_engine_is_adopted_once(world: World, url: str) -> None:
    engine = create_engine(url, plugins=["pooldrain"])
    assert len(world.runner.pools) == 1
    adoption.adopt(engine)
    assert len(world.runner.pools) == 1


def test_our_own_pools_are_not_adopted(world: World) -> None:
    assert not world.runner.pools, "nothing is opened, and nothing made, that the application has not asked for"


# -- what stays as it was


def test_the_applications_settings_stay(world: World, url: str) -> None:
    engine = create_engine(
        url, pool_size=3, max_overflow=1, pool_timeout=0.1, pool_recycle=60, pool_use_lifo=True, isolation_level=None
    )
    assert isinstance(engine.pool, QueuePool)
    held = [engine.connect() for _ in range(4)]
    with pytest.raises(PoolExhausted, match="QueuePool limit of size 3 overflow 1"):
        engine.connect()
    for connection in held:
        connection.close()
    assert engine.pool.status().startswith("Pool size: 3")


def test_the_applications_listeners_and_creator_are_called_as_ever(world: World, url: str) -> None:
    seen: list[str] = []
    import sqlite3

    def creator() -> Any:
        seen.append("creator")
        return sqlite3.connect(url.removeprefix("sqlite:///"), check_same_thread=False)

    def checked_out(*args: Any) -> None:
        seen.append("checkout")

    engine = create_engine("sqlite://", creator=creator, poolclass=QueuePool, pool_events=[(checked_out, "checkout")])
    event.listen(engine, "connect", lambda *args: seen.append("connect"))
    select(engine)
    engine.dispose()
    select(engine)
    assert seen == ["creator", "connect", "checkout"] * 2


def test_an_engine_that_its_application_disposes_goes_on_with_a_fresh_pool(world: World, url: str) -> None:
    engine = create_engine(url)
    select(engine)
    engine.dispose()
    assert world.books == [(1, 1)]
    select(engine)
    assert world.books == [(2, 1)]
    world.close()
    assert world.books == [(2, 2)]


def test_an_engine_with_other_options_shares_the_pool_and_the_books(world: World, url: str) -> None:
    engine = create_engine(url)
    other = engine.execution_options(isolation_level="AUTOCOMMIT")
    select(other)
    assert len(world.runner.pools) == 1
    assert world.books == [(1, 0)]


def test_two_engines_on_one_pool_are_one_pool(world: World, url: str) -> None:
    engine = create_engine(url)
    other = create_engine(url, pool=engine.pool)
    select(other)
    assert len(world.runner.pools) == 1


def test_a_pool_that_was_used_before_keeps_its_connections(world: World, url: str) -> None:
    pool = QueuePool(lambda: __import__("sqlite3").connect(":memory:", check_same_thread=False))
    pool.connect().close()
    engine = create_engine(url, pool=pool)
    assert isinstance(engine.pool, ClosablePool)
    assert len(engine.pool.idle_records()) == 1


def test_an_engine_that_nobody_keeps_is_collected_with_its_connections(world: World, url: str) -> None:
    for _ in range(3):
        select(create_engine(url))
    gc.collect()
    assert world.books == [(1, 1)] * 3
    world.runner.let_go_pools()
    assert not world.runner.pools
    assert len(world.runner.pool_counts()) == 3, "its numbers are kept for the report"


def test_the_numbers_of_many_engines_that_are_gone_are_summed_up(world: World, url: str) -> None:
    for _ in range(25):
        select(create_engine(url))
        gc.collect()
        world.runner.let_go_pools()
    counts = world.runner.pool_counts()
    assert len(counts) <= 21
    assert sum(each.opened for each in counts) == sum(each.closed for each in counts) == 25


# -- pools with one connection for all


def test_a_connection_that_two_share_counts_once_until_the_first_has_returned_it(world: World, url: str) -> None:
    engine = create_engine(url, poolclass=StaticPool)
    first, second = engine.connect(), engine.connect()
    assert world.runner.pools[0].status.checkedout == 1
    first.close()
    second.close()
    assert world.runner.pools[0].status.checkedout == 0


def test_a_thread_that_checks_its_connection_out_twice_holds_it_once(world: World) -> None:
    engine = create_engine("sqlite://")
    with engine.connect(), engine.connect():
        assert world.runner.pools[0].status.checkedout == 1
    assert world.runner.pools[0].status.checkedout == 0


def test_connections_of_other_threads_are_closed_without_a_word(world: World, caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine("sqlite://")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(select, engine).result()
        world.close()
    assert world.books == [(1, 1)]
    assert not caplog.records


def test_a_waiter_of_an_applications_own_pool_is_woken_by_the_closing(world: World, url: str) -> None:
    engine = create_engine(url, poolclass=Custom, pool_size=1, max_overflow=0, pool_timeout=60)
    held = engine.connect()
    assert isinstance(engine.pool, ClosablePool)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(engine.connect)
        while not engine.pool._pool.waiting:
            pass
        world.runner.close_pools()
        with pytest.raises(PoolClosed, match="while waiting"):
            waiting.result()
    assert vars(engine.pool)["calls"] == 2
    held.close()


# -- a request that was cancelled


def test_a_cancelled_request_gets_no_connection_and_others_do(world: World, url: str) -> None:
    engine = create_engine(url)
    request = InFlightRequest("GET", "/cut", None, 0.0)
    request.cancelled = True
    token = CURRENT_REQUEST.set(request)
    with pytest.raises(PoolClosed):
        engine.connect()
    CURRENT_REQUEST.reset(token)
    assert select(engine) == 1


# -- names


def test_an_engine_is_called_by_its_logging_name_its_pools_or_its_masked_url(world: World, url: str) -> None:
    create = [
        create_engine(url, logging_name="shop"),
        create_engine(url, pool_logging_name="pool of the shop"),
        create_engine("postgresql+psycopg://user:geheim@host/shop"),
        create_engine("postgresql+psycopg://user:geheim@host/shop"),
    ]
    kept = list(create)
    names = [pool.name for pool in world.runner.pools]
    masked = "postgresql+psycopg://user:***@host/shop"
    assert names == ["shop", "pool of the shop", masked, f"{masked} (2)"]
    assert not world.runner.names_taken
    assert len(kept) == 4


def test_a_name_that_two_engines_are_given_is_noticed(world: World, url: str) -> None:
    kept = [create_engine(url, logging_name="shop") for _ in range(2)]
    assert world.runner.names_taken == ["shop"]
    assert [pool.name for pool in world.runner.pools] == ["shop", "shop (2)"]
    assert len(kept) == 2


def test_binds_of_two_applications_may_have_one_key(world: World, url: str) -> None:
    flask_sqlalchemy: dict[str, Any] = {"__name__": "flask_sqlalchemy.extension", "create_engine": create_engine}
    make = "def make(bind_key, url):\n    return create_engine(url)\n"
    exec(make, flask_sqlalchemy)
    kept = [flask_sqlalchemy["make"](key, url) for key in (None, "archive", None)]
    assert [pool.name for pool in world.runner.pools] == ["default", "archive", "default (2)"]
    assert not world.runner.names_taken, "nobody has given them these names"
    assert len(kept) == 3


# -- drivers


def test_a_driver_that_we_do_not_know_is_adopted_and_told_of(world: World, url: str) -> None:
    engine = create_engine(url, plugins=[])
    engine.dialect.driver = "exotic"
    world.runner.pools.clear()
    world.adopt(engine)
    told = world.events.named("engine_adopted")[-1]
    assert "may not be cancelled" in told["limits"]
    assert select(engine) == 1


# -- engines of asyncio in a service of threads


def test_an_asyncio_engine_is_closed_on_its_own_loop(world: World, url: str) -> None:
    engine = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(greenlet_spawn(select, engine.sync_engine), loop).result()
        world.close()
        assert world.books == [(1, 1)]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_an_engine_that_is_made_too_late_is_closed_at_once(world: World, url: str) -> None:
    world.close()
    engine = create_engine(url)
    with pytest.raises(PoolClosed):
        engine.connect()


def test_adopting_opens_nothing(world: World, url: str) -> None:
    engine = create_engine(url)
    (pool,) = world.runner.pools
    assert isinstance(pool, AdoptedPool)
    pool.open()
    assert world.books == [(0, 0)]
    assert engine.pool is pool.pool
