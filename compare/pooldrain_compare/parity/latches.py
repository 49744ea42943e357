"""The suite's side of the latches (see `app.routes`): who has come, and the opening."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

READ_TIMEOUT = 5.0
_LOOK = 0.25  # seconds between two looks at whether the service still runs, while waiting for it


class Latches:
    """A listener that applications connect to and wait at, until the latch that they name is opened."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._waiting: dict[str, list[socket.socket]] = {}
        self._open: set[str] = set()
        self._arrived: Counter[str] = Counter()
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="latches", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._condition:
            self._closed = True
            names = list(self._waiting)
        self.open(*names)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._listener.close()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def arrived(self, name: str, count: int, timeout: float, running: Callable[[], bool]) -> bool:
        """Wait until `count` have come to this latch; False after `timeout` seconds, or if the service ended."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while not self._condition.wait_for(lambda: self._arrived[name] >= count, _LOOK):
                if time.monotonic() > deadline or not running():
                    return False
            return True

    def open(self, *names: str) -> None:
        """Let go who waits there, and who will come."""
        with self._condition:
            self._open.update(names)
            released = [client for name in names for client in self._waiting.pop(name, [])]
        for client in released:
            client.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            client.settimeout(READ_TIMEOUT)
            try:
                name = client.makefile("rb").readline().decode().strip()
            except OSError:
                name = ""
            with self._condition:
                self._arrived[name] += 1
                self._condition.notify_all()
                if name and name not in self._open and not self._closed:
                    self._waiting.setdefault(name, []).append(client)
                    continue
            client.close()
