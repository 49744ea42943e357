"""Runs one scenario against one server, as a real process on a real database, and brings back what was seen."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from pooldrain.demo import STATUS_PATH
from pooldrain.phases import Phase
from pooldrain.probes import Probes
from pooldrain_compare.harness.faults.catalogue import BY_NAME, Place
from pooldrain_compare.harness.http import MalformedResponseError, ResponseReader
from pooldrain_compare.harness.processes import (
    Ended,
    ServerProcess,
    ServerProcessError,
    limit_descriptors,
    look_inside,
    python_module,
    send,
)
from pooldrain_compare.harness.servers import Backend
from pooldrain_compare.parity import scenarios as s
from pooldrain_compare.parity.app import routes
from pooldrain_compare.parity.bystander import Bystander
from pooldrain_compare.parity.exchange import Answer, Exchange, Wire, answers_in
from pooldrain_compare.parity.latches import Latches
from pooldrain_compare.parity.transcript_pipe import Record, TranscriptPipe

# Seconds, reached only when something is wrong.
BOUND = 20.0
START_BOUND = 30.0
STEERING_TRIES = 2000  # new connections until the wanted worker of two takes one


# What the database saw, under these names.
AT_SIGNAL, GREATEST = "sessions at the signal", "greatest number of sessions"

SYNC_APP = "pooldrain_compare.parity.app.threads"
ASYNC_APP = "pooldrain_compare.parity.app.loop"


def app_module(server: Backend) -> str:
    """The module of the server's scenario application."""
    return SYNC_APP if server.module == "pooldrain_sync" else ASYNC_APP


class ScenarioError(Exception):
    """The scenario came to a point from where it could not go on."""


@dataclass(slots=True)
class Observation:
    """Everything that was seen of one server in one scenario."""

    scenario: s.Scenario
    server: str
    database: str
    ended: Ended | None = None
    trouble: str = ""  # why the scenario was not played to its end
    answers: dict[str, Answer] = field(default_factory=dict)
    endings: dict[str, str] = field(default_factory=dict)  # of the named connections
    received: dict[str, list[Record]] = field(default_factory=dict)  # answers, by connection that was written on
    events: list[Record] = field(default_factory=list)  # the transcript of the whole service
    report: Record | None = None  # its report file
    seen: dict[str, Any] = field(default_factory=dict)  # by the database
    shown: dict[str, Record] = field(default_factory=dict)  # by the admin listener, under the name of the look
    complaints: Counter[str] = field(default_factory=Counter)  # warnings and errors in the log, by event
    stray: list[str] = field(default_factory=list)  # lines of output that are not records of the log
    after_last_act: float = 0.0  # seconds from the last thing that was done to the service to its end

    @property
    def transcripts(self) -> list[list[Record]]:
        """Each worker's events, the worker that was started first being the first."""
        by_pid: dict[int, list[Record]] = {}
        for event in self.events:
            by_pid.setdefault(event["pid"], []).append(event)
        return list(by_pid.values())

    @property
    def reports(self) -> list[Record]:
        """Each worker's report, in the same order."""
        if self.report is None:
            return []
        workers: list[Record] = self.report["workers"]
        return workers


class ScenarioProcess(ServerProcess):
    """A service whose transcript is a pipe; whoever wants to know that it listens waits for that event."""

    def await_address(self) -> None:
        """Wait until its log has said where it listens."""
        self._listening.wait(START_BOUND)

    def _await_ready(self) -> None:
        pass


