"""Without a database URL a backend brings its own PostgreSQL along, and takes it away again."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pooldrain_compare.harness.processes import ServerProcess, clean_environment, python_module
from pooldrain_compare.harness.servers import Backend
from tests.conftest import Measured
from tests.harness.http import get
from tests.harness.waiting import BOUND, eventually


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for everything; public, since as root PostgreSQL runs as a user of its own."""
    with tempfile.TemporaryDirectory(prefix="pooldrain-test-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)
        for left in postgres_processes(Path(directory)):  # only after a failure
            left.kill()


def at_home(home: Path, backend: Backend, *options: str) -> list[str]:
    """The command line of a backend that is started in `home`."""
    command = python_module(backend.module, *backend.options, "--log-format", "json", *options)
    return ["env", "-C", str(home), *command]


def postgres_processes(home: Path) -> list[psutil.Process]:
    """What runs of PostgreSQL with data below `home`."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if p.pid != psutil.Process().pid and _is_postgres(p.info["cmdline"] or [], str(home))]


def nothing_left(home: Path) -> bool:
    """Neither a process nor a temporary directory of the database's."""
    return not postgres_processes(home) and not list(home.glob("pooldrain-*"))


def _is_postgres(command: list[str], home: str) -> bool:
    return bool(command) and Path(command[0]).name in ("postgres", "initdb", "pg_ctl") and home in " ".join(command)


def test_ctrl_c_ends_the_requests_first_and_the_database_last(backend: Backend, home: Path, measured: Measured) -> None:
    process = ServerProcess(at_home(home, backend, "--bind", "127.0.0.1:0"), log=home / "log")
    with process:
        assert get(process.address, "/db-test").json["result"] == 1
        assert len(postgres_processes(home)) == 1
        signalled = process.signal(signal.SIGINT)
        ended = process.wait(BOUND)
    assert ended.code == 0
    assert nothing_left(home)
    assert not [line for line in process.log_lines() if '"level": "error"' in line or "Traceback" in line]
    measured(f"with its own PostgreSQL, Ctrl+C to exit, {backend.name}", ended.at - signalled)


def test_a_port_in_use_leaves_no_database_behind(backend: Backend, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = at_home(home, backend, "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=BOUND * 2, env=clean_environment(), check=False
        )
    assert result.returncode == 1
    assert "Address already in use" in result.stderr.splitlines()[-1]
    assert nothing_left(home)


def test_a_signal_while_the_database_is_being_made_leaves_nothing_behind(backend: Backend, home: Path) -> None:
    command = at_home(home, backend, "--bind", "127.0.0.1:0")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment(), start_new_session=True
    ) as process:
        try:
            eventually(lambda: postgres_processes(home), "PostgreSQL on its way", within=2 * BOUND)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=2 * BOUND)
        finally:
            process.kill()
    assert process.returncode == 0, output
    assert b"Traceback" not in output
    assert nothing_left(home)
