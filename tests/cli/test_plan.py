"""`pooldrain plan`, asked about a real server; and a service whose server has less room than its pool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import yaml
from sqlalchemy import make_url

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher

everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)

ROLE, LIMIT = "pooldrain_limited", 5


def plan(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    program = "from pooldrain.runtime.tool import main; main()"
    command = [sys.executable, "-c", program, "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=30, check=False)


@pytest.fixture
def limited(postgres: Postgres) -> Iterator[str]:
    """The URL of a user who may have LIMIT connections."""
    postgres.run(f"CREATE ROLE {ROLE} LOGIN CONNECTION LIMIT {LIMIT}")
    postgres.run(f"GRANT ALL ON SCHEMA public TO {ROLE}")
    postgres.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
    yield make_url(postgres.url).set(username=ROLE).render_as_string(hide_password=False)
    postgres.run(f"DROP OWNED BY {ROLE}")
    postgres.run(f"DROP ROLE {ROLE}")


def test_a_fleet_that_fits_ends_with_0_and_one_that_does_not_with_6(postgres: Postgres) -> None:
    options = ("--instances", "2", "--pool-size", "2", "--max-overflow", "2")
    fits = plan(*options, DATABASE_URL=postgres.url)
    assert (fits.returncode, fits.stderr) == (ExitCode.DRAINED, "")
    assert "  ok    12  at most, while 1 more instance starts\n" in fits.stdout
    assert "the superuser postgres" in fits.stdout
    larger = plan("--instances", "40", POOLDRAIN_DATABASE_URL=postgres.url)
    assert larger.returncode == ExitCode.DOES_NOT_FIT
    assert "  no  1200  at most (with max-overflow), " in larger.stdout
    assert "what fits: --pool-size 2 --max-overflow 0\n" in larger.stdout


def test_the_limit_of_a_role_is_seen_and_what_others_use(postgres: Postgres, limited: str) -> None:
    with psycopg.connect(limited, application_name="a report"):
        done = plan("--pool-size", "2", "--max-overflow", "1", "--surge", "0", DATABASE_URL=limited)
    assert done.returncode == ExitCode.DRAINED
    assert f"the limit of the role {ROLE}, {LIMIT}" in done.stdout
    assert f"a report as {ROLE}" in done.stdout
    assert f"room for {LIMIT - 1}\n" in done.stdout


def test_kubernetes_is_told_how_long_the_end_may_take() -> None:
    done = plan("--kubernetes", "--instances", "3", "--surge", "2", "--announce-period", "5", "--drain-timeout", "60")
    told = yaml.safe_load(done.stdout)["spec"]
    assert told["replicas"] == 3
    assert told["strategy"]["rollingUpdate"] == {"maxSurge": 2, "maxUnavailable": 0}
    assert told["template"]["spec"]["terminationGracePeriodSeconds"] == 93  # 5 + 60 + 5 + 10 + 10 + 0.05, and 2


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "which database? give --database-url, or set DATABASE_URL"),
        (["--instances", "0"], 2, "argument --instances: must be 1 or more, not '0'; see pooldrain plan --help"),
        (["--pool-size", "0"], 2, "--pool-size must be 1 or more, not 0"),
        (["--database-url", "sqlite:///shop.db"], 2, "a SQLite file has no limit of connections; give the URL of a"),
        (["--database-url", "postgresql://u:secret@127.0.0.1:1/x"], 1, "cannot ask postgresql://u:***@127.0.0.1:1/x: "),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], code: int, line: str) -> None:
    done = plan(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"pooldrain: error: {line}")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


@everywhere
def test_a_service_that_may_open_more_than_the_database_has_is_warned_and_waits(
    services: Launcher, limited: str, backend: Backend
) -> None:
    pool = ("--pool-size", "3", "--max-overflow", "20")
    service = services.start(backend, *pool, url=limited)
    [warned] = [line for line in service.complaints if "may open" in line]
    assert f"may open 23 connections and the database has room for {LIMIT} (the limit of the role" in warned
    with ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(service.get, ["/work?ms=50"] * 60))
    assert [answer.status for answer in answers] == [200] * 60
    [told] = service.events("connections_refused")
    assert "too many connections for role" in told["reason"]
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED
    [pool_report] = service.report["pools"]
    assert pool_report["opened"] == pool_report["closed"] == LIMIT


@everywhere
def test_who_waits_in_vain_for_a_server_that_refuses_is_told_who_has_the_connections(
    services: Launcher, limited: str, backend: Backend
) -> None:
    pool = ("--pool-size", "5", "--max-overflow", "20", "--pool-timeout", "0.5", "--drain-timeout", "0.1")
    service = services.start(backend, *pool, url=limited)
    held = [service.connect().ask("GET", "/work?ms=60000") for _ in range(LIMIT)]
    service.await_admitted(LIMIT)
    answer = service.get("/db-test")
    assert answer.status == 503
    [told] = service.events("pool_exhausted")
    assert told["checkedout"] == LIMIT
    service.send_signal()
    assert [each.answer().status for each in held] == [504] * LIMIT
    assert service.ended().code == ExitCode.CUT
