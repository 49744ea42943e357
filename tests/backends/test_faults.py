"""Hard endings: a request that hangs, a database that stands still, connections that do not close. Each has a bound.

Faults of every kind, before, during and at the end of a shutdown, and the same verdict on all servers, are scenarios of
the catalogue (`pooldrain_compare.parity.scenarios`): a few are played here, all of them by `make parity`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from pooldrain.runtime.process.watchdog import END_MARGIN
from pooldrain_compare.harness.faults.catalogue import FAULTS, FROZEN, Fault, Place
from pooldrain_compare.harness.faults.private_server import PrivateServer
from pooldrain_compare.harness.servers import Backend
from pooldrain_compare.parity.cases import Case, CaseResult, ParityOptions, plan, run_cases, stage
from pooldrain_compare.parity.scenarios import BY_NAME
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher
from tests.harness.waiting import eventually

CANCEL_TIMEOUT = 1.0
OPTIONS = (
    "--drain-timeout",
    "0.5",
    "--cancel-timeout",
    str(CANCEL_TIMEOUT),
    "--dispose-timeout",
    "1",
    "--teardown-timeout",
    "0.1",
)
GRACE_PERIOD = 0.5 + CANCEL_TIMEOUT + 0.1 + 1 + 0.05

# One of each kind; all of them are in `make parity`.
PLAYED = (
    "restarted-before",
    "black-hole-before",
    "reset-during",
    "slow-and-cut",
    "frozen-at-the-end",
    "nothing-closes",
)
CASES = plan(ParityOptions(scenarios=PLAYED))


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer() as running:
        yield running


@pytest.fixture
def place(server: PrivateServer) -> Iterator[Place]:
    with Place(server) as fresh:
        yield fresh


# --- the faults themselves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_taken_back(place: Place, server: PrivateServer, fault: Fault) -> None:
    place.apply(fault)
    assert place.troubled == fault.lasts
    place.take_back()
    assert not place.troubled
    with psycopg.connect(place.url, connect_timeout=10) as connection:
        connection.execute("CREATE TABLE written (id int)")
    assert server.stopped() == []


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.lasts], ids=lambda fault: fault.name)
def test_what_was_not_taken_back_is_taken_back_at_the_end(server: PrivateServer, fault: Fault) -> None:
    with Place(server) as place:
        place.apply(fault)
    server.await_ready()
    assert server.stopped() == []


def test_a_frozen_server_is_stopped_all_the_same() -> None:
    with PrivateServer() as server:
        [postmaster, *_] = server.processes()
        server.freeze()
    assert not postmaster.is_running() or postmaster.status() == psutil.STATUS_ZOMBIE


# --- hung requests --------------------------------------------------------------------------------------------


def test_a_hung_query_is_gone_within_the_cancel_timeout_and_the_report_tells_who_asked(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend, *OPTIONS)
    hung = service.connect().ask("GET", "/work?ms=600000", headers=[("X-Request-ID", "hung-1")])
    pids = service.pids
    postgres.await_working(pids)
    signalled = service.send_signal(signal.SIGTERM)
    service.await_event("drain_ended")
    eventually(lambda: not postgres.working(pids), "the query is gone", within=CANCEL_TIMEOUT)
    answer = hung.answer()
    assert (answer.status, answer.header("content-type")) == (504, "application/problem+json")
    ended = service.ended()
    assert ended.code == 3
    assert ended.at - signalled < GRACE_PERIOD + END_MARGIN
    [cut] = service.report["cut_requests"]
    assert (cut["route"], cut["request_id"], cut["status"]) == ("GET /work", "hung-1", 504)
    assert cut["age"] >= 0.5
    assert cut["call_site"].endswith("in Demo.work")


def test_with_a_database_that_stands_still_the_exit_is_within_the_grace_period(
    services: Launcher, place: Place, backend: Backend
) -> None:
    service = services.start(backend, *OPTIONS, url=place.url)
    hung = service.connect().ask("GET", "/work?ms=600000")
    eventually(lambda: len(place.sessions()) > len(place.sessions(idle=True)), "the query runs")
    idle = len(place.sessions(idle=True))
    place.apply(FROZEN)
    signalled = service.send_signal(signal.SIGTERM)
    ended = service.ended()
    assert ended.code == 3
    assert ended.at - signalled < GRACE_PERIOD + END_MARGIN
    assert hung.answer().status == 504
    connections = service.report["connections"]
    assert connections == {"opened": idle + 1, "closed": idle + 1, "reclaimed": 0, "abandoned": 0}
    place.take_back()
    eventually(lambda: not place.sessions(), "no session is left", within=5.0)


# --- the catalogue --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CaseResult]:
    """The verdict on each case; two services run at a time."""
    directory = tmp_path_factory.mktemp("catalogue")
    with stage(database_url, directory) as on:
        found = run_cases(on, CASES, lambda _verdict: None, directory=directory)
    return {verdict.case.name: verdict for verdict in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_all_servers_do_the_same(verdicts: dict[str, CaseResult], case: Case) -> None:
    verdict = verdicts[case.name]
    assert verdict.good, "\n".join(verdict.complaints())


def test_every_row_of_the_table_in_the_documentation_names_a_proof_that_exists() -> None:
    root = Path(__file__).parents[2]
    tests = "".join(path.read_text("utf-8") for path in (root / "tests").rglob("test_*.py"))
    lines = (root / "docs" / "reference" / "faults.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| fault |")]
    assert len(rows) >= len(FAULTS)
    for row in rows:
        proofs = re.findall(r"`([^`]+)`", row.rsplit("|", 2)[1])
        assert proofs, row
        for proof in proofs:
            assert proof in BY_NAME or f"def {proof}(" in tests or (root / proof).is_file(), proof
