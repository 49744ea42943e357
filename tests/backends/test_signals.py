"""Signals: SIGINT is SIGTERM, a second one hurries, a third ends it; to one process or to the whole group."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from pooldrain_compare.harness.processes import ServerProcessError
from pooldrain_compare.harness.servers import EVERY_WAY, Backend
from tests.conftest import PutInFlight
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND, eventually

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)

# How a service may be told to end: `kill`, or a terminal's Ctrl+C, which every process of the group hears.
Tell = Callable[[Service], object]
WAYS_TO_TELL: dict[str, Tell] = {
    "SIGTERM": lambda service: service.send_signal(signal.SIGTERM),
    "SIGINT": lambda service: service.send_signal(signal.SIGINT),
    "Ctrl+C": lambda service: service.send_group_signal(signal.SIGINT),
}


every_tell = pytest.mark.parametrize("tell", WAYS_TO_TELL.values(), ids=WAYS_TO_TELL)
# To one process and to all of them: what is signalled differs, not the signal.
kill_and_ctrl_c = pytest.mark.parametrize(
    "tell", [WAYS_TO_TELL[n] for n in ("SIGTERM", "Ctrl+C")], ids=["SIGTERM", "Ctrl+C"]
)


def name_of(tell: Tell) -> str:
    return "SIGTERM" if tell is WAYS_TO_TELL["SIGTERM"] else "SIGINT"


def await_hurry(service: Service) -> None:
    """Wait until the second signal has been noticed."""

    def noticed() -> bool:
        return any(record["number"] == 2 for record in service.events("signal"))

    eventually(noticed, "a second signal in the log")


@every_way
@every_tell
def test_each_way_to_say_stop_means_the_same(
    services: Launcher, postgres: Postgres, in_flight: PutInFlight, backend: Backend, tell: Tell
) -> None:
    service = services.start(backend)
    held = in_flight(service, 4)
    tell(service)
    service.await_drain()
    assert service.get("/").status == 503
    held.release()
    assert [(answer.status, answer.closes) for answer in held.answers()] == [(201, True)] * len(held)
    assert service.ended().code == 0
    assert {report["signal"] for report in service.reports} == {name_of(tell)}
    assert {report["hurried"] for report in service.reports} == {False}
    assert not service.complaints
    postgres.await_no_sessions(service.pids)


@every_way
@kill_and_ctrl_c
def test_a_second_signal_hurries(services: Launcher, postgres: Postgres, backend: Backend, tell: Tell) -> None:
    service = services.start(backend)
    service.get("/db-test-leak")
    endless = service.connect().ask("GET", "/work?ms=60000")
    postgres.await_working(service.pids)
    tell(service)
    service.await_drain()
    tell(service)
    answer = endless.answer(timeout=5)
    assert (answer.status, answer.closes) == (504, True)
    assert service.ended(within=5).code == 3
    [report] = [report for report in service.reports if report["requests"]["cut"]]
    assert (report["outcome"], report["hurried"], report["signals"]) == ("cut", True, 2)
    assert [cut["route"] for cut in report["cut_requests"]] == ["GET /work"]
    holders = [holding["holder"] for report in service.reports for holding in report["outstanding"]]
    assert holders == ["GET /db-test-leak"]  # it is still disposed of
    postgres.await_no_sessions(service.pids)


@every_way
def test_a_second_signal_ends_the_announce_period(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--announce-period", "60")
    service.send_signal(signal.SIGTERM)
    service.await_event("signal", len(service.pids))
    service.send_signal(signal.SIGINT)
    assert service.ended(within=5).code == 0


@every_way
def test_sigquit_hurries_from_the_start(services: Launcher, postgres: Postgres, backend: Backend) -> None:
    service = services.start(backend)
    endless = service.connect().ask("GET", "/work?ms=60000")
    postgres.await_working(service.pids)
    service.send_signal(signal.SIGQUIT)
    answer = endless.answer(timeout=5)
    assert (answer.status, answer.closes) == (504, True)
    assert service.ended(within=5).code == 3
    assert {(report["signal"], report["hurried"]) for report in service.reports} == {("SIGQUIT", True)}
    postgres.await_no_sessions(service.pids)


@every_way
def test_a_signal_that_means_nothing_kills_nobody(services: Launcher, in_flight: PutInFlight, backend: Backend) -> None:
    service = services.start(backend)
    held = in_flight(service, 2)
    for number, told in enumerate((signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP), 1):
        for process in service.pids:
            os.kill(process, told)
        records = service.await_event("signal_ignored", number * len(service.pids))
        assert {record["signal"] for record in records[-len(service.pids) :]} == {told.name}
    for told in (signal.SIGUSR1, signal.SIGUSR2):
        service.send_signal(told)  # of several workers to their master
    held.release()
    assert [answer.status for answer in held.answers()] == [201] * len(held)
    service.send_signal()
    assert service.ended().code == 0
    assert {complaint.split()[0] for complaint in service.complaints} <= {"SIGUSR1", "SIGUSR2"}, "of the master"


@every_way
@kill_and_ctrl_c
def test_a_third_signal_ends_it_at_once(services: Launcher, postgres: Postgres, backend: Backend, tell: Tell) -> None:
    service = services.start(backend)
    stuck = service.connect().ask("GET", "/work?ms=60000")
    [session] = postgres.await_working(service.pids)
    with postgres.frozen(session):  # so that even the hurried shutdown has something to wait for
        tell(service)
        service.await_drain()
        tell(service)
        await_hurry(service)
        tell(service)
        ended = service.ended(within=2)
    assert ended.code == 128 + signal.Signals[name_of(tell)]
    stuck.close()
    postgres.terminate([session])  # nobody was left to do so


@pytest.fixture
def locker(postgres: Postgres) -> Iterator[Postgres]:
    """A database in which a start waits before it listens: somebody holds the lock it needs, until he closes."""
    locker = Postgres(postgres.url_of(postgres.new_database()))
    locker.run("SELECT pg_advisory_lock(hashtext('pooldrain demo'))")
    yield locker
    locker.close()


def await_start_up(service: Service, locker: Postgres) -> None:
    """Wait until a process (of several workers the first) waits for the lock in the middle of its start."""

    def waiting() -> bool:
        assert service.process.ended is None, service.process.log_tail()
        return any("pg_advisory_xact_lock" in s.query and s.state == "active" for s in locker.sessions())

    eventually(waiting, "a process in its start")


@every_way
@kill_and_ctrl_c
def test_a_signal_during_the_start_is_remembered(
    services: Launcher, postgres: Postgres, backend: Backend, tell: Tell, locker: Postgres
) -> None:
    service = services.begin(backend, url=locker.url)
    await_start_up(service, locker)
    tell(service)
    locker.close()
    assert service.ended(within=5).code == 0
    assert not service.complaints
    postgres.await_empty(locker.url)


@every_way
def test_three_signals_end_a_start_that_hangs(
    services: Launcher, postgres: Postgres, backend: Backend, locker: Postgres
) -> None:
    tell = WAYS_TO_TELL["Ctrl+C"]
    service = services.begin(backend, url=locker.url)
    await_start_up(service, locker)

    for _ in range(3):
        tell(service)
        with contextlib.suppress(ServerProcessError):
            service.ended(within=0.4)  # signals that come too fast become one
    assert service.ended(within=2).code == 128 + signal.SIGINT
    locker.close()
    postgres.await_empty(locker.url)


def test_a_signal_while_the_database_does_not_answer_ends_the_start(services: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=32) as silent:
        silent.settimeout(BOUND)
        url = f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/name?sslmode=disable&gssencmode=disable"
        every = [services.begin(backend, "--connect-timeout", "2", url=url) for backend in EVERY_WAY]
        accepted = [silent.accept()[0] for _ in every]
        for service in every:
            service.send_group_signal()
        codes = [service.ended(within=2 + 3).code for service in every]
        for connection in accepted:
            connection.close()
    assert codes == [1] * len(every)
    for service in every:
        assert [line for line in service.complaints if "cannot connect" not in line] == []
