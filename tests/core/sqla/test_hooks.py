"""The books of a pool's checkouts, in both colours, as the shells put them together over a real SQLite file."""

from __future__ import annotations

import asyncio
import gc
import json
import linecache
import math
import re
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

import pooldrain
import pooldrain_async.pool
import pooldrain_sync.pool
from pooldrain import LeakPolicy, PoolClosed, PoolPolicy
from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.hooks import STATEMENT_KEPT, dbapi_connection, driver_connection
from pooldrain.status import PoolStatus
from pooldrain.transcript import Event
from tests.harness.colours import PATIENCE, Colour, Loop, Threads, both_colours, run

Manager = pooldrain_sync.pool.Pool | pooldrain_async.pool.Pool


@pytest.fixture(name="url")
def _url(tmp_path: Path) -> DatabaseUrl:
    return DatabaseUrl.parse(f"sqlite:///{tmp_path}/file.db")


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Events:
    """Keeps what is emitted."""

    detailed = True

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def emit(self, event: Event) -> None:
        self.seen.append(json.loads(json.dumps(event.as_dict())))

    @property
    def names(self) -> list[str]:
        return [event["event"] for event in self.seen]

    def take(self, name: str) -> dict[str, Any]:
        (event,) = [event for event in self.seen if event["event"] == name]
        return event


class Books:
    """A shell's pool manager over a real SQLite file, and what it tells."""

    def __init__(self, colour: Colour, url: DatabaseUrl, leaks: LeakPolicy | None = None) -> None:
        self.clock = Clock()
        self.events = Events()
        shell = pooldrain_async.pool if isinstance(colour, Loop) else pooldrain_sync.pool
        self.manager: Manager = shell.Pool(
            url,
            PoolPolicy(pool_size=2),
            leaks or LeakPolicy(),
            self.events,
            service="test",
            lock=threading.RLock(),
            clock=self.clock,
        )
        self.tracker = self.manager.tracker
        engine = self.manager.engine
        self.engine = engine if isinstance(engine, sqlalchemy.Engine) else engine.sync_engine

    def connect(self) -> sqlalchemy.Connection:
        return self.engine.connect()

    def counts(self) -> tuple[int, int]:
        """Connections opened and closed so far."""
        return self.tracker.opened, self.tracker.closed


@contextmanager
def books(colour: Colour, url: DatabaseUrl, leaks: LeakPolicy | None = None) -> Generator[Books]:
    """Books that have to be even at the end: whatever was opened was seen to close, once."""
    opened = Books(colour, url, leaks)
    yield opened
    opened.engine.dispose()
    assert opened.manager.outstanding() == []
    assert opened.tracker.closed == opened.tracker.opened


@contextmanager
def serving(path: str) -> Generator[InFlightRequest]:
    request = InFlightRequest("GET", path, "abc", 0.0)
    token = CURRENT_REQUEST.set(request)
    try:
        yield request
    finally:
        CURRENT_REQUEST.reset(token)


def raw(connection: sqlalchemy.Connection) -> Any:
    return connection.connection.driver_connection


def is_closed(driver: Any) -> bool:
    """Whether a driver's connection is closed: sqlite3's, or aiosqlite's, which does it in a thread of its own."""
    if not isinstance(driver, sqlite3.Connection):
        driver._thread.join(PATIENCE)
        return driver._connection is None
    try:
        driver.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True
    return False


