"""Runs a trial: a real process on a real PostgreSQL, under load, with its fault and its signals. Judges nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from pooldrain.errors import describe_error
from pooldrain_compare.chaos.onlookers import Onlookers
from pooldrain_compare.chaos.plan import Plan, workload
from pooldrain_compare.chaos.rude import RudeClients
from pooldrain_compare.checker import read_transcript
from pooldrain_compare.harness.faults.catalogue import BY_NAME, Place
from pooldrain_compare.harness.faults.private_server import PrivateServer
from pooldrain_compare.harness.load import LoadClient, LoadResult
from pooldrain_compare.harness.processes import START_TIMEOUT, Ended, ServerProcess, ServerProcessError, send
from pooldrain_compare.harness.servers import BACKENDS

SESSIONS_TIMEOUT = 5.0  # after the end of the service, or of the fault, if that comes later
END_MARGIN = 8.0  # beyond the grace period: then it is killed, and the trial has failed
LOAD_TIMEOUT = 15.0
_PAUSE = 0.02

Row = tuple[str, str, int]  # id, item, quantity


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Everything that was seen in a trial. Instants are monotonic seconds."""

    plan: Plan
    prefix: str  # of the identities of its requests
    trouble: str = ""  # why the trial could not be run to its end
    load: LoadResult = field(default_factory=LoadResult)
    signals: list[tuple[str, float]] = field(default_factory=list)  # those that were sent
    ended: Ended | None = None  # None: it had to be killed
    report: Any = None
    transcript: list[Any] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # the orders in the table
    sessions_left: int = 0
    log: list[str] = field(default_factory=list)  # its lines
    seen_inside: list[str] = field(default_factory=list)  # what nobody who looks inside should have seen

    @property
    def seconds(self) -> float:
        """From the first signal to the end."""
        return self.ended.at - self.signals[0][1] if self.ended is not None and self.signals else 0.0


def run(plan: Plan, server: PrivateServer, directory: Path) -> Evidence:
    """Run it; whatever goes wrong is in the evidence."""
    directory.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(plan=plan, prefix=f"t{plan.number}-{uuid.uuid4().hex[:8]}")
    backend = BACKENDS[plan.server]
    with Place(server) as place:
        process = backend.process(place.url, directory, *plan.options, awaited=not plan.early)
        try:
            with process:
                _play(plan, process, place, evidence)
        except (ServerProcessError, TimeoutError, OSError, psycopg.Error) as error:
            evidence.trouble = describe_error(error)
        with contextlib.suppress(OSError, ValueError):
            evidence.report = json.loads(backend.report(directory).read_text("utf-8"))
        with contextlib.suppress(OSError):
            evidence.transcript = read_transcript(backend.transcript(directory))
        evidence.log = process.log_lines()
        try:
            place.take_back()
            evidence.sessions_left = _await_no_sessions(place)
            evidence.rows = _rows(place)
        except psycopg.Error as error:
            evidence.trouble = evidence.trouble or f"the database could not be asked: {describe_error(error)}"
    return evidence


def _play(plan: Plan, process: ServerProcess, place: Place, evidence: Evidence) -> None:
    with contextlib.ExitStack() as stack:
        if not plan.early:
            _begin_load(plan, process, evidence, stack)
        over = threading.Event()
        troubles: list[BaseException] = []
        began = time.monotonic()
        fault = threading.Thread(target=_strike, args=(plan, place, began, over, troubles), name="fault", daemon=True)
        fault.start()
        try:
            for at, name in plan.noise:
                if _sleep_until(began + at, lambda: process.ended is not None):
                    send(process.pid, signal.Signals[name])
            for at, name in plan.signals:
                if _sleep_until(began + at, lambda: process.ended is not None):
                    evidence.signals.append((name, process.signal(signal.Signals[name])))
            evidence.ended = process.wait(plan.grace_period + END_MARGIN)
        finally:
            over.set()
            fault.join()
            process.kill()
    if troubles:
        raise troubles[0]


def _begin_load(plan: Plan, process: ServerProcess, evidence: Evidence, stack: contextlib.ExitStack) -> None:
    """Clients of all kinds; they leave, and what became of their requests is told, when the stack is closed."""
    if plan.settled:
        _await_workers(process, BACKENDS[plan.server].workers)
    for target in plan.leaks:
        _ask(process.address, target)
    load = LoadClient(process.address, workload(plan, evidence.prefix), clients=plan.clients).start()

    def end() -> None:
        load.stop()
        evidence.load = load.join(LOAD_TIMEOUT)

    stack.callback(end)
    stack.enter_context(RudeClients(process.address, plan.rude))
    if plan.onlookers:
        onlookers = stack.enter_context(Onlookers(process.admin, plan.onlookers))
        evidence.seen_inside = onlookers.wrong


def _await_workers(process: ServerProcess, count: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while sum('"listening"' in line for line in process.log_lines()) < count:
        if process.ended is not None or time.monotonic() > deadline:
            raise ServerProcessError(f"not {count} workers came up; the log ends:\n{process.log_tail()}")
        time.sleep(_PAUSE)


def _strike(plan: Plan, place: Place, began: float, over: threading.Event, troubles: list[BaseException]) -> None:
    """Let the fault happen at its time, and take it back at its time, or leave it until the service has ended."""
    fault = BY_NAME.get(plan.fault)
    if fault is None or over.wait(max(0.0, began + plan.fault_at - time.monotonic())):
        return
    try:
        place.apply(fault)
        if plan.fault_lasts is not None and not over.wait(plan.fault_lasts):
            place.take_back()
    except (OSError, psycopg.Error) as error:
        troubles.append(error)


def _sleep_until(instant: float, over: Callable[[], bool]) -> bool:
    """False if it was over before."""
    while not over():
        left = instant - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _PAUSE))
    return False


def _ask(address: tuple[str, int], target: str) -> None:
    with socket.create_connection(address, LOAD_TIMEOUT) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        while client.recv(65536):
            pass


def _await_no_sessions(place: Place) -> int:
    """How many there still are when the time is over."""
    deadline = time.monotonic() + SESSIONS_TIMEOUT
    while (left := len(place.sessions())) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return left


def _rows(place: Place) -> list[Row]:
    if place.server.ask_in(place.own_url, "SELECT to_regclass('orders') IS NULL") == [(True,)]:
        return []  # a service that never came to make it
    rows = place.server.ask_in(place.own_url, "SELECT id, item, quantity FROM orders")
    return [(str(identity), str(item), int(quantity)) for identity, item, quantity in rows]