def play(
    scenario: s.Scenario,
    server: Backend,
    bystander: Bystander,
    latches: Latches,
    directory: Path,
    *,
    database: str,
    app: str | None = None,
    place: Place | None = None,
) -> Observation:
    """Play it. What goes wrong is in the observation. `app`: another application than the scenario's own.

    `place`: where its faults happen, if it has any.
    """
    observation = Observation(scenario, server.name, database)
    transcript = TranscriptPipe(directory / "transcript.pipe", directory / "transcript.jsonl")
    report = directory / "report.json"
    process = ScenarioProcess(
        python_module(
            server.module,
            *server.options,
            *("--bind", "127.0.0.1:0", "--log-format", "json", "--report", str(report)),
            *("--admin", "127.0.0.1:0"),
            *("--transcript", str(transcript.path), "--app", app or f"{app_module(server)}:{scenario.app}"),
            *scenario.options,
        ),
        log=directory / "log.jsonl",
        environment={"POOLDRAIN_DATABASE_URL": bystander.url, routes.LATCHES_VARIABLE: latches.address},
    )
    try:
        with process:
            player = _Player(scenario, server.workers, process, transcript, bystander, latches, place, observation)
            try:
                player.play()
            except (ScenarioError, ServerProcessError, OSError, MalformedResponseError, psycopg.Error) as error:
                observation.trouble = f"{str(error) or type(error).__name__}; its log ends:\n{process.log_tail()}"
            finally:
                player.leave()
        observation.ended = process.ended
    finally:
        transcript.stop()
        if place is not None:
            place.take_back()
    try:
        disposing_at = transcript.last(lambda event: event.get("phase") == Phase.DISPOSING.value)
        observation.seen |= bystander.finish(disposing_at)
    except (psycopg.Error, sqlite3.Error) as error:
        observation.trouble = observation.trouble or f"the database could not be asked: {error}"
    observation.events = transcript.records
    observation.report = _report(report)
    observation.complaints, observation.stray = _complaints(process.log_lines())
    return observation


