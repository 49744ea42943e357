"""A service on several addresses at once: it serves, drains and refuses on all of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.processes import free_port
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, Backend
from tests.harness.http import Connection
from tests.harness.service import Launcher, Service
from tests.servers.test_unix_socket import UnixConnection, last_status, status

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pooldrain-") as directory:
        yield Path(directory) / "shop.sock"


def addresses(service: Service) -> list[tuple[str, int]]:
    """Where it listens, as it tells."""
    return list(dict.fromkeys((told["host"], told["port"]) for told in service.events("listening")))


@every_way
def test_a_service_drains_on_all_of_its_addresses(services: Launcher, backend: Backend, path: Path) -> None:
    service = services.start(backend, "--bind", "127.0.0.1:0,127.0.0.1:0", "--bind", f"unix:{path}")
    service.await_event("listening", 3 * backend.workers)
    first, second, (name, _) = addresses(service)
    assert name == str(path)
    with Connection(first) as one, Connection(second) as two:
        three = UnixConnection(path)
        for _ in range(5):
            assert [one.get("/").status, two.get("/").status, status(three, "/")[0]] == [200, 200, 200]
        held = UnixConnection(path)
        held.request("GET", "/work?ms=2500")
        service.await_admitted(5 * 3 + 1)

        service.send_signal()
        service.await_drain()
        assert [one.get("/").status, two.get("/").status, status(three, "/")[0]] == [503, 503, 503]
        for late in (Connection(first), Connection(second)):
            with late:
                assert late.get("/").status == 503
        assert status(UnixConnection(path), "/")[0] == 503
        assert last_status(held) == 200

    assert service.ended().code == ExitCode.DRAINED
    assert not path.exists()
    assert not service.complaints


@everywhere
def test_a_request_knows_the_address_that_it_came_to(services: Launcher, backend: Backend) -> None:
    ports = [free_port(), free_port()]
    options = ("--bind", ",".join(f"127.0.0.1:{port}" for port in ports))
    services.start_app(backend, "tests.servers.echo_app", *options)
    for port in ports:
        with Connection(("127.0.0.1", port)) as connection:
            seen = json.loads(connection.get("/").body)
            assert seen["server"] == ["127.0.0.1", port]


@everywhere
def test_an_address_that_is_taken_lets_none_of_them_be(services: Launcher, backend: Backend, path: Path) -> None:
    taken = services.start(backend)
    host, port = taken.address
    service = services.begin(backend, "--bind", f"unix:{path}", "--bind", f"{host}:{port}")
    assert service.ended().code == ExitCode.NOT_STARTED
    [line] = [record["message"] for record in service.log if record["level"] == "error"]
    assert line.startswith(f"cannot listen on {host}:{port}: ")
    assert not path.exists()
