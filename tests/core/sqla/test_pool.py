"""The closable pools, in both colours: once closed, nobody gets in, nobody waits on, nothing comes back."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from pooldrain import PoolClosed
from pooldrain.sqla.async_pool import ClosableAsyncQueuePool
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.pool import ClosablePool, ClosableQueuePool, PoolExhausted
from pooldrain.sqla.queues import ClosableAsyncQueue
from pooldrain.status import PoolStatus
from tests.harness.colours import Colour, Loop, both_colours, run, until_waiting

POOL_TIMEOUT = 60.0  # seconds: who is woken in time was not woken by this

# -- a driver that is easy to look at


class FakeConnection:
    """A DBAPI connection that only knows whether it is open."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self._driver.open.remove(self)


class Driver:
    """Opens connections, and knows which are open."""

    def __init__(self) -> None:
        self.open: list[FakeConnection] = []
        self.opened = 0
        self.most_open = 0
        self.before_connect: Callable[[], None] = lambda: None

    def connect(self) -> Any:
        self.before_connect()
        self.opened += 1
        self.open.append(FakeConnection(self))
        self.most_open = max(self.most_open, len(self.open))
        return self.open[-1]


def make(
    colour: Colour, driver: Driver, size: int = 2, overflow: int = 0, timeout: float = POOL_TIMEOUT, **options: Any
) -> ClosablePool:
    pool = colour.pool_class(driver.connect, pool_size=size, max_overflow=overflow, timeout=timeout, **options)
    colour.watch(pool)
    return pool


def fill(pool: ClosablePool, count: int) -> list[PoolProxiedConnection]:
    return [pool.connect() for _ in range(count)]


def in_turn(*calls: Callable[[], None]) -> Callable[[], None]:
    def all_of_them() -> None:
        for call in calls:
            call()

    return all_of_them


def give_back(*connections: PoolProxiedConnection) -> None:
    for connection in connections:
        connection.close()


# -- 1. a checkout of a closed pool is refused, and waiters are woken


