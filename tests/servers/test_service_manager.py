"""What a service manager hears of a service, and what it passes on: a fake one, real services, every way to serve."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.load import LoadClient, Mode, Outcome, mixed
from pooldrain_compare.harness.processes import free_port
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, UVICORN, Backend
from tests.conftest import Measured
from tests.harness.http import Connection
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import orphan_app

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)

# What a service manager does in the child, before it becomes the service.
PASSING_ON = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class Manager:
    """A service manager's ear."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._heard: list[str] = []

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()

    @property
    def heard(self) -> list[str]:
        """Every assignment so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard += self._socket.recv(4096).decode().splitlines()
        return self._heard

    def values(self, name: str) -> list[str]:
        """What this was set to, in order."""
        return [told.partition("=")[2] for told in self.heard if told.startswith(f"{name}=")]


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="pooldrain-") as directory:
        made = Manager(Path(directory) / "notify")
        yield made
        made.close()


def managed(services: Launcher, manager: Manager, backend: Backend, *options: str, url: str | None = None) -> Service:
    service = services.prepare(backend, *options, url=url)
    service.process.environment |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "3000000"}
    return service


@every_way
def test_a_service_manager_hears_when_it_is_ready_lives_and_ends(
    services: Launcher, manager: Manager, backend: Backend
) -> None:
    service = managed(services, manager, backend, "--grace-period", "100", "--announce-period", "0.5")
    services.enter(service)
    eventually(lambda: manager.values("READY") == ["1"], "it is ready")
    assert service.get("/db-test").status == 200
    assert manager.values("MAINPID") == [str(service.process.pid)]
    assert manager.values("STATUS")[0].startswith("serving on ")
    eventually(lambda: len(manager.values("WATCHDOG")) > 1, "it shows that it lives")
    assert not manager.values("STOPPING")

    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED
    assert manager.values("STOPPING") == ["1"]
    assert manager.values("EXTEND_TIMEOUT_USEC") == ["102000000"]
    told = [line.split(":")[0].split(" ")[0] for line in manager.values("STATUS")[1:]]
    assert told[0] == "announcing"
    if backend.workers == 1 and backend.name != "gunicorn":  # a master tells what it sees of its workers
        assert told == ["announcing", "draining", "cancelling", "ending", "reclaiming", "closing", "closing"]
    assert manager.values("READY") == ["1"]


@every_way
def test_it_is_not_ready_while_its_database_is_out_of_reach(
    services: Launcher, manager: Manager, backend: Backend
) -> None:
    service = managed(services, manager, backend, url=NOWHERE)
    with contextlib.suppress(Exception):
        service.process.__enter__()
    assert service.ended().code == ExitCode.NOT_STARTED
    assert not manager.values("READY")


@every_way
def test_what_it_starts_cannot_speak_for_it(
    services: Launcher, manager: Manager, backend: Backend, passed: socket.socket
) -> None:
    colour = backend.module.removeprefix("pooldrain_")
    service = activated(services, backend, passed, "--app", f"{orphan_app.__name__}:create_{colour}")
    service.process.environment |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "3000000"}
    services.enter(service)
    body = service.get("/environment").body.decode()
    assert "PATH=" in body
    assert not [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID") if name in body]
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED


@everywhere
@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"NOTIFY_SOCKET": "/nowhere/notify"}, "NOTIFY_SOCKET /nowhere/notify: nobody listens there (no such file"),
        ({"NOTIFY_SOCKET": "notify"}, "NOTIFY_SOCKET must be the path of a socket, not 'notify'; unset it"),
    ],
)
def test_a_notify_socket_that_is_none_is_told_in_one_line(
    services: Launcher, backend: Backend, variables: dict[str, str], line: str
) -> None:
    assert told_at_start(services, backend, variables).startswith(line)


def told_at_start(services: Launcher, backend: Backend, variables: dict[str, str], *options: str) -> str:
    """The one line with which a service refuses to start."""
    service = services.prepare(backend, *options)
    service.process.environment |= variables
    with contextlib.suppress(Exception):
        service.process.__enter__()
    assert service.ended().code == ExitCode.BAD_CONFIGURATION
    [line] = service.process.log_lines()
    return line.partition(" error: ")[2]


# --- sockets that are passed on ------------------------------------------------------------------------------


def activated(services: Launcher, backend: Backend, passed: socket.socket, *options: str) -> Service:
    """A service that is not started yet and finds this socket as its descriptor 3, as systemd has it."""
    service = services.prepare(backend, *options)
    service.process.argv[:0] = [sys.executable, "-c", PASSING_ON, str(passed.fileno())]
    service.process.descriptors = (passed.fileno(),)
    return service


@pytest.fixture
def passed() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        yield listener


@every_way
def test_a_restart_behind_a_socket_that_stays_loses_and_refuses_nothing(
    services: Launcher, backend: Backend, passed: socket.socket, measured: Measured
) -> None:
    service = activated(services, backend, passed)
    services.enter(service)
    address = passed.getsockname()
    load = LoadClient(address, mixed("activated"), clients=12).start()
    for _ in range(2):
        answered = load.answered
        eventually(lambda before=answered: load.answered > before + 30, "it serves")  # type: ignore[misc]  # a default
        service.send_signal()
        assert service.ended(30).code == ExitCode.DRAINED
        assert service.refused == 0
        service = activated(services, backend, passed)
        services.enter(service)
    answered = load.answered
    eventually(lambda: load.answered > answered + 30, "the last one serves")
    load.stop()
    result = load.join(30)
    assert not result.reasons
    assert set(result.statuses) <= {200, 201}
    instants = sorted(e.ended_at for e in result.exchanges if e.outcome is Outcome.ANSWERED)
    pauses = [after - before for before, after in pairwise(instants)]
    measured(f"longest pause between answers, restart with socket activation, {backend.name}", max(pauses))
    assert {e.mode for e in result.exchanges} == set(Mode)


@everywhere
def test_who_connects_while_nothing_runs_is_served_by_the_next(
    services: Launcher, backend: Backend, passed: socket.socket
) -> None:
    service = activated(services, backend, passed)
    services.enter(service)
    assert service.get("/").status == 200
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED
    with Connection(passed.getsockname()) as waiting:
        waiting.ask("GET", "/")
        services.enter(activated(services, backend, passed))
        assert waiting.answer().status == 200


@everywhere
def test_an_inherited_socket_of_the_wrong_kind_is_told_in_one_line(services: Launcher, backend: Backend) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        service = activated(services, backend, datagrams)
        with contextlib.suppress(Exception):
            service.process.__enter__()
    assert service.ended().code == ExitCode.BAD_CONFIGURATION
    [line] = service.process.log_lines()
    assert line.partition(" error: ")[2].startswith(
        "the socket of descriptor 3 does not listen for connections; let the .socket unit have"
    )


@everywhere
def test_an_address_that_the_sockets_overrule_is_told(
    services: Launcher, backend: Backend, passed: socket.socket
) -> None:
    service = activated(services, backend, passed, "--bind", f"127.0.0.1:{free_port()}")
    services.enter(service)
    assert service.address == passed.getsockname()
    assert any(line.startswith("no effect: --bind; the service manager has passed") for line in service.complaints)


# --- pid file, user, umask -----------------------------------------------------------------------------------


@every_way
def test_the_pid_file_names_the_process_to_signal_and_goes_with_it(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "service.pid"
    path.write_text("4194304\n", "utf-8")  # no process has this number: it is beyond the greatest
    service = services.start(backend, "--pid", str(path))
    assert path.read_text("utf-8") == f"{service.process.pid}\n"
    again = services.begin(backend, "--pid", str(path))
    assert again.ended().code == ExitCode.NOT_STARTED
    [line] = [record["message"] for record in again.log if record["level"] == "error"]
    assert line.startswith(f"--pid {path} is that of process {service.process.pid}, which runs")
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED
    assert not path.exists()


def test_a_file_of_something_else_is_not_taken_for_a_pid_file(services: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("dear diary", "utf-8")
    service = services.begin(UVICORN, "--pid", str(path))
    assert service.ended().code == ExitCode.NOT_STARTED
    assert path.read_text("utf-8") == "dear diary"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@every_way
def test_it_becomes_another_group_once_it_listens(services: Launcher, backend: Backend) -> None:
    with tempfile.TemporaryDirectory(prefix="pooldrain-") as directory:
        path = Path(directory) / "service.pid"
        service = services.start(backend, "--group", "nogroup", "--umask", "077", "--pid", str(path))
        number = str(grp.getgrnam("nogroup").gr_gid)
        for pid in {service.process.pid, *service.pids}:
            status = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
            [groups] = [line.split()[1:] for line in status if line.startswith("Gid:")]
            assert set(groups) == {number}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert service.get("/db-test").status == 200
        service.send_signal()
        assert service.ended().code == ExitCode.DRAINED


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--user", "nobody-at-all"), "--user must be a user of this system, not 'nobody-at-all'"),
        (("--umask", "rwx"), "--umask must be three octal digits, as 660, not 'rwx'"),
    ],
)
def test_a_wrong_user_or_umask_is_told_in_one_line(services: Launcher, options: tuple[str, ...], line: str) -> None:
    service = services.begin(UVICORN, *options)
    assert service.ended().code == ExitCode.BAD_CONFIGURATION
    assert line in "".join(service.process.log_lines())
