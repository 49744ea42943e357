"""Those who look inside a service while it is hurt: what they see never falls, comes soon, and ends with its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

SOON = 2.0  # seconds for an answer on a machine whose cores are all busy
_PAUSE = 0.05
_TIMEOUT = 20.0

# What only grows, of all processes together.
_GROWING = ("finished", "refused", "cut", "reclaimed", "abandoned")


class Onlookers:
    """Some of them, on one admin listener, until it has gone; `wrong` has what they should not have seen."""

    def __init__(self, admin: str, kinds: tuple[str, ...]) -> None:
        self.wrong: list[str] = []
        host, _, port = admin.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._threads = [threading.Thread(target=self._look, args=(KINDS[kind],), daemon=True) for kind in kinds]
        self._over = threading.Event()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(_TIMEOUT)
            if thread.is_alive():
                self.wrong.append("somebody still looks though the service has ended")

    def _look(self, kind: Callable[[Onlookers], None]) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it has ended
            kind(self)

    def scrape(self) -> None:
        """Ask for the metrics again and again."""
        before: dict[str, float] = {}
        while not self._over.is_set():
            began = time.monotonic()
            connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT)
            try:
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
            finally:
                connection.close()
            if (took := time.monotonic() - began) > SOON:
                self.wrong.append(f"a scrape took {took:.3f} s")
            now = {
                name: float(value)
                for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
                if name.partition("{")[0].endswith(("_total", "_bucket", "_count"))
            }
            self.wrong += [f"{name} fell from {old} to {now[name]}" for name, old in before.items() if now[name] < old]
            before = now
            self._over.wait(_PAUSE)

    def read(self) -> None:
        """Read the stream of events to its end."""
        before = dict.fromkeys(_GROWING, 0)
        with socket.create_connection(self._address, _TIMEOUT) as client, client.makefile("rb") as lines:
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for line in lines:
                if line.startswith(b"data: "):
                    totals: dict[str, Any] = json.loads(line[6:])["totals"]
                    now = {name: totals[name] for name in _GROWING}
                    self.wrong += [f"{n} fell from {before[n]} to {now[n]}" for n in _GROWING if now[n] < before[n]]
                    before = now

    def sleep(self) -> None:
        """Ask for the stream of events, and never read it."""
        with socket.create_connection(self._address, _TIMEOUT) as client:
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self._over.wait()


KINDS: dict[str, Callable[[Onlookers], None]] = {
    "scraper": Onlookers.scrape,
    "reader": Onlookers.read,
    "sleeper": Onlookers.sleep,
}
