"""Behind a real PgBouncer, in both of its modes: found out, minded, and nothing left over there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import pytest
from sqlalchemy import make_url

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.load import order
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, UVICORN, Backend
from tests.harness.pgbouncer import pgbouncer
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually

Mode = Literal["transaction", "session"]

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)
in_both_modes = pytest.mark.parametrize("mode", get_args(Mode))

FOUND = "a connection pooler is in between: no start-up parameters, no prepared statements"
HANGS = "the connection pooler took the connection and gave it no server connection within 1 s"
WRITES = 320
ROOT = Path(__file__).parents[2]


def found(service: Service) -> int:
    return sum(FOUND in str(record["message"]) for record in service.log)


@every_way
@in_both_modes
def test_a_pooler_is_found_out_and_no_write_fails_behind_it(
    services: Launcher, postgres: Postgres, backend: Backend, mode: Mode
) -> None:
    small = ("--pool-size", "3", "--max-overflow", "2")
    with pgbouncer(postgres.url, mode) as pooler:
        service = services.start(backend, *small, url=pooler.url)
        assert found(service) == backend.workers
        identities = [f"{mode}-{backend.name}-{number}" for number in range(WRITES)]
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(partial(post, service), identities))
        assert answers == [201] * WRITES
        assert len(pooler.clients()) >= 1
        service.send_signal()
        assert service.ended().code == ExitCode.DRAINED
        eventually(lambda: not pooler.clients(), "nothing is left over at the pooler")
    assert not service.complaints


def post(service: Service, identity: str) -> int:
    """The status of an order."""
    return service.ask("POST", "/orders", order(identity).body, headers=[("Content-Type", "application/json")]).status


@everywhere
def test_a_query_is_cancelled_through_a_pooler(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    with pgbouncer(postgres.url, "transaction") as pooler:
        service = services.start(backend, "--drain-timeout", "0.2", url=pooler.url)
        hung = service.connect().ask("GET", "/work?ms=60000")
        service.await_admitted(1)
        service.send_signal()
        assert hung.answer().status == 504
        assert service.ended().code == ExitCode.CUT
        eventually(lambda: not pooler.clients(), "nothing is left over at the pooler")
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        running = f"{sessions} AND query LIKE '%pg_sleep%'"
        eventually(lambda: postgres.run(running) == [(0,)], "the query has ended")


@everywhere
def test_a_pooler_with_fewer_connections_than_ours_has_requests_wait_and_is_named(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    small = ("--pool-size", "2", "--max-overflow", "8", "--connect-timeout", "1")
    with pgbouncer(postgres.url, "session", size=3) as pooler:
        service = services.start(backend, *small, url=pooler.url)
        with ThreadPoolExecutor(12) as clients:
            answers = list(clients.map(service.get, ["/work?ms=200"] * 36))
        assert [answer.status for answer in answers] == [200] * 36
        told, *_ = service.events("connections_refused")
        assert HANGS in told["reason"]
        assert "default_pool_size" in told["reason"]
        service.send_signal()
        assert service.ended().code == ExitCode.DRAINED
        eventually(lambda: not pooler.clients(), "nothing is left over at the pooler")


@everywhere
def test_a_pooler_that_cannot_fill_the_pool_is_named_at_the_start(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    with pgbouncer(postgres.url, "session", size=2) as pooler:
        service = services.begin(backend, "--pool-size", "4", "--connect-timeout", "1", url=pooler.url)
        assert service.ended().code == ExitCode.NOT_STARTED
    [line] = [record["message"] for record in service.log if record["level"] == "error"]
    assert line.startswith("cannot connect to postgresql://postgres@127.0.0.1")
    assert HANGS in line


@pytest.mark.parametrize(("option", "code"), [("off", ExitCode.NOT_STARTED), ("on", ExitCode.DRAINED)])
def test_it_need_not_be_found_out(services: Launcher, postgres: Postgres, option: str, code: ExitCode) -> None:
    with pgbouncer(postgres.url, "transaction") as pooler:
        service = services.begin(UVICORN, "--pooler", option, url=pooler.url)
        if code is ExitCode.DRAINED:
            service.await_event("listening")
            assert service.get("/db-test").status == 200
            assert found(service) == 0
            service.send_signal()
        assert service.ended().code == code
    if code is ExitCode.NOT_STARTED:
        assert "unsupported startup parameter" in "".join(service.process.log_lines())


@everywhere
def test_without_one_nothing_changes(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service = services.start(backend)
    assert found(service) == 0
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED


@everywhere
def test_an_applications_own_engine_prepares_nothing_behind_a_pooler(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    app = "flask_app:app" if backend.module == "pooldrain_sync" else "fastapi_app:app"
    with pgbouncer(postgres.url, "transaction", size=3) as pooler:
        url = make_url(pooler.url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        directory = ROOT / "compare" / "pooldrain_compare" / "fleet"
        service = services.start_users(backend, app, directory, url=url)
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(service.get, ["/work"] * 120))
        assert [answer.status for answer in answers] == [200] * 120
        assert found(service) == 1
        service.send_signal()
        assert service.ended().code == ExitCode.DRAINED
