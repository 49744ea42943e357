"""A browser's EventSource at a deploy: it connects again, and reaches the other instance."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.browser import Browser, chromium
from tests.harness.service import Launcher
from tests.harness.waiting import eventually
from tests.servers import stream_app

Address = tuple[str, int]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


class LoadBalancer:
    """Forwards each new connection to the instance that it has been told of last."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._sockets[0].getsockname()[1]}"
        self._start(self._accept)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _start(self, work: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                client, _ = self._sockets[0].accept()
                server = socket.create_connection(self.target)
                self._sockets += [client, server]
                self._start(_forward, client, server)
                self._start(_forward, server, client)


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)
def test_a_browsers_event_source_goes_on_at_the_other_instance(
    services: Launcher, backend: Backend, browser: Browser
) -> None:
    old, new = (services.start_app(backend, stream_app.__name__, "--drain-timeout", "20") for _ in range(2))
    balancer = LoadBalancer(old.address)
    try:
        browser.driver.get(f"{balancer.url}/page")
        eventually(lambda: old.pids[0] in browser.ask("return window.pids"), "events of the old instance")

        balancer.target = new.address
        signalled = old.send_signal()
        ended = old.ended()
        assert ended.code == ExitCode.DRAINED
        assert ended.at - signalled < 2
        eventually(lambda: new.pids[0] in browser.ask("return window.pids"), "events of the new instance")
        assert browser.ask("return source.readyState") == 1, "it is open"
    finally:
        browser.driver.get("about:blank")
        balancer.close()