class _Player:
    """Performs the steps."""

    def __init__(
        self,
        scenario: s.Scenario,
        number_of_workers: int,
        process: ScenarioProcess,
        transcript: TranscriptPipe,
        bystander: Bystander,
        latches: Latches,
        place: Place | None,
        observation: Observation,
    ) -> None:
        self._scenario = scenario
        self._workers = number_of_workers
        self._process = process
        self._transcript = transcript
        self._bystander = bystander
        self._latches = latches
        self._place = place
        self._seen = observation
        self._wires: dict[str, Wire] = {}
        self._crowd: list[socket.socket] = []
        self._exchanges: dict[str, Exchange] = {}
        self._query_latches = {step.latch for step in scenario.steps if isinstance(step, s.AtQuery)}
        self._signalled = False
        self._last_act = 0.0

    def play(self) -> None:
        self._bystander.close_latches(self._query_latches)
        if self._scenario.starts_listening:
            self._await(lambda events: self._count(events, "listening") >= self._workers, "it listens", START_BOUND)
            self._process.await_address()
        for step in self._scenario.steps:
            self._perform(step)
        ended = self._process.wait(BOUND)
        self._seen.after_last_act = ended.at - self._last_act
        for name, exchange in self._exchanges.items():
            if name not in self._seen.answers:
                self._collect(name, exchange)
        for name, wire in self._wires.items():
            if wire.written and wire.received is None:
                self._take(name, wire)
            elif name not in self._seen.endings and wire.socket.fileno() >= 0:
                self._seen.endings[name] = wire.ending()

    def leave(self) -> None:
        for exchange in self._exchanges.values():
            exchange.leave()
        for wire in self._wires.values():
            wire.close()
        self._disperse()

    def _disperse(self) -> None:
        while self._crowd:
            self._crowd.pop().close()

    def _perform(self, step: s.Step) -> None:
        match step:
            case s.Connect():
                self._wires[step.name] = self._connect(step.worker)
            case s.Write():
                self._acts()
                self._wires[step.name].write(step.data)
            case s.Answering():
                self._require(self._wires[step.name].answering(BOUND), f"an answer on connection {step.name}")
            case s.Take():
                self._acts()
                self._take(step.name, self._wires[step.name])
            case s.Start():
                self._start(step)
                if isinstance(step, s.Ask):
                    self._collect(step.name, self._exchanges[step.name])
                    if not self._signalled and _counted(step):
                        # To the service a request ends a moment after its client has read the answer.
                        self._await_event(s.Event("request_finished", request=step.name))
            case s.Admitted():
                for name in step.names:
                    self._await_event(s.Event("request_admitted", request=name))
            case s.AtQuery():
                self._require(
                    self._bystander.at_query(step.latch, step.count, BOUND, self._running),
                    f"{step.count} at query latch {step.latch}",
                )
            case s.AtLatch():
                self._require(
                    self._latches.arrived(step.latch, step.count, BOUND, self._running),
                    f"{step.count} at latch {step.latch}",
                )
            case s.Open():
                self._last_act = time.monotonic()
                for latch in step.latches:
                    if latch in self._query_latches:
                        self._bystander.open_latch(latch)
                    else:
                        self._latches.open(latch)
            case s.Answered():
                for name in step.names:
                    self._collect(name, self._exchanges[name])
            case s.FirstBytes():
                self._require(self._exchanges[step.name].first_bytes(BOUND), f"first bytes of {step.name}")
            case s.Disconnect():
                self._hang_up(step.name)
            case s.Send() if not step.ends_all:
                self._last_act = time.monotonic()
                pid = self._process.pid if step.worker is None else self._pids[step.worker]
                if not send(pid, step.number):
                    raise ScenarioError(f"the process that was to hear of {step.number.name} has ended")
            case s.Send():
                # With a fault before the signal the database may not answer.
                first = not self._signalled and (self._place is None or not self._place.troubled)
                if first and (sessions := self._bystander.sessions()) is not None:
                    self._seen.seen[AT_SIGNAL] = sessions
                self._last_act = self._process.signal(step.number)
                self._signalled = True
            case s.Pause():
                self._send_workers(signal.SIGSTOP)
            case s.Resume():
                self._last_act = time.monotonic()
                self._send_workers(signal.SIGCONT)
            case s.FewDescriptors():
                limit_descriptors(self._pids, step.room)
            case s.Crowd():
                self._crowd += [socket.create_connection(self._process.address) for _ in range(step.size)]
            case s.CrowdLeaves():
                self._disperse()
            case s.OthersEnded():
                for pid in self._pids[1:]:
                    self._require(_await_end(pid, BOUND), "the end of the other worker")
            case s.WorkerEnded():
                self._require(_await_end(self._pids[step.worker], BOUND), f"the end of worker {step.worker}")
            case s.Entered():
                wanted = self._workers if step.workers is None else step.workers
                self._await(
                    lambda events: sum(event.get("phase") == step.phase.value for event in events) >= wanted,
                    f"phase {step.phase.value}",
                )
            case s.Draining():
                self._await(lambda events: self._count(events, "drain_started") >= self._workers, "the drain")
            case s.Event():
                self._await_event(step)
            case s.Sessions():
                total = step.total + (self._workers - 1) * self._scenario.min_idle
                self._require(
                    self._bystander.await_sessions(total, BOUND, self._running),
                    f"{total} sessions on the database server",
                )
            case s.EndSessions():
                self._bystander.end_sessions()
            case s.Fault():
                assert self._place is not None, "a scenario with faults has a place for them"
                self._last_act = time.monotonic()  # the service may end before a server has restarted
                self._place.apply(BY_NAME[step.name])
            case s.Look():
                self._seen.shown[step.name] = look_inside(self._process.admin)
            case s.TakeBack():
                assert self._place is not None, "a scenario with faults has a place for them"
                self._last_act = time.monotonic()
                self._place.take_back()

    def _start(self, step: s.Start) -> None:
        wire = self._wires[step.on] if step.on is not None else self._connect(step.worker)
        keep = step.on is not None
        self._acts()
        self._exchanges[step.name] = Exchange(wire, step.method, step.target, step.name, step.body, keep=keep)

    def _acts(self) -> None:
        """Something is done to the service that it may wait for, or that it has waited for."""
        if self._signalled:
            self._last_act = time.monotonic()

    def _take(self, name: str, wire: Wire) -> None:
        self._seen.endings[name] = wire.take()
        self._seen.received[name] = answers_in(wire.received or b"")

    def _hang_up(self, name: str) -> None:
        if name in self._exchanges:
            self._exchanges[name].leave()
        else:
            self._wires.pop(name).close()

    def _connect(self, worker: int) -> Wire:
        """A new connection; of two workers, to this one (once they drain, whoever takes it)."""
        if self._workers == 1 or self._signalled:
            return Wire(self._process.address)
        wanted = self._pids[worker]
        for _ in range(STEERING_TRIES):
            wire = Wire(self._process.address)
            if _ask_worker(wire) == wanted:
                return wire
            wire.close()
        raise ScenarioError(f"worker {worker} took none of {STEERING_TRIES} connections")

    @property
    def _pids(self) -> list[int]:
        """The workers, the one that was started first being the first."""
        return list(dict.fromkeys(event["pid"] for event in self._transcript.records))

    def _send_workers(self, number: signal.Signals) -> None:
        for pid in self._pids:
            send(pid, number)

    def _collect(self, name: str, exchange: Exchange) -> None:
        answer = exchange.answer(BOUND)
        if answer is None:
            raise ScenarioError(f"request {name} was not answered within {BOUND:g} s")
        self._seen.answers[name] = answer

    def _await_event(self, step: s.Event) -> None:
        def fits(event: Record) -> bool:
            if event["event"] != step.name or (step.rule is not None and event.get("rule") != step.rule):
                return False
            # "" asks for an event of no request
            return step.request is None or (event.get("request") or "") == step.request

        what = " ".join(filter(None, (step.name, step.rule, step.request)))
        self._await(lambda events: sum(map(fits, events)) >= step.count, f"{step.count} × event {what}")

    def _await(self, wanted: Callable[[list[Record]], bool], what: str, timeout: float = BOUND) -> None:
        self._require(self._transcript.await_events(wanted, timeout, self._running), what)

    def _running(self) -> bool:
        return self._process.ended is None

    def _require(self, came: bool, what: str) -> None:
        if not came:
            ended = self._process.ended
            state = "it still runs" if ended is None else f"it ended with {ended.code}"
            raise ScenarioError(f"waited in vain for: {what} ({state})")

    @staticmethod
    def _count(events: list[Record], name: str) -> int:
        return sum(event["event"] == name for event in events)


