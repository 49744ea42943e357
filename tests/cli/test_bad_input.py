"""Bad input, given to real processes: one line that helps, the documented exit code, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from pooldrain_compare.harness.processes import clean_environment
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, Backend
from tests.harness.postgres import Postgres
from tests.harness.waiting import BOUND

SECRET = "geheim-3hX"  # never to be shown
NOT_STARTED, BAD_CONFIGURATION = 1, 2
COMMANDS = ("pooldrain_sync", "pooldrain_async")


@dataclass(frozen=True)
class Refusal:
    """How a start ended."""

    service: str
    code: int
    stdout: str
    stderr: str
    seconds: float
    group: int

    @property
    def left_running(self) -> bool:
        """Whether a process of its group lives on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, 0)
            return True
        return False


def run_all(
    commands: Sequence[Sequence[str]], environment: dict[str, str] | None = None, within: float = BOUND
) -> list[Refusal]:
    """Run commands at the same time, each in a group of its own."""
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(environment),
            start_new_session=True,
        )
        for command in commands
    ]
    refusals: list[Refusal] = []
    try:
        for process, command in zip(processes, commands, strict=True):
            stdout, stderr = process.communicate(timeout=within)
            seconds = time.monotonic() - started
            service = command[0].replace("_", "-")
            refusals.append(Refusal(service, process.returncode, stdout, stderr, seconds, process.pid))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return refusals


def expect_one_line(refusal: Refusal, code: int, *fragments: str) -> None:
    assert refusal.code == code, refusal.stderr
    assert refusal.stdout == ""
    lines = refusal.stderr.splitlines()
    assert len(lines) == 1, refusal.stderr
    assert lines[0].startswith(f"{refusal.service}: error: ")
    for fragment in fragments:
        assert fragment in lines[0]
    assert SECRET not in refusal.stderr
    assert not refusal.left_running


def both(*options: str, environment: dict[str, str] | None = None) -> list[Refusal]:
    """Give both commands the same bad options; a good database, so that nothing else is wrong."""
    return run_all([(command, *options) for command in COMMANDS], environment)


def every_way(*options: str, url: str, within: float = BOUND) -> list[Refusal]:
    """Start every server with the same options; the database's URL is in the environment, as it should be."""
    commands = [(backend.module, *backend.options, *options) for backend in EVERY_WAY]
    return run_all(commands, {"POOLDRAIN_DATABASE_URL": url}, within)


# -- what the command line and the environment say


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--drain-timout", "5"], "unknown option --drain-timout (did you mean --drain-timeout?)"),
        (["shop", "serve"], "unexpected argument"),
        (["--drain-timeout", "-1"], "--drain-timeout must be 0 or more seconds, not -1"),
        (["--drain-timeout", "soon"], "--drain-timeout must be a number of seconds, not 'soon'"),
        (["--linger", "nan"], "--linger must be 0 or more seconds, not nan"),
        (["--dispose-timeout", "0"], "--dispose-timeout must be more than 0 seconds, not 0"),
        (["--grace-period", "10"], "--grace-period 10 s is too short: --announce-period 0 + --drain-timeout 30 + "),
        (["--pool-size", "0"], "--pool-size must be 1 or more, not 0"),
        (["--min-idle", "11"], "--min-idle must be between 0 and --pool-size (10), not 11"),
        (["--bind", "127.0.0.1:70000"], "--bind must have a port between 0 and 65535, not '127.0.0.1:70000'"),
        (["--database-url", f"postgresql//user:{SECRET}@host"], "--database-url: the database URL is malformed"),
        (["--database-url", f"postgresql://u:{SECRET}@host:port/x"], "--database-url: the database URL is malformed"),
        (["--database-url", f"mysql://user:{SECRET}@host/name"], "names an unknown database, mysql"),
        (["--database-url", f"postgresql+psycopg2://user:{SECRET}@host/name"], "names an unknown driver, psycopg2"),
        ([f"--database-uri=postgresql://user:{SECRET}@host"], "unknown option --database-uri"),
        (["--report", "/nowhere/report.json"], "--report must name a file that can be written (no such file"),
        (["--transcript", "/"], "--transcript must name a file that can be written (is a directory"),
    ],
)
def test_a_bad_option_is_told_in_one_line(options: list[str], fragment: str) -> None:
    for refusal in both(*options):
        expect_one_line(refusal, BAD_CONFIGURATION, fragment)
        assert refusal.seconds < BOUND / 3


@pytest.mark.parametrize(
    ("variable", "value", "fragment"),
    [
        ("POOLDRAIN_DRAIN_TIMEOUT", "soon", "POOLDRAIN_DRAIN_TIMEOUT must be a number of seconds, not 'soon'"),
        ("POOLDRAIN_PRE_PING", "perhaps", "POOLDRAIN_PRE_PING must be true or false, not 'perhaps'"),
        ("POOLDRAIN_DRAIN_TIMOUT", "5", "unknown environment variable POOLDRAIN_DRAIN_TIMOUT (did you mean"),
        ("POOLDRAIN_REPORT", "/nowhere/report.json", "POOLDRAIN_REPORT must name a file that can be written"),
        ("DATABASE_URL", f"mysql://user:{SECRET}@host/name", "DATABASE_URL: the database URL names an unknown"),
    ],
    ids=lambda value: value if str(value).isupper() else "",
)
def test_a_bad_variable_is_told_in_one_line(variable: str, value: str, fragment: str) -> None:
    for refusal in both(environment={variable: value}):
        expect_one_line(refusal, BAD_CONFIGURATION, fragment)