@both_colours
def test_a_checkout_after_close_is_refused_at_once_even_if_a_connection_is_idle(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    held, idle = fill(pool, 2)
    give_back(idle)
    pool.close()
    with pytest.raises(PoolClosed, match=r"at checkout.*pool_size 2, checked out 1") as refusal:
        pool.connect()
    assert (refusal.value.pool_size, refusal.value.checkedout, refusal.value.waiting) == (2, 1, False)
    assert driver.opened == 2
    give_back(held)


@both_colours
def test_a_connection_that_fails_its_test_while_the_pool_closes_is_not_replaced(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    give_back(*fill(pool, 1))

    def failing(connection: object, record: object, proxy: object) -> None:
        pool.close()
        raise DisconnectionError("dead")

    event.listen(pool, "checkout", failing)
    with pytest.raises(PoolClosed):
        pool.connect()
    assert (driver.opened, driver.open) == (1, [])
    assert pool.checkedout() == 0


@both_colours
def test_everybody_who_waits_is_woken_by_close_and_not_by_a_timeout(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    held = fill(pool, 2)
    results = [colour.start(pool.connect) for _ in range(5)]
    colour.until_waiting(pool, 5)
    pool.close()
    for result in results:
        with pytest.raises(PoolClosed, match="while waiting for a connection") as woken:
            result()
        assert woken.value.waiting
    assert driver.opened == 2
    give_back(*held)


@both_colours
def test_while_the_pool_is_open_a_returned_connection_goes_to_who_waits(colour: Colour) -> None:
    pool = make(colour, Driver(), size=1)
    held = pool.connect()
    driver_connection = held.dbapi_connection
    result = colour.start(pool.connect)
    colour.until_waiting(pool, 1)
    held.close()
    got = result()
    assert got.dbapi_connection is driver_connection
    give_back(got)


@both_colours
def test_while_the_pool_is_open_who_waits_too_long_gets_sqlalchemys_timeout(colour: Colour) -> None:
    pool = make(colour, Driver(), size=1, timeout=0)
    held = pool.connect()
    with pytest.raises(PoolTimeoutError, match="limit of size 1 overflow 0 reached") as waited:
        pool.connect()
    assert isinstance(waited.value, PoolExhausted)
    assert (waited.value.numbers.checkedout, waited.value.waiting, waited.value.holders) == (1, 0, ())
    assert pool.numbers() == PoolStatus(pool_size=1, checkedout=1, overflow=0, idle=0)
    give_back(held)


@both_colours
def test_a_connection_beyond_the_pools_size_is_not_closed_while_somebody_waits_for_one(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=1, overflow=1)
    held = fill(pool, 2)
    results = [colour.start(pool.connect) for _ in range(2)]
    colour.until_waiting(pool, 2)
    give_back(*held)
    got = [result() for result in results]
    assert driver.opened == 2, "none is opened in place of one that was closed"
    give_back(*got)
    assert pool.numbers() == PoolStatus(pool_size=1, checkedout=0, overflow=0, idle=1)


class PingedDriver(Driver):
    """A dialect, as far as the pool asks one: it counts the tests."""

    tests = 0

    def _do_ping_w_event(self, connection: object) -> bool:
        self.tests += 1
        return True


@both_colours
@pytest.mark.parametrize(
    ("window", "news", "tests"), [(0.5, False, 1), (0.0, False, 3), (0.5, True, 3)], ids=["window", "none", "news"]
)
def test_a_connection_that_was_used_just_now_is_not_tested_again_unless_something_has_come(
    colour: Colour, monkeypatch: pytest.MonkeyPatch, window: float, news: bool, tests: int
) -> None:
    def told(driver: object) -> bool:
        return news

    monkeypatch.setattr("pooldrain.sqla.pool.has_news", told)
    driver = PingedDriver()
    pool = make(colour, driver)
    dialect: Any = driver
    for name in ("do_rollback", "do_close", "do_terminate", "get_driver_connection"):
        setattr(driver, name, getattr(pool._dialect, name))
    driver.__dict__.update(has_terminate=pool._dialect.has_terminate, is_async=pool._dialect.is_async)
    pool._dialect, pool._pre_ping = dialect, True
    now = 100.0
    pool.lifetime.untested, pool.lifetime.clock = window, lambda: now
    for pause in (0.0, 0.1, 0.4, 0.6):
        now += pause
        give_back(pool.connect())
    assert driver.tests == tests


@both_colours
def test_closing_twice_is_closing(colour: Colour) -> None:
    pool = make(colour, Driver())
    assert not pool.closed
    pool.close()
    pool.close()
    assert pool.closed


@both_colours
def test_a_connection_that_was_being_opened_at_the_close_is_closed_again_and_refused(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    entered, until_entered = colour.event()
    resume, until_resumed = colour.event()
    driver.before_connect = in_turn(entered, until_resumed)
    result = colour.start(pool.connect)
    until_entered()
    pool.close()
    resume()
    with pytest.raises(PoolClosed):
        result()
    assert driver.open == []
    assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


@both_colours
def test_a_connection_that_was_being_opened_anew_at_the_close_is_closed_again_and_refused(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    connection = pool.connect()
    connection.invalidate()  # its place in the pool is kept, and connects again at the next checkout
    entered, until_entered = colour.event()
    resume, until_resumed = colour.event()
    driver.before_connect = in_turn(entered, until_resumed)
    result = colour.start(pool.connect)
    until_entered()
    pool.close()
    resume()
    with pytest.raises(PoolClosed):
        result()
    assert driver.open == []
    assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


@both_colours
def test_a_connection_that_cannot_be_opened_leaves_no_trace_in_the_counts(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)

    def out_of_reach() -> None:
        raise OSError("no route to host")

    driver.before_connect = out_of_reach
    with pytest.raises(OSError, match="no route"):
        pool.connect()
    assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


# -- 2. what comes back to a closed pool is closed


@both_colours
def test_a_connection_that_comes_back_after_close_is_closed_and_not_pooled(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=1, overflow=1)
    held = fill(pool, 2)
    pool.close()
    for left in (1, 0):
        give_back(held.pop())
        assert len(driver.open) == left
        assert pool.numbers() == PoolStatus(pool_size=1, checkedout=left, overflow=0, idle=0)


@both_colours
def test_idle_connections_stay_open_until_they_are_taken_out_and_discarded(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    give_back(*fill(pool, 2))
    pool.close()
    assert pool.numbers().idle == 2
    for left in (1, 0):
        record = pool.take_idle()
        assert record is not None
        pool.discard(record)
        assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=left)
        assert len(driver.open) == left
    assert pool.take_idle() is None


# -- 3. a closed pool stays closed, whoever recreates it


@both_colours
def test_the_successor_of_a_closed_pool_is_closed(colour: Colour) -> None:
    pool = make(colour, Driver())
    pool.close()
    successor = pool.recreate()
    assert successor.closed
    with pytest.raises(PoolClosed):
        successor.connect()


@both_colours
def test_the_successor_of_an_open_pool_is_open_and_like_it(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=3, overflow=4, timeout=5, use_lifo=True, recycle=60)
    successor = pool.recreate()
    assert type(successor) is type(pool)
    assert (successor.size(), successor._max_overflow, successor.timeout()) == (3, 4, 5)
    assert (successor._pool.use_lifo, successor._recycle) == (True, 60)
    give_back(successor.connect())


@both_colours
def test_closing_a_pool_closes_its_predecessors_and_successors(colour: Colour) -> None:
    first = make(colour, Driver())
    second = first.recreate()
    third = second.recreate()
    second.close()
    for pool in (first, second, third):
        assert pool.closed
        with pytest.raises(PoolClosed):
            pool.connect()


@both_colours
def test_who_waits_in_a_replaced_pool_is_woken_when_its_successor_closes(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=1)
    held = pool.connect()
    result = colour.start(pool.connect)
    colour.until_waiting(pool, 1)
    successor = pool.recreate()  # as Engine.dispose() does: dispose, and put another in its place
    pool.dispose()
    try:
        successor.close()
        with pytest.raises(PoolClosed):
            result()
    finally:
        pool.close()  # lets the waiter go, if it still waits
        give_back(held)
    assert driver.opened == 1


# -- 4. the counts are true


@both_colours
def test_the_counts_follow_what_is_out_what_is_idle_and_what_is_beyond_the_size(colour: Colour) -> None:
    pool = make(colour, Driver(), size=2, overflow=2)
    seen = [pool.numbers()]
    held: list[PoolProxiedConnection] = []
    for _ in range(4):
        held.append(pool.connect())
        seen.append(pool.numbers())
    while held:
        give_back(held.pop())
        seen.append(pool.numbers())
    assert [(now.checkedout, now.overflow, now.idle) for now in seen] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (3, 1, 0),
        (4, 2, 0),
        (3, 2, 1),
        (2, 2, 2),
        (1, 1, 2),
        (0, 0, 2),
    ]
    pool.dispose()


@both_colours
def test_the_counts_stay_true_when_a_pool_is_disposed_with_connections_out(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=3)
    held = fill(pool, 2)
    give_back(pool.connect())
    pool.dispose()
    assert pool.numbers() == PoolStatus(pool_size=3, checkedout=2, overflow=0, idle=0)
    assert len(driver.open) == 2
    for left in (1, 0):
        give_back(held.pop())
        assert pool.numbers() == PoolStatus(pool_size=3, checkedout=left, overflow=0, idle=0)
    assert driver.open == [], "what comes back to an older generation is closed"


@both_colours
def test_a_place_without_a_connection_is_not_idle(colour: Colour) -> None:
    pool = make(colour, Driver())
    pool.connect().invalidate()
    assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


@both_colours
def test_a_connection_that_fails_to_close_keeps_no_other_from_being_closed(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver)
    broken, sound = fill(pool, 2)

    def fail() -> None:
        raise OSError("broken pipe")

    broken_connection: Any = broken.dbapi_connection
    broken_connection.close = fail
    give_back(broken, sound)
    pool.dispose()
    assert driver.open == [broken_connection]
    assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


# -- and it is still SQLAlchemy's pool


@both_colours
@pytest.mark.parametrize("lifo", [True, False], ids=["lifo", "fifo"])
def test_the_connection_taken_next_is_the_last_returned_or_the_first(colour: Colour, lifo: bool) -> None:
    pool = make(colour, Driver(), use_lifo=lifo)
    first, last = fill(pool, 2)
    connections = [first.dbapi_connection, last.dbapi_connection]
    give_back(first, last)
    taken = pool.connect()
    assert taken.dbapi_connection is connections[1 if lifo else 0]
    give_back(taken)
    pool.dispose()


@both_colours
def test_under_contention_no_more_connections_are_open_than_allowed(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=2, overflow=1)

    def work() -> int:
        done = 0
        while done < 30:
            connection = pool.connect()
            colour.breathe()
            numbers = pool.numbers()
            assert 1 <= numbers.checkedout <= 3
            assert 0 <= numbers.overflow <= 1
            give_back(connection)
            done += 1
        return done

    results = [colour.start(work) for _ in range(8)]
    assert sum(result() for result in results) == 240
    assert driver.most_open <= 3
    numbers = pool.numbers()
    assert (numbers.checkedout, numbers.idle) == (0, len(driver.open))
    pool.dispose()
    assert driver.open == []


@both_colours
def test_a_close_in_the_middle_of_it_ends_everybody_and_leaves_nothing_open(colour: Colour) -> None:
    driver = Driver()
    pool = make(colour, driver, size=2, overflow=1)
    busy, until_busy = colour.event()

    def work() -> int:
        done = 0
        while True:
            connection = pool.connect()
            colour.breathe()
            give_back(connection)
            done += 1
            if done == 10:
                busy()

    results = [colour.start(work) for _ in range(8)]
    until_busy()
    pool.close()
    for result in results:
        with pytest.raises(PoolClosed):
            result()
    pool.dispose()
    assert driver.open == []
    assert pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


# -- cancellation (asyncio): a wake-up is never lost


def test_a_cancelled_waiter_leaves_the_queue_and_the_next_one_gets_the_connection() -> None:
    async def test() -> None:
        pool = make(Loop(), Driver(), size=1)
        held = await greenlet_spawn(pool.connect)
        first, second = (asyncio.create_task(greenlet_spawn(pool.connect)) for _ in range(2))
        await until_waiting(pool, 2)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await until_waiting(pool, 1)
        await greenlet_spawn(held.close)
        await greenlet_spawn((await second).close)

    run(test())


def test_a_waiter_cancelled_just_after_it_was_woken_passes_the_connection_on() -> None:
    async def test() -> None:
        pool = make(Loop(), Driver(), size=1)
        held = await greenlet_spawn(pool.connect)
        first, second = (asyncio.create_task(greenlet_spawn(pool.connect)) for _ in range(2))
        await until_waiting(pool, 2)
        await greenlet_spawn(held.close)  # wakes the first, which does not run before it is cancelled
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await greenlet_spawn((await second).close)
        assert pool.numbers() == PoolStatus(pool_size=1, checkedout=0, overflow=0, idle=1)

    run(test())


def test_a_waiter_whose_connection_was_taken_by_a_newcomer_waits_on() -> None:
    async def test() -> None:
        pool = make(Loop(), Driver(), size=1)
        held = await greenlet_spawn(pool.connect)
        waiter = asyncio.create_task(greenlet_spawn(pool.connect))
        await until_waiting(pool, 1)

        def swap() -> PoolProxiedConnection:
            held.close()
            return pool.connect()  # before the waiter runs

        newcomer = await greenlet_spawn(swap)
        await until_waiting(pool, 1)
        assert not waiter.done()
        await greenlet_spawn(newcomer.close)
        await greenlet_spawn((await waiter).close)

    run(test())


def test_a_connection_returned_just_after_a_waiter_was_cancelled_goes_to_the_next_one() -> None:
    async def test() -> None:
        pool = make(Loop(), Driver(), size=1)
        held = await greenlet_spawn(pool.connect)
        first, second = (asyncio.create_task(greenlet_spawn(pool.connect)) for _ in range(2))
        await until_waiting(pool, 2)
        first.cancel()
        await greenlet_spawn(held.close)  # before the first knows
        await asyncio.wait([first])
        assert first.cancelled()
        await greenlet_spawn((await second).close)

    run(test())


def test_a_waiter_cancelled_at_the_close_is_cancelled() -> None:
    async def test() -> None:
        pool = make(Loop(), Driver(), size=1)
        held = await greenlet_spawn(pool.connect)
        waiter = asyncio.create_task(greenlet_spawn(pool.connect))
        await until_waiting(pool, 1)
        waiter.cancel()
        pool.close()
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        await greenlet_spawn(held.close)

    run(test())


def test_a_connection_that_another_thread_returns_wakes_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run in any thread, and with it the return of a forgotten connection."""

    async def test() -> None:
        queue = ClosableAsyncQueue(1)
        getter = asyncio.ensure_future(greenlet_spawn(queue.get))
        while not queue.waiting:
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        call_soon, threads = loop.call_soon, set[int]()

        def watched(*args: Any, **kwargs: Any) -> asyncio.Handle:
            threads.add(threading.get_ident())
            return call_soon(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon", watched)
        item: Any = object()
        await asyncio.to_thread(queue.put_nowait, item)
        assert await getter is item
        assert threads == {threading.get_ident()}, "an idle loop does not notice what another thread calls soon"

    run(test())


# -- with real engines


@pytest.fixture(name="url")
def _url(tmp_path: Path) -> DatabaseUrl:
    return DatabaseUrl.parse(f"sqlite:///{tmp_path}/file.db")


def test_an_engines_closed_pool_stays_closed_through_dispose(url: DatabaseUrl) -> None:
    engine = sqlalchemy.create_engine(url.sync_url, poolclass=ClosableQueuePool)
    held = engine.connect()
    pool = engine.pool
    assert isinstance(pool, ClosableQueuePool)
    pool.close()
    engine.dispose()
    assert engine.pool is not pool
    with pytest.raises(PoolClosed):
        engine.connect()
    assert held.execute(text("SELECT 1")).scalar() == 1, "what is in use may still be used"
    raw = held.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    held.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        raw.execute("SELECT 1")


def test_an_async_engines_closed_pool_stays_closed_through_dispose(url: DatabaseUrl) -> None:
    async def test() -> None:
        engine = create_async_engine(url.async_url, poolclass=ClosableAsyncQueuePool)
        held = await engine.connect()
        pool = engine.pool
        assert isinstance(pool, ClosableAsyncQueuePool)
        pool.close()
        await engine.dispose()
        assert engine.pool is not pool
        with pytest.raises(PoolClosed):
            async with engine.connect():
                pass
        assert (await held.execute(text("SELECT 1"))).scalar() == 1
        raw: Any = (await held.get_raw_connection()).driver_connection
        await held.close()
        with pytest.raises(ValueError, match="no active connection"):
            await raw.execute("SELECT 1")

    run(test())


def test_a_session_of_a_closed_pool_raises_pool_closed_and_nothing_else(url: DatabaseUrl) -> None:
    engine = sqlalchemy.create_engine(url.sync_url, poolclass=ClosableQueuePool)
    with Session(engine) as session:
        assert isinstance(engine.pool, ClosableQueuePool)
        engine.pool.close()
        with pytest.raises(PoolClosed):
            session.execute(text("SELECT 1"))


def test_an_engine_that_is_disposed_of_while_it_is_open_goes_on(url: DatabaseUrl) -> None:
    engine = sqlalchemy.create_engine(url.sync_url, poolclass=ClosableQueuePool, pool_size=2)
    held = engine.connect()
    engine.connect().close()
    engine.dispose()
    with engine.connect() as another:
        assert another.execute(text("SELECT 1")).scalar() == 1
    held.close()
    assert isinstance(engine.pool, ClosableQueuePool)
    assert engine.pool.numbers() == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=1)
    engine.dispose()
