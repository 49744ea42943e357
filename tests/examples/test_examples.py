"""Applications that know nothing of us, unchanged, as real processes on PostgreSQL: drained, and nothing left over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pooldrain_compare.harness.load import LoadClient, Outcome, Request
from pooldrain_compare.harness.servers import EVERY_WAY, GUNICORN, UVICORN, WAITRESS, Backend
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class Example:
    """One of them: how it is named on its usual server's command line, which is how it is named on ours."""

    folder: str
    app: str
    colour: str
    leaking_line: str  # where its /leak checks out
    engine: str  # what the leak's engine is called, or how that begins

    @property
    def directory(self) -> Path:
        return EXAMPLES / self.folder


FLASK = Example("flask_binds", "shop:app", "sync", "shop.py", "archive")
SQLMODEL = Example("fastapi_sqlmodel", "heroes:app", "async", "heroes.py", "postgresql+psycopg://")
ASYNCPG = Example("fastapi_asyncpg", "notes:app", "async", "notes.py", "notes")
WSGI = Example("django_site", "library.wsgi", "sync", "", "")
ASGI = Example("django_site", "library.asgi:application", "async", "", "")

WITH_ENGINES = (FLASK, SQLMODEL, ASYNCPG)
TABLES = {
    FLASK: ("example_orders", "item"),
    SQLMODEL: ("example_heroes", "name"),
    ASYNCPG: ("example_notes", "note"),
}
CLIENTS, ANSWERS = 10, 100  # before the signal


def ways(*examples: Example) -> list[Any]:
    """Each example on each of our servers of its colour."""
    return [
        pytest.param(example, backend, id=f"{example.app}-{backend.name}")
        for example in examples
        for backend in EVERY_WAY
        if backend.module == f"pooldrain_{example.colour}"
    ]


@pytest.fixture(name="postgres")
def _postgres(database_url: str) -> Iterator[Postgres]:
    with closing(Postgres(database_url)) as postgres:
        yield postgres


def start(services: Launcher, example: Example, backend: Backend, *options: str) -> Service:
    return services.start_users(backend, example.app, example.directory, *options)


@pytest.mark.parametrize(("example", "backend"), ways(*WITH_ENGINES))
def test_what_is_in_flight_is_answered_and_its_transaction_is_kept(
    services: Launcher, postgres: Postgres, example: Example, backend: Backend
) -> None:
    service = start(services, example, backend)
    item = f"{backend.name}-{example.folder}"
    slow = service.connect().ask("POST", f"/orders?item={quote(item)}&s=0.6")
    service.await_admitted(1)
    pids = service.pids
    service.send_signal()
    service.await_drain()
    assert service.get("/slow?s=0").status == 503
    assert slow.answer().status == 201
    assert service.ended().code == 0
    assert not postgres.sessions(pids)
    table, column = TABLES[example]
    assert postgres.run(f"SELECT count(*) FROM {table} WHERE {column} = %s", item) == [(1,)]
    report = service.report
    assert report["connections"]["opened"] == report["connections"]["closed"] > 0


@pytest.mark.parametrize(("example", "backend"), ways(*WITH_ENGINES))
def test_nothing_is_lost_under_load_and_what_was_answered_is_stored_once(
    services: Launcher, postgres: Postgres, example: Example, backend: Backend
) -> None:
    service = start(services, example, backend)
    prefix = f"load-{backend.name}-"

    def orders(client: int) -> Iterator[Request]:
        for number in itertools.count():
            item = f"{prefix}{client}-{number}"
            yield Request("POST", f"/orders?item={item}", "POST /orders", order=item)

    load = LoadClient(service.address, orders, clients=CLIENTS).start()
    eventually(lambda: load.answered >= ANSWERS, "it is under load")
    service.send_signal()
    assert service.ended().code == 0
    result = load.join(BOUND)
    assert result.lost == []
    assert set(result.statuses) <= {201, 503}
    table, column = TABLES[example]
    stored = [str(item) for (item,) in postgres.run(f"SELECT {column} FROM {table}") if str(item).startswith(prefix)]
    assert sorted(stored) == sorted(result.orders(Outcome.ANSWERED))


@pytest.mark.parametrize(("example", "backend"), ways(*WITH_ENGINES))
def test_a_leak_is_named_by_the_applications_own_line_and_engine(
    services: Launcher, postgres: Postgres, example: Example, backend: Backend
) -> None:
    service = start(services, example, backend)
    assert service.get("/leak").status == 200
    pids = service.pids
    service.send_signal()
    assert service.ended().code == 0
    assert not postgres.sessions(pids)
    (held,) = service.report["outstanding"]
    assert held["rule"] == "unreturned"
    assert f"{example.directory / example.leaking_line}:" in held["call_site"]
    assert held["pool"].startswith(example.engine)
    (row,) = [row for row in service.report["pools"] if row["leaks"]["unreturned"]]
    assert row["pool"] == held["pool"]


@pytest.mark.parametrize(("example", "backend"), ways(*WITH_ENGINES))
def test_a_hung_query_is_cancelled_on_the_server(
    services: Launcher, postgres: Postgres, example: Example, backend: Backend
) -> None:
    service = start(services, example, backend, "--drain-timeout", "0.3")
    hung = service.connect().ask("GET", "/slow?s=600")
    eventually(
        lambda: postgres.run(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state='active'"
            " AND pid <> pg_backend_pid()"
        ),
        "the query runs",
    )
    pids = service.pids
    service.send_signal()
    assert hung.answer().status == 504
    assert service.ended().code == 3
    assert not postgres.sessions(pids)
    (cut,) = service.report["cut_requests"]
    assert cut["route"] == "GET /slow"


@pytest.mark.parametrize(("example", "backend"), ways(WSGI, ASGI))
def test_of_a_django_site_the_requests_are_drained(services: Launcher, example: Example, backend: Backend) -> None:
    service = start(services, example, backend)
    slow = service.connect().ask("GET", "/slow?s=0.5")
    service.await_admitted(1)
    service.send_signal()
    assert slow.answer().status == 200
    assert service.ended().code == 0
    assert not service.complaints


@pytest.mark.parametrize("backend", [GUNICORN, WAITRESS, UVICORN], ids=lambda backend: backend.name)
def test_probes_are_answered_whatever_the_application_has_there(services: Launcher, backend: Backend) -> None:
    example = FLASK if backend.module == "pooldrain_sync" else ASYNCPG
    service = start(services, example, backend)
    assert [service.get(path).status for path in ("/livez", "/readyz", "/pool-status")] == [200, 200, 404]
    service.send_signal()
    assert service.ended().code == 0


def test_the_lifespan_ends_with_the_engine_still_open(services: Launcher, postgres: Postgres) -> None:
    service = start(services, ASYNCPG, UVICORN)
    before = postgres.run("SELECT count(*) FROM example_notes WHERE note = 'closed'")[0][0]
    service.send_signal()
    assert service.ended().code == 0
    assert postgres.run("SELECT count(*) FROM example_notes WHERE note = 'closed'") == [(before + 1,)]