def test_two_workers_of_waitress_are_refused() -> None:
    [refusal] = run_all([("pooldrain_sync", "--server", "waitress", "--workers", "2")])
    expect_one_line(refusal, BAD_CONFIGURATION, "--workers 2: waitress serves one process; use --server gunicorn")


# -- what only the start can tell


def expect_not_started(refusals: list[Refusal], postgres: Postgres, *fragments: str) -> None:
    for refusal in refusals:
        expect_one_line(refusal, NOT_STARTED, *fragments)
    postgres.await_nobody()


def test_a_port_in_use_is_told(postgres: Postgres) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        refusals = every_way("--bind", where, url=postgres.url)
    expect_not_started(refusals, postgres, f"cannot listen on {where}: Address already in use", "--bind")


def test_an_address_of_another_machine_is_told(postgres: Postgres) -> None:
    refusals = every_way("--bind", "192.0.2.1:8000", url=postgres.url)
    expect_not_started(refusals, postgres, "cannot listen on 192.0.2.1:8000: Cannot assign requested address")


def test_a_database_that_is_down_is_told(postgres: Postgres) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        port = nobody.getsockname()[1]
        refusals = every_way("--bind", "127.0.0.1:0", url=f"postgresql://user:{SECRET}@127.0.0.1:{port}/name")
    shown = f"cannot connect to postgresql://user:***@127.0.0.1:{port}/name: "
    expect_not_started(refusals, postgres, shown, "refused")


def test_a_database_that_does_not_answer_is_given_up_after_the_connect_timeout(postgres: Postgres) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"postgresql://user:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/name"
        refusals = every_way("--bind", "127.0.0.1:0", "--connect-timeout", "2", url=url, within=2 + 18)
    expect_not_started(refusals, postgres, "cannot connect to postgresql://user:***@127.0.0.1:", "timeout")


# When the pool opens its third connection, the server ends that and the first two.
GOES_AWAY = """
from sqlalchemy import event

opened = []

def opening(connection, record):
    opened.append(connection)
    if len(opened) == 3:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND application_name = current_setting('application_name')"
        )
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

def create_app(runner):
    event.listen(runner.pool.sync_engine, "connect", opening)
    return lambda *arguments: None
"""


def test_a_database_that_goes_away_in_the_middle_of_the_start_is_told(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goes_away.py").write_text(GOES_AWAY, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refusals = every_way("--bind", "127.0.0.1:0", "--app", "goes_away:create_app", url=postgres.url)
    expect_not_started(refusals, postgres, "cannot connect to ", "terminating connection due to administrator command")


def test_a_database_that_does_not_exist_is_told(postgres: Postgres) -> None:
    refusals = every_way("--bind", "127.0.0.1:0", url=postgres.url_of("nowhere"))
    expect_not_started(refusals, postgres, 'database "nowhere" does not exist')


@pytest.fixture(scope="module")
def guarded(postgres: Postgres) -> Iterator[str]:
    """A role that has to give its password; the embedded server trusts all others."""
    [[hba]] = postgres.run("SHOW hba_file")
    path = Path(hba)
    before = path.read_text("utf-8")
    postgres.run(f"CREATE ROLE guarded LOGIN CONNECTION LIMIT 12 PASSWORD '{SECRET}'")
    path.write_text(f"local all guarded scram-sha-256\n{before}", "utf-8")
    postgres.run("SELECT pg_reload_conf()")
    yield "guarded"
    path.write_text(before, "utf-8")
    postgres.run("SELECT pg_reload_conf()")


def url_as(postgres: Postgres, user: str, password: str) -> str:
    return make_url(postgres.url).set(username=user, password=password).render_as_string(hide_password=False)


def test_a_wrong_password_is_told_and_not_shown(postgres: Postgres, guarded: str) -> None:
    wrong = url_as(postgres, guarded, f"{SECRET}-not")
    refusals = every_way("--bind", "127.0.0.1:0", url=wrong)
    expect_not_started(refusals, postgres, "postgresql://guarded:***@/", "password authentication failed")


def test_a_pool_that_cannot_be_filled_is_told(postgres: Postgres, guarded: str) -> None:
    refusals = [
        refusal
        for backend in SERVERS  # one after the other: they share the role's connections
        for refusal in run_all(
            [(backend.module, *backend.options, "--bind", "127.0.0.1:0", "--pool-size", "20")],
            {"POOLDRAIN_DATABASE_URL": url_as(postgres, guarded, SECRET)},
        )
    ]
    expect_not_started(refusals, postgres, "too many connections for role")


def test_a_sqlite_file_that_cannot_be_opened_is_told(postgres: Postgres, tmp_path: Path) -> None:
    refusals = every_way("--bind", "127.0.0.1:0", url=f"sqlite:///{tmp_path}/missing/file.db")
    expect_not_started(refusals, postgres, "cannot connect to sqlite:///", "unable to open database file")


@pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
def test_with_a_json_log_the_one_line_is_json(postgres: Postgres, backend: Backend) -> None:
    options = ("--bind", "127.0.0.1:0", "--log-format", "json")
    [refusal] = run_all(
        [(backend.module, *backend.options, *options)], {"POOLDRAIN_DATABASE_URL": postgres.url_of("nowhere")}
    )
    record = json.loads(refusal.stderr)
    assert refusal.code == NOT_STARTED
    assert (record["level"], record["event"]) == ("error", "error")
    assert 'database "nowhere" does not exist' in record["message"]
    assert not refusal.left_running