def line_of(marker: str) -> int:
    """The line of this file that ends with the comment `marker`."""
    lines = linecache.getlines(__file__)
    return next(number for number, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {marker}"))


def needs_a_driver_whose_detached_connections_are_closed(colour: Colour) -> None:
    if isinstance(colour, Loop) and sqlalchemy.__version__ < "2.1":
        pytest.skip("SQLAlchemy 2.0 does not close a detached connection of aiosqlite")


@both_colours
def test_connections_are_counted_as_they_open_and_close(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        first, second, third = seen.connect(), seen.connect(), seen.connect()
        assert seen.counts() == (3, 0)
        for connection in (first, second, third):
            connection.close()
        assert seen.counts() == (3, 1), "the one beyond the pool's size"
        seen.connect().close()
        assert seen.counts() == (3, 1)
    assert seen.counts() == (3, 3)
    assert seen.events.names.count("connection_opened") == seen.events.names.count("connection_closed") == 3


@both_colours
def test_a_checkout_is_in_the_books_until_it_comes_back(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        with serving("/work") as request:
            connection = seen.connect()
        seen.clock.now += 0.25
        (checkout,) = seen.manager.outstanding()
        assert request.checkouts == {checkout: None}
        assert driver_connection(checkout) is raw(connection)
        assert seen.manager.drivers([request]) == [raw(connection)]
        connection.close()
        assert request.checkouts == {}
        checkin = seen.events.take("checkin")
        assert (checkin["holder"], checkin["request"], checkin["seconds"]) == ("GET /work", "abc", 0.25)


@both_colours
def test_what_nobody_wants_to_know_in_detail_is_not_told(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        seen.events.detailed = False
        seen.connect().close()
    assert seen.events.seen == []


@both_colours
def test_a_refused_checkout_is_not_in_the_books(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        seen.connect().close()
        seen.manager.pool.close()
        with pytest.raises(PoolClosed):
            seen.connect()
        assert seen.manager.outstanding() == []


@both_colours
def test_of_a_long_statement_its_beginning_is_kept(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen, seen.connect() as connection:
        connection.execute(text(f"SELECT 1 -- {'x' * 10 * STATEMENT_KEPT}"))
        (checkout,) = seen.manager.outstanding()
        assert checkout.statement is not None
        assert len(checkout.statement) == STATEMENT_KEPT
        assert checkout.runs == 1
        connection.execute(text("SELECT 2"))
        assert checkout.runs == 2
        assert not checkout.streams


@both_colours
def test_the_last_statement_is_kept_without_its_parameters(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen, seen.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT :secret AS answer"), {"secret": "geheim"})
        (holding,) = seen.manager.holdings()
        assert holding.statement == "SELECT ? AS answer"
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.execute(text("INSERT INTO t VALUES (:x)"), [{"x": "geheim"}, {"x": "geheim"}])
        (holding,) = seen.manager.holdings()
        assert holding.statement == "INSERT INTO t VALUES (?)"
        assert "geheim" not in json.dumps([holding.as_dict(), seen.events.seen])


@both_colours
def test_a_holder_is_in_a_transaction_or_not(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen, seen.connect() as connection:
        assert [holding.in_transaction for holding in seen.manager.holdings()] == [False]
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        assert [holding.in_transaction for holding in seen.manager.holdings()] == [True]


@both_colours
@pytest.mark.filterwarnings("ignore:The garbage collector is trying:sqlalchemy.exc.SAWarning")
def test_a_connection_that_the_garbage_collector_finds_is_told_and_never_used_again(
    colour: Colour, url: DatabaseUrl
) -> None:
    with books(colour, url) as seen:
        with serving("/db-test-leak"):
            connection = seen.connect()
        connection.execute(text("SELECT 1"))
        driver = raw(connection)
        seen.clock.now += 3
        del connection
        gc.collect()
        leak = seen.events.take("leak")
        assert (leak["rule"], leak["holding"]["holder"], leak["holding"]["age"]) == (
            "collected",
            "GET /db-test-leak",
            3.0,
        )
        assert leak["holding"]["statement"] == "SELECT 1"
        assert is_closed(driver)
        assert seen.counts() == (1, 1)
        assert seen.manager.status == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)
        assert seen.manager.ledger.leaked
        with seen.connect() as another:
            assert raw(another) is not driver
            assert seen.counts() == (2, 1)


@both_colours
@pytest.mark.filterwarnings("ignore:The garbage collector is trying:sqlalchemy.exc.SAWarning")
def test_a_connection_that_is_found_after_the_close_is_closed_as_well(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        connection = seen.connect()
        driver = raw(connection)
        seen.manager.pool.close()
        del connection
        gc.collect()
        assert seen.events.take("leak")["rule"] == "collected"
        assert is_closed(driver)
        assert seen.manager.status == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)


@both_colours
def test_a_leak_that_comes_back_after_all_is_told(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url, LeakPolicy(leak_age=10)) as seen:
        connection = seen.connect()
        seen.clock.now += 9
        assert seen.manager.report_overdue() == 1.0
        assert "leak" not in seen.events.names
        seen.clock.now += 1
        assert seen.manager.report_overdue() == 10.0
        assert seen.events.take("leak")["rule"] == "overdue"
        seen.clock.now += 31
        connection.close()
        returned = seen.events.take("leak_returned")
        assert (returned["rule"], returned["holding"]["age"]) == ("overdue", 41.0)
        seen.connect().close()
        assert seen.events.names.count("leak_returned") == 1


@both_colours
def test_a_reclaimed_connection_did_not_come_back(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url, LeakPolicy(leak_age=10)) as seen:
        connection = seen.connect()
        seen.clock.now += 10
        seen.manager.report_overdue()
        connection.invalidate()
        connection.close()
        assert "leak_returned" not in seen.events.names


@both_colours
def test_a_connection_ended_from_outside_is_counted_once_and_its_successor_anew(
    colour: Colour, url: DatabaseUrl
) -> None:
    with books(colour, url) as seen:
        connection = seen.connect()
        (checkout,) = seen.manager.outstanding()
        seen.tracker.closed_one(dbapi_connection(checkout))
        assert seen.counts() == (1, 1)
        connection.invalidate()
        connection.close()
        assert seen.counts() == (1, 1)
        seen.connect().close()
        assert seen.counts() == (2, 1)
    assert seen.counts() == (2, 2)


@both_colours
def test_a_detached_connection_is_its_users_own_and_counted_when_it_closes(colour: Colour, url: DatabaseUrl) -> None:
    needs_a_driver_whose_detached_connections_are_closed(colour)
    with books(colour, url) as seen:
        with serving("/export") as request:
            connection = seen.connect()
        connection.detach()
        assert seen.manager.outstanding() == []
        assert request.checkouts == {}
        assert seen.manager.status == PoolStatus(pool_size=2, checkedout=0, overflow=0, idle=0)
        assert seen.counts() == (1, 0)
        connection.close()
        assert seen.counts() == (1, 1)
        assert "leak" not in seen.events.names


@both_colours
def test_a_detach_does_not_take_the_next_holder_of_its_place_out_of_the_books(colour: Colour, url: DatabaseUrl) -> None:
    needs_a_driver_whose_detached_connections_are_closed(colour)
    with books(colour, url) as seen:
        connection = seen.connect()
        next_holders: list[PoolProxiedConnection] = []

        @event.listens_for(seen.engine.pool, "detach", insert=True)  # as early as another thread could be
        def checks_out(*_: object) -> None:
            next_holders.append(seen.engine.pool.connect())

        connection.detach()
        connection.close()
        event.remove(seen.engine.pool, "detach", checks_out)
        assert len(seen.manager.outstanding()) == 1
        for holder in next_holders:
            holder.close()


@both_colours
def test_at_the_end_the_pool_closes_and_every_holder_is_named_oldest_first(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        with serving("/first"):
            first = seen.connect()
        seen.clock.now += 1
        with serving("/second"):
            second = seen.connect()
        del seen.events.seen[:]
        seen.manager.close()
        checkouts, holdings = seen.manager.tell_outstanding()
        assert [checkout.holder for checkout in checkouts] == ["GET /first", "GET /second"]
        assert [(holding.holder, holding.age) for holding in holdings] == [("GET /first", 1.0), ("GET /second", 0.0)]
        assert seen.events.names == ["pool_closing", "not_returned", "outstanding", "outstanding"]
        assert seen.events.take("pool_closing")["pool_status"]["checkedout"] == 2
        assert seen.events.take("not_returned")["count"] == 2
        with pytest.raises(PoolClosed):
            seen.connect()
        first.close()
        second.close()


@both_colours
def test_at_the_end_of_a_tidy_service_nobody_is_blamed(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        seen.connect().close()
        del seen.events.seen[:]
        assert seen.manager.tell_outstanding() == ([], ())
        assert seen.events.names == ["pool_closing"]


# -- call sites


def test_the_call_site_is_the_line_that_took_the_connection(url: DatabaseUrl) -> None:
    with books(Threads(), url) as seen:
        with seen.engine.connect():  # by an engine
            pass
        with Session(seen.engine) as session:
            session.execute(text("SELECT 1"))  # by a session
        with seen.engine.begin():  # in a transaction
            pass
        seen.engine.raw_connection().close()  # by hand
        assert sites(seen) == [
            line_of("by an engine"),
            line_of("by a session"),
            line_of("in a transaction"),
            line_of("by hand"),
        ]


def test_the_call_site_is_the_line_that_awaited_the_connection(url: DatabaseUrl) -> None:
    async def test() -> None:
        seen = Books(Loop(), url)
        engine = seen.manager.engine
        assert not isinstance(engine, sqlalchemy.Engine)
        async with engine.connect():  # by an async engine
            pass
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))  # by an async session
        async with engine.begin():  # in an async transaction
            pass
        await asyncio.create_task(in_a_task(engine))
        await engine.dispose()
        assert sites(seen) == [
            line_of("by an async engine"),
            line_of("by an async session"),
            line_of("in an async transaction"),
            line_of("by another task"),
        ]

    run(test())


async def in_a_task(engine: Any) -> None:
    async with engine.connect():  # by another task
        pass


def sites(seen: Books) -> list[int | str]:
    """The lines of the checkouts' call sites; the whole call site, if that is not in this file."""
    found = [told["call_site"] for told in seen.events.seen if told["event"] == "checkout"]
    lines = [re.fullmatch(rf"{re.escape(__file__)}:(\d+) in .*", site) for site in found]
    return [int(line[1]) if line else site for line, site in zip(lines, found, strict=True)]


def test_who_called_that_line_is_told_as_well(url: DatabaseUrl) -> None:
    def inner(seen: Books) -> sqlalchemy.Connection:
        return seen.engine.connect()

    with books(Threads(), url) as seen:
        connection = inner(seen)  # the caller
        (holding,) = seen.manager.holdings()
        assert holding.callers[0].startswith(f"{__file__}:{line_of('the caller')} in ")
        connection.close()


@pytest.mark.parametrize(
    "directory", [f"{Path(pooldrain.__file__).parent}_app", f"{Path(sqlalchemy.__file__).parent}_extras"]
)
def test_a_package_whose_name_only_begins_like_ours_is_the_users(url: DatabaseUrl, directory: str) -> None:
    """Installed side by side they share a prefix: pooldrain and pooldrain_sync, for one."""
    names: dict[str, Any] = {}
    exec(compile("def view(engine):\n    return engine.connect()\n", f"{directory}/views.py", "exec"), names)
    with books(Threads(), url) as seen:
        connection: sqlalchemy.Connection = names["view"](seen.engine)
        (holding,) = seen.manager.holdings()
        connection.close()
        assert holding.call_site == f"{directory}/views.py:2 in view"


@both_colours
def test_a_pool_without_a_leak_age_has_nothing_to_wait_for(colour: Colour, url: DatabaseUrl) -> None:
    with books(colour, url) as seen:
        connection = seen.connect()
        seen.clock.now += 1000
        assert seen.manager.report_overdue() == math.inf
        assert 0 < seen.manager.look() <= 1.0
        assert "leak" not in seen.events.names
        connection.close()
