"""A service on a Unix socket: served, drained and refused as on an address."""

from __future__ import annotations

import http.client
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain.runtime.options.readers import address
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, Backend
from tests.harness.in_flight import Taken
from tests.harness.service import Launcher
from tests.harness.waiting import BOUND
from tests.servers import echo_app

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)


class UnixConnection(http.client.HTTPConnection):
    """A client of a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=BOUND)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(BOUND)
        self.sock.connect(str(self._path))


def status(connection: http.client.HTTPConnection, target: str, **headers: str) -> tuple[int, bytes]:
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def last_status(connection: http.client.HTTPConnection) -> int:
    """The status of what was asked; the connection is closed, and what is left of the answer read."""
    with connection.getresponse() as answer:
        answer.read()
    connection.close()
    return answer.status


@pytest.fixture
def path() -> Iterator[Path]:
    """A short one: a socket's path may have a hundred bytes or so."""
    with tempfile.TemporaryDirectory(prefix="pooldrain-") as directory:
        yield Path(directory) / "shop.sock"


@every_way
def test_a_service_on_a_unix_socket_drains_as_on_an_address(
    services: Launcher, taken: Taken, backend: Backend, path: Path
) -> None:
    service = services.start(backend, "--bind", f"unix:{path}", "--socket-mode", "600")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"listening on unix:{path} " in service.events("listening")[0]["message"]
    held = UnixConnection(path)
    held.request("POST", "/orders", taken.order().body)
    service.await_admitted(1)
    kept = UnixConnection(path)
    assert status(kept, "/")[0] == 200

    service.send_signal()
    service.await_drain()
    assert status(kept, "/")[0] == 503
    taken.release()
    assert last_status(held) == 201

    assert service.ended().code == ExitCode.DRAINED
    assert not path.exists(), "the name is gone with the service"
    assert not service.complaints


@everywhere
def test_a_proxy_on_a_unix_socket_can_be_trusted(services: Launcher, backend: Backend, path: Path) -> None:
    service = services.start_app(backend, echo_app.__name__, "--bind", f"unix:{path}", "--trusted-proxies", "unix")
    client = UnixConnection(path)
    code, seen = status(client, "/", **{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"})
    client.close()
    assert code == 200
    assert b'"client": "192.0.2.1"' in seen
    assert b'"scheme": "https"' in seen
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED


@everywhere
def test_a_socket_that_a_killed_process_has_left_is_taken_over(
    services: Launcher, backend: Backend, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    service = services.start(backend, "--bind", f"unix:{path}")
    client = UnixConnection(path)
    assert status(client, "/")[0] == 200
    client.close()
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED


@everywhere
def test_a_successor_that_has_taken_the_name_keeps_it(services: Launcher, backend: Backend, path: Path) -> None:
    service = services.start(backend, "--bind", f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        service.send_signal()
        assert service.ended().code == ExitCode.DRAINED
        assert path.exists()


@everywhere
@pytest.mark.parametrize("taken", ["a file", "a service"])
def test_a_path_that_is_taken_is_told_in_one_line(services: Launcher, backend: Backend, path: Path, taken: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        if taken == "a file":
            path.write_text("precious")
        else:
            other.bind(str(path))
            other.listen()
        service = services.begin(backend, "--bind", f"unix:{path}")
        ended = service.ended()
    assert ended.code == ExitCode.NOT_STARTED
    [line] = [record["message"] for record in service.log if record["level"] == "error"]
    assert line.startswith(f"cannot listen on unix:{path}: ")
    assert line.endswith("; choose another path with --bind unix:PATH")
    assert path.exists(), "nothing is removed that somebody may need"


@pytest.mark.parametrize("wrong", ["", "none/shop.sock", "x" * 200])
def test_a_path_that_cannot_be_one_is_told_by_the_options(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"^must (name a socket|have a path)"):
        address(f"unix:{tmp_path}/{wrong}")
