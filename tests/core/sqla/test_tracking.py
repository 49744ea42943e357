"""`pooldrain.track`: leaks and numbers of an engine in a process that has its own server; nothing is refused."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest
import sqlalchemy
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.ext.asyncio import create_async_engine

import pooldrain
from pooldrain.admin.exposition import PoolCollector
from pooldrain.policy import LeakPolicy
from tests.harness.waiting import eventually

SELECT = sqlalchemy.text("SELECT 1 AS tracked")


def test_it_tells_who_has_a_connection_and_counts() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool)
    tracked = pooldrain.track(engine)
    with engine.connect() as connection:
        connection.execute(SELECT)
        [held] = tracked.checkouts
        assert "test_tracking.py" in held.call_site
        assert held.statement == "SELECT 1 AS tracked"
        assert tracked.status.checkedout == 1
        assert tracked.seen()["used"] == 1
    assert tracked.checkouts == ()
    counters = tracked.counters()
    assert (counters["opened"], sum(counters["wait"]["counts"]), sum(counters["use"]["counts"])) == (1, 1, 1)
    assert not any(tracked.leaks.values())
    engine.dispose()


def test_work_under_a_name_is_told_by_it() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool)
    tracked = pooldrain.track(engine)
    with pooldrain.hold_as("the nightly report"), engine.connect():
        assert [held.holder for held in tracked.checkouts] == ["the nightly report"]
    engine.dispose()


def leak(engine: sqlalchemy.Engine) -> None:
    engine.connect().execute(SELECT)


def test_a_leak_is_logged_by_name(caplog: pytest.LogCaptureFixture) -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool, logging_name="shop")
    tracked = pooldrain.track(engine)
    with caplog.at_level(logging.WARNING, "pooldrain"):
        leak(engine)
        gc.collect()
    assert tracked.leaks["collected"] == 1
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("leak (collected): connection held by outside a request, for ")
    assert "of shop" in line
    assert "in leak" in line


def test_an_engine_of_asyncio_is_tracked_alike() -> None:
    async def use() -> tuple[int, int]:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=sqlalchemy.AsyncAdaptedQueuePool)
        tracked = pooldrain.track(engine)
        async with engine.connect() as connection:
            await connection.execute(SELECT)
            out = len(tracked.checkouts)
        await engine.dispose()
        return out, tracked.counters()["closed"]

    assert asyncio.run(use()) == (1, 1)


def test_with_a_leak_age_a_checkout_is_told_when_it_is_due(caplog: pytest.LogCaptureFixture) -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool)
    tracked = pooldrain.track(engine, LeakPolicy(leak_age=0.01))
    with caplog.at_level(logging.WARNING, "pooldrain"), engine.connect():
        eventually(lambda: tracked.leaks["overdue"], "it is overdue")
    assert any("leak (overdue)" in record.getMessage() for record in caplog.records)
    engine.dispose()


def test_asking_twice_gives_the_same_numbers_and_other_rules_are_refused() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool, logging_name="shop")
    first, again = pooldrain.track(engine), pooldrain.track(engine)
    with engine.connect():
        assert len(first.checkouts) == len(again.checkouts) == 1
    with pytest.raises(ValueError, match="the engine shop is tracked already, with other rules for leaks"):
        pooldrain.track(engine, LeakPolicy(leak_age=1.0))
    engine.dispose()


def test_an_engine_that_is_dropped_is_let_go() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool)
    pooldrain.track(engine)
    gone = weakref.ref(engine)
    engine.dispose()
    del engine

    def collected() -> bool:
        gc.collect()
        return gone() is None

    eventually(collected, "nothing keeps it")


def test_its_metrics_go_into_a_registry_of_the_applications_own() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.QueuePool, logging_name="shop")
    registry = CollectorRegistry()
    registry.register(PoolCollector(pooldrain.track(engine)))
    with engine.connect():
        text = generate_latest(registry).decode()
    assert 'pooldrain_pool_connections{pool="shop",state="used"} 1.0' in text
    assert 'pooldrain_leaks_total{pool="shop",rule="unreturned"} 0.0' in text
    engine.dispose()
