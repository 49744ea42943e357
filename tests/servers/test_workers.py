"""Workers come and go, and the service goes on: one is told to end, all are replaced, one is killed."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pooldrain.runtime.listener import IDLE_LIMIT
from pooldrain.runtime.master.master import forgotten
from pooldrain.runtime.master.worker import SUCCESSOR_LIMIT
from pooldrain_async.servers.gunicorn import WorkerServer
from pooldrain_compare.harness.load import LoadClient, LoadResult, Mode, Outcome, mixed
from pooldrain_compare.harness.servers import GUNICORN, GUNICORN_2, UVICORN, UVICORN_2, WAITRESS, Backend
from pooldrain_compare.parity.app.routes import WORKER_PATH
from pooldrain_compare.parity.conductor import app_module
from tests.conftest import Measured
from tests.harness.http import Connection
from tests.harness.in_flight import Taken
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Record, Service
from tests.harness.waiting import BOUND, eventually

# With a master. One asyncio worker has one if it is to be replaced after some requests.
MANAGED = (GUNICORN, GUNICORN_2, UVICORN_2)
UVICORN_1 = replace(UVICORN, name="uvicorn-1-worker", options=("--max-requests", "1000000"))
EVERY_MASTER = (*MANAGED, UVICORN_1)

every_master = pytest.mark.parametrize("backend", EVERY_MASTER, ids=lambda backend: backend.name)
managed = pytest.mark.parametrize("backend", MANAGED, ids=lambda backend: backend.name)

START = 60.0  # seconds for a successor to start on a busy machine


def start(services: Launcher, backend: Backend, *options: str) -> Service:
    """A service that tells which worker answers."""
    return services.start(backend, "--app", f"{app_module(backend)}:create_app", *options)


def worker_of(connection: Connection) -> int:
    pid: int = connection.get(WORKER_PATH).json["worker"]
    return pid


def connect_to(service: Service, pid: int) -> Connection:
    """A connection to this worker, kept after its first answer."""
    for _ in range(2000):
        connection = service.connect()
        if worker_of(connection) == pid:
            return connection
        connection.close()
    raise AssertionError(f"worker {pid} takes no connection")


def end_of(pid: int) -> int | None:
    """A descriptor that becomes readable when the process has ended; None if it has."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def await_end(*pids: int) -> None:
    for pid in pids:
        descriptor = end_of(pid)
        if descriptor is not None:
            ended, _, _ = select.select([descriptor], [], [], START)
            os.close(descriptor)
            assert ended, f"worker {pid} does not end"


def await_workers(service: Service, number: int) -> list[int]:
    """Wait until that many workers have ever listened; all of them, in order."""

    def enough() -> bool:
        return len(service.pids) >= number

    eventually(enough, f"{number} workers that ever listened:\n{service.process.log_tail()}", START)
    return service.pids


def phases(service: Service, pid: int) -> list[str]:
    return [record["phase"] for record in service.transcript if record["pid"] == pid and record["event"] == "phase"]


def await_phase(service: Service, pid: int, phase: str) -> None:
    eventually(lambda: phase in phases(service, pid), f"worker {pid} in {phase}", START)


def report_of(service: Service, pid: int) -> Record:
    """The report of a worker that was replaced: reports are in the order in which workers were started."""
    report: Record = service.reports[service.pids.index(pid)]
    return report


@dataclass
class Held:
    """An order that waits in the database for as long as the test wants."""

    postgres: Postgres
    taken: Taken

    def put(self, connection: Connection, pid: int) -> None:
        """Put it in flight on this connection, to this worker."""
        connection.ask("POST", "/orders", self.taken.order().body)
        self.postgres.await_blocked([pid], 1)

    def release(self) -> None:
        """Let it go on."""
        self.taken.release()


@pytest.fixture
def held(postgres: Postgres, taken: Taken) -> Held:
    return Held(postgres, taken)


def finish(service: Service, code: int = 0) -> None:
    service.send_signal()
    assert service.ended(within=START).code == code


# --- one is told to end ---------------------------------------------------------------------------------------