def _counted(step: s.Start) -> bool:
    """Whether the gate counts this request, so that it has events."""
    return step.target.partition("?")[0] not in Probes(others=frozenset({STATUS_PATH, routes.WORKER_PATH})).uncounted


def _await_end(pid: int, timeout: float) -> bool:
    """Wait until a process that is no child of ours has ended; False if it does not in `timeout` seconds."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(process)


def _ask_worker(wire: Wire) -> int:
    wire.socket.settimeout(BOUND)
    wire.socket.sendall(f"GET {routes.WORKER_PATH} HTTP/1.1\r\nHost: {wire.host}\r\n\r\n".encode("ascii"))
    reader = ResponseReader()
    while not reader.complete:
        data = wire.socket.recv(65536)
        if not data:
            raise ScenarioError("a worker closed a connection on which it was asked who it is")
        reader.feed(data)
    return int(json.loads(reader.body)["worker"])


def _report(path: Path) -> Record | None:
    try:
        report: Record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return report


def _complaints(lines: list[str]) -> tuple[Counter[str], list[str]]:
    complaints: Counter[str] = Counter()
    stray: list[str] = []
    for line in lines:
        record: Any = None
        with contextlib.suppress(ValueError):
            record = json.loads(line)
        if not isinstance(record, dict):
            stray.append(line)
        elif record.get("level") in ("warning", "error", "critical"):
            complaints[f"{record['level']}: {record['event']}"] += 1
    return complaints, stray
