"""Services under test: real processes with their log, report and transcript, cleaned up whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import pooldrain
from pooldrain_compare.harness.processes import Ended, ServerProcess, ServerProcessError, send
from pooldrain_compare.harness.servers import Backend
from tests.harness.http import Address, Answer, Connection, ask
from tests.harness.waiting import BOUND, eventually

Record = dict[str, Any]

_SCHEMA = Draft202012Validator(json.loads((files(pooldrain) / "report.schema.json").read_text("utf-8")))


@dataclass(slots=True)
class Service:
    """One running (or ended) service."""

    backend: Backend
    process: ServerProcess
    directory: Path
    url: str  # of its database
    _stack: contextlib.ExitStack

    # -- what is asked of it

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.process.address

    def connect(self) -> Connection:
        """A connection, closed when the test is over."""
        return self._stack.enter_context(Connection(self.address))

    def ask(self, method: str, target: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """One request on a connection of its own."""
        return ask(self.address, method, target, body, headers)

    def get(self, target: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """`GET` on a connection of its own."""
        return self.ask("GET", target, headers=headers)

    def send_signal(self, number: int = signal.SIGTERM) -> float:
        """Signal the process (a master alone); the instant."""
        return self.process.signal(number)

    def send_group_signal(self, number: int = signal.SIGINT) -> None:
        """Signal every process of it, as a terminal does on Ctrl+C."""
        send(self.process.pid, number, group=True)

    def ended(self, within: float = BOUND) -> Ended:
        """Wait for its end."""
        ended = self.process.wait(within)
        assert not ended.stragglers, f"{self.backend.name} left a process of its group behind"
        return ended

    # -- what it says

    @property
    def log(self) -> list[Record]:
        """The log so far; every line is a JSON object, or the test fails."""
        return [json.loads(line) for line in self.process.log_lines()]

    def events(self, name: str) -> list[Record]:
        """The records of one event."""
        return [record for record in self.log if record["event"] == name]

    def await_event(self, name: str, number: int = 1) -> list[Record]:
        """Wait for an event's line in the log: the `number`th; all so far."""

        def enough() -> list[Record]:
            found = self.events(name)
            return found if len(found) >= number else []

        return eventually(enough, f"event {name} in the log of {self.backend.name}:\n{self.process.log_tail()}")

    def await_admitted(self, number: int) -> None:
        """Wait until so many requests are in flight, as its transcript tells."""

        def admitted() -> bool:
            return len([event for event in self.transcript if event["event"] == "request_admitted"]) >= number

        eventually(admitted, f"{number} requests in flight")

    def await_announcing(self) -> None:
        """Wait until it says that it is about to drain: after the signal's line, as its transcript tells."""
        announcing = {"event": "phase", "phase": "ANNOUNCING"}
        eventually(lambda: any(announcing.items() <= event.items() for event in self.transcript), "it announces")

    def await_drain(self) -> None:
        """Wait until every worker refuses new requests."""
        self.await_event("drain_started", self.backend.workers)

    @property
    def pids(self) -> list[int]:
        """The processes that serve."""
        return [record["pid"] for record in self.events("listening")]

    @property
    def report(self) -> Record:
        """The report as it was written, which is as its schema says."""
        report: Record = json.loads((self.directory / f"{self.backend.name}.report.json").read_text("utf-8"))
        _SCHEMA.validate(report)
        return report

    @property
    def reports(self) -> list[Record]:
        """One report for each worker."""
        found: list[Record] = self.report["workers"]
        return found

    @property
    def refused(self) -> int:
        """Requests refused, by the report; of the workers together with their master."""
        refused: int = self.report["requests"]["refused"]
        return refused

    @property
    def transcript(self) -> list[Record]:
        """The transcript so far: the lines that are written to their end."""
        path = self.directory / f"{self.backend.name}.transcript.jsonl"
        whole, _, _ = path.read_text("utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def complaints(self) -> list[str]:
        """Lines of the log that are warnings, errors or tracebacks."""
        bad = ("warning", "error", "critical")
        return [
            r["traceback"] if "traceback" in r else r["message"]
            for r in self.log
            if r["level"] in bad or "traceback" in r
        ]


class Launcher:
    """Starts services and makes sure that they end."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._number = 0

    def close(self) -> None:
        """Kill what still runs, and close every connection."""
        self._stack.close()

    def start(self, backend: Backend, *options: str, url: str | None = None) -> Service:
        """Start a service and wait until every worker of it listens."""
        service = self.prepare(backend, *options, url=url)
        self.enter(service)
        return service

    def start_app(self, backend: Backend, module: str, *options: str) -> Service:
        """Start a service with the application of its colour: `create_sync` or `create_async` of a module."""
        colour = backend.module.removeprefix("pooldrain_")
        return self.start(backend, "--app", f"{module}:create_{colour}", *options)

    def start_users(
        self, backend: Backend, app: str, directory: Path, *options: str, url: str | None = None
    ) -> Service:
        """Start a service with an application that knows nothing of us: it finds its database in DATABASE_URL."""
        named = (app, "--app-dir", str(directory))
        service = self.prepare(backend, *named, *options, url=url, variable="DATABASE_URL")
        self.enter(service)
        return service

    def start_all(
        self, backends: Sequence[Backend], *options: str, url: Callable[[Backend], str] | None = None
    ) -> list[Service]:
        """Start several at the same time."""
        services = [self.prepare(b, *options, url=None if url is None else url(b)) for b in backends]
        with ThreadPoolExecutor(len(services)) as pool:
            list(pool.map(self.enter, services))
        return services

    def begin(self, backend: Backend, *options: str, url: str | None = None) -> Service:
        """Start a service and do not wait for it to listen: it may never come to that."""
        service = self.prepare(backend, *options, url=url)
        begun = threading.Thread(target=_begin, args=(service.process,), daemon=True)
        begun.start()
        self._stack.callback(begun.join)
        self._stack.callback(service.process.kill)
        eventually(lambda: service.process._popen is not None, "the process runs")
        return service

    def prepare(
        self, backend: Backend, *options: str, url: str | None = None, variable: str = "POOLDRAIN_DATABASE_URL"
    ) -> Service:
        """A service that is not started yet."""
        self._number += 1
        directory = self._directory / f"{self._number}-{backend.name}"
        directory.mkdir()
        url = url or self._url
        return Service(
            backend, backend.process(url, directory, *options, variable=variable), directory, url, self._stack
        )

    def enter(self, service: Service) -> None:
        """Start a prepared service."""
        self._stack.enter_context(service.process)
        service.await_event("listening", service.backend.workers)


def _begin(process: ServerProcess) -> None:
    with contextlib.suppress(ServerProcessError):  # what the test is about
        process.__enter__()