@every_master
def test_a_worker_that_is_told_to_end_serves_its_clients_while_others_take_new_ones(
    services: Launcher, postgres: Postgres, held: Held, backend: Backend
) -> None:
    service = start(services, backend)
    before = service.pids
    worker = before[0]
    kept, idle, half, busy, silent = (connect_to(service, worker) for _ in range(5))
    silent_and_new = service.connect() if backend.workers == 1 else silent
    held.put(busy, worker)
    half.send(b"GET /db-test HTTP/1.1\r\nHost: loc")

    os.kill(worker, signal.SIGTERM)
    successor = await_workers(service, len(before) + 1)[-1]
    await_phase(service, worker, "ANNOUNCING")

    answer = kept.get("/db-test")
    assert (answer.status, answer.closes, kept.ending()) == (200, True, "closed")
    half.expect("GET")
    half.send(b"alhost\r\n\r\n")
    answer = half.answer()
    assert (answer.status, answer.closes, half.ending()) == (200, True, "closed")
    takers = {worker_of(service.connect()) for _ in range(20)}
    assert takers <= {*before[1:], successor}
    assert [idle.ending(), silent.ending(), silent_and_new.ending()] == ["closed"] * 3
    assert "DRAINING" not in phases(service, worker), "it waits for the request in flight"

    held.release()
    answer = busy.answer()
    assert (answer.status, answer.closes, busy.ending()) == (201, True, "closed")
    await_end(worker)
    postgres.await_no_sessions([worker])
    assert service.get("/db-test").status == 200

    finish(service)
    assert report_of(service, worker)["outcome"] == "drained"
    assert service.refused == 0
    assert len(service.reports) == len(before) + 1
    assert not service.complaints


@every_master
def test_an_idle_worker_that_is_told_to_end_is_gone_as_soon_as_another_is_there(
    services: Launcher, backend: Backend, measured: Measured
) -> None:
    service = start(services, backend)
    before = service.pids
    os.kill(before[0], signal.SIGTERM)
    await_workers(service, len(before) + 1)
    await_end(before[0])
    finish(service)
    seconds = report_of(service, before[0])["seconds"]
    measured(f"an idle worker retires, {backend.name}", seconds)
    assert seconds < IDLE_LIMIT


@managed
def test_a_request_that_hangs_in_a_worker_that_retires_is_cut_after_the_drain_timeout(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start(services, backend, "--drain-timeout", "1", "--cancel-timeout", "4")
    before = service.pids
    hung = connect_to(service, before[0]).ask("GET", "/work?ms=600000")
    postgres.await_working([before[0]])
    os.kill(before[0], signal.SIGTERM)
    answer = hung.answer(START)
    assert (answer.status, answer.closes) == (504, True)
    await_end(before[0])
    assert service.get("/db-test").status == 200
    finish(service, code=3)  # the worst of all workers, as the report says
    report = report_of(service, before[0])
    assert (report["outcome"], report["requests"]["cut"]) == ("cut", 1)
    seconds = {phase["phase"]: phase["seconds"] for phase in report["phases"]}
    assert 1 <= seconds["ANNOUNCING"] + seconds["DRAINING"] <= 1.4  # once, not twice


@managed
def test_a_worker_that_retires_is_hurried_by_sigquit(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service = start(services, backend)
    before = service.pids
    hung = connect_to(service, before[0]).ask("GET", "/work?ms=600000")
    postgres.await_working([before[0]])
    os.kill(before[0], signal.SIGTERM)
    await_phase(service, before[0], "ANNOUNCING")
    os.kill(before[0], signal.SIGQUIT)
    answer = hung.answer(START)
    assert (answer.status, answer.closes) == (504, True)
    await_end(before[0])
    assert service.get("/db-test").status == 200
    finish(service, code=3)
    report = report_of(service, before[0])
    assert (report["hurried"], report["requests"]["cut"]) == (True, 1)


@managed
def test_the_service_may_be_told_to_end_while_a_worker_retires(
    services: Launcher, held: Held, backend: Backend
) -> None:
    service = start(services, backend)
    before = service.pids
    busy, kept = connect_to(service, before[0]), connect_to(service, before[0])
    held.put(busy, before[0])
    os.kill(before[0], signal.SIGTERM)
    await_workers(service, len(before) + 1)
    await_phase(service, before[0], "ANNOUNCING")
    service.send_signal()
    service.await_event("drain_started", len(before) + 1)
    for answer in (kept.get("/db-test"), service.get("/db-test")):
        assert (answer.status, answer.closes) == (503, True)
    held.release()
    answer = busy.answer()
    assert (answer.status, answer.closes) == (201, True)
    assert service.ended().code == 0
    assert {report["outcome"] for report in service.reports} == {"drained"}
    assert not service.complaints


@managed
def test_all_are_told_at_once_and_none_waits_for_a_successor(services: Launcher, backend: Backend) -> None:
    service = start(services, backend, "--announce-period", "0.3")
    before = service.pids
    for pid in before:  # they hear of it before their master does
        os.kill(pid, signal.SIGTERM)
    service.send_signal()
    assert service.ended().code == 0
    assert service.pids == before
    for report in service.reports:
        assert 0.3 <= report["phases"][0]["seconds"] <= 0.55


@managed
def test_one_worker_more_and_one_less(services: Launcher, backend: Backend) -> None:
    service = start(services, backend)
    before = service.pids
    service.send_signal(signal.SIGTTIN)
    after = await_workers(service, len(before) + 1)
    service.send_signal(signal.SIGTTOU)
    await_end(before[0])
    assert service.get("/db-test").status == 200
    finish(service)
    assert service.pids == after, "nobody took its place"


# --- under load -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """How workers are made to go. `replaced`: how many of `number` go."""

    name: str
    make: Callable[[Service], object]
    replaced: Callable[[int], int]
    options: tuple[str, ...] = ()


CHANGES = (
    Change("SIGTERM-to-one", lambda service: os.kill(service.pids[0], signal.SIGTERM), lambda number: 1),
    Change("SIGHUP", lambda service: service.send_signal(signal.SIGHUP), lambda number: number),
    Change("SIGHUP-to-all", lambda service: service.send_group_signal(signal.SIGHUP), lambda number: number),
    Change(
        "max-requests",
        lambda service: None,
        lambda number: number,
        ("--max-requests", "150", "--max-requests-jitter", "100"),
    ),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
@every_master
def test_workers_are_replaced_under_load_and_no_request_is_lost_or_refused(
    services: Launcher, postgres: Postgres, backend: Backend, change: Change, measured: Measured
) -> None:
    service = start(services, backend, *change.options)
    before = service.pids
    prefix = uuid.uuid4().hex[:12]
    load = LoadClient(service.address, mixed(prefix), clients=24).start()
    try:
        eventually(lambda: load.answered >= 100, "load")
        change.make(service)
        await_workers(service, len(before) + change.replaced(len(before)))
        await_end(*before[: change.replaced(len(before))])
        answered = load.answered
        eventually(lambda: load.answered >= answered + 50, "load after the change", START)
        load.stop()
        result = load.join(START)
    finally:
        load.stop()
    finish(service)
    expect_all_answered(result)
    acknowledged = result.orders(Outcome.ANSWERED)
    assert Counter(postgres.orders(prefix)) == Counter(acknowledged)
    assert sum(report["requests"]["finished"] for report in service.reports) == result.count(Outcome.ANSWERED)
    postgres.await_no_sessions(service.pids)
    assert not service.complaints
    measured(f"longest pause between answers, {change.name}, {backend.name}", longest_pause(result))


def expect_all_answered(load: LoadResult) -> None:
    assert load.lost == []
    assert set(load.statuses) == {200, 201}
    assert load.reasons == {}
    assert load.unsolicited == 0


def longest_pause(load: LoadResult) -> float:
    """Seconds between two answers to clients that open a connection for each request."""
    answered = sorted(e.ended_at for e in load.exchanges if e.mode is Mode.NEW and e.status is not None)
    return max(later - earlier for earlier, later in itertools.pairwise(answered))


@managed
def test_a_killed_worker_is_replaced_and_only_its_own_requests_are_lost(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start(services, backend)
    before = service.pids
    prefix = uuid.uuid4().hex[:12]
    load = LoadClient(service.address, mixed(prefix), clients=24).start()
    try:
        eventually(lambda: load.answered >= 100 and load.in_flight >= 12, "load, and requests in flight")
        os.kill(before[0], signal.SIGKILL)
        await_end(before[0])
        killed = time.monotonic()
        await_workers(service, len(before) + 1)
        answered = load.answered
        eventually(lambda: load.answered >= answered + 50, "load after the kill", START)
        load.stop()
        result = load.join(START)
    finally:
        load.stop()
    postgres.await_no_sessions(before[:1])
    finish(service)
    assert set(result.statuses) == {200, 201}
    harmed = [e for e in result.exchanges if e.outcome in (Outcome.LOST, Outcome.NOT_SENT)]
    assert len(harmed) <= 24, "each client was hit once at most"
    assert all(e.ended_at < killed + 1 for e in harmed)
    acknowledged = Counter(result.orders(Outcome.ANSWERED))
    table = Counter(postgres.orders(prefix))
    assert not acknowledged - table
    assert set(table.values()) == {1}
    [complaint] = service.complaints
    assert "was killed by SIGKILL and is replaced" in complaint


# --- the master -----------------------------------------------------------------------------------------------


@managed
def test_sigquit_to_the_master_does_not_wait_for_requests(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = start(services, backend)
    endless = service.connect().ask("GET", "/work?ms=600000")
    postgres.await_working(service.pids)
    service.send_signal(signal.SIGQUIT)
    answer = endless.answer()
    assert (answer.status, answer.closes) == (504, True)
    assert service.ended().code == 3
    assert {report["hurried"] for report in service.reports if report["requests"]["cut"]} == {True}
    postgres.await_no_sessions(service.pids)


@managed
def test_workers_whose_master_was_killed_drain_and_end(
    services: Launcher, postgres: Postgres, held: Held, backend: Backend
) -> None:
    service = start(services, backend)
    busy = connect_to(service, service.pids[0])
    held.put(busy, service.pids[0])
    service.send_signal(signal.SIGKILL)
    service.await_event("drain_started", backend.workers)
    held.release()
    answer = busy.answer()
    assert (answer.status, answer.closes) == (201, True)
    await_end(*service.pids)
    postgres.await_no_sessions(service.pids)


@pytest.fixture
def write_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes the code of an application that answers with a text; its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # what is compiled is told apart by the second only

    def write(text: str) -> str:
        (tmp_path / "changing_app.py").write_text(
            f"""
def create_sync(runner):
    def app(environ, start_response):
        start_response("200 OK", [("content-length", str(len({text!r})))])
        return [{text!r}.encode()]
    return app

def create_async(runner):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            headers = [(b"content-length", str(len({text!r})).encode())]
            await send({{"type": "http.response.start", "status": 200, "headers": headers}})
            await send({{"type": "http.response.body", "body": {text!r}.encode()}})
    return app
""",
            "utf-8",
        )
        return "changing_app"

    return write


@managed
def test_sighup_loads_the_code_anew_and_code_that_does_not_load_changes_nothing(
    services: Launcher, backend: Backend, write_app: Callable[[str], str], tmp_path: Path
) -> None:
    colour = "sync" if backend.module == "pooldrain_sync" else "async"
    service = services.start(backend, "--app", f"{write_app('before')}:create_{colour}")
    before = service.pids
    assert service.get("/").body == b"before"

    (tmp_path / "changing_app.py").write_text("this is no Python", "utf-8")
    service.send_signal(signal.SIGHUP)
    service.await_event("error")
    assert {service.get("/").body for _ in range(10)} == {b"before"}
    assert service.pids == before

    write_app("after")
    await_workers(service, 2 * len(before))
    await_end(*before)
    assert {service.get("/").body for _ in range(10)} == {b"after"}
    finish(service)


def test_a_worker_waits_for_a_successor_that_does_not_start_but_not_for_ever(
    services: Launcher, write_app: Callable[[str], str], tmp_path: Path
) -> None:
    name = write_app("before")
    every = [
        services.start(GUNICORN, "--app", f"{name}:create_sync"),
        services.start(UVICORN_1, "--app", f"{name}:create_async"),
    ]
    (tmp_path / f"{name}.py").write_text("this is no Python", "utf-8")
    told = time.monotonic()
    for service in every:
        os.kill(service.pids[0], signal.SIGTERM)
    for service in every:
        service.await_event("error")
        assert service.get("/").body == b"before"
    for service in every:
        await_end(service.pids[0])
        assert time.monotonic() - told > SUCCESSOR_LIMIT
    waiting = [service.connect().ask("GET", "/") for service in every]
    write_app("after")
    for connection in waiting:
        assert connection.answer(START).body == b"after"
    for service in every:
        finish(service)


class EndsAt:
    """A worker whose shutdown is due at an instant."""

    def __init__(self, instant: float) -> None:
        self._instant = instant
        self.begun = asyncio.Event()

    def due_signals(self, now: float) -> list[str]:
        return ["SIGTERM"] if now >= self._instant else []

    def patience(self, now: float) -> float:
        return max(0.0, self._instant - now)

    def begin(self, names: Sequence[str]) -> None:
        if names:
            self.begun.set()


def test_a_worker_that_looks_a_moment_too_early_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = EndsAt(1.0)
    instants = itertools.chain([1.0 - 1e-9], itertools.repeat(1.0))  # a timer may end a little early
    clock = SimpleNamespace(monotonic=instants.__next__)
    monkeypatch.setattr("pooldrain_async.servers.gunicorn.time", clock)

    async def looked() -> None:
        server: Any = SimpleNamespace(_told_something=asyncio.Event(), _begin=worker.begin, _worker=worker)
        looking = asyncio.create_task(WorkerServer._begin_when_due(server))
        async with asyncio.timeout(BOUND):
            await worker.begun.wait()
        looking.cancel()

    asyncio.run(looked())


def test_the_reports_of_long_gone_workers_are_forgotten() -> None:
    assert forgotten([1, 2, 3, 4, 5], living=[1, 5], kept=2) == [2]
    assert forgotten([1, 2, 3, 4, 5], living=[1, 5], kept=3) == []


def test_waitress_has_nobody_to_replace_its_process(services: Launcher) -> None:
    service = services.begin(WAITRESS, "--max-requests", "10")
    assert service.ended().code == 2
    [complaint] = service.process.log_lines()
    assert "--max-requests 10: nobody would replace waitress's one process" in complaint


def test_a_single_asyncio_worker_has_a_master_if_it_is_to_be_replaced(services: Launcher) -> None:
    service = services.start(UVICORN_1)
    assert service.pids != [service.process.pid]
    finish(service)
    assert service.report["requests"]["seen"] == 0


assert BOUND < START
