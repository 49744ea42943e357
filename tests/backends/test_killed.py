"""A killed service: nobody can shut it down in order, and still nothing of it stays on the database server."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pooldrain.sqla.connect_options import CLIENT_CHECK
from pooldrain_compare.harness.servers import EVERY_WAY, Backend
from tests.conftest import Measured
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher
from tests.harness.waiting import BOUND

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)

# Seconds after which the documentation promises that the sessions are gone.
PROMISED = 5.0
assert CLIENT_CHECK < PROMISED


@every_way
def test_the_sessions_of_a_killed_service_end_also_in_the_middle_of_a_query(
    services: Launcher, postgres: Postgres, backend: Backend, measured: Measured
) -> None:
    service = services.start(backend)
    slow = service.connect()
    slow.ask("GET", "/work?ms=600000")
    pids = service.pids
    postgres.await_working(pids)
    killed = time.monotonic()
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait(BOUND)  # the kernel may take a moment longer over the workers
    postgres.await_no_sessions(pids)
    gone = time.monotonic() - killed
    measured(f"killed to no session left, {backend.name}", gone)
    assert gone < PROMISED


@every_way
def test_without_the_server_looking_the_query_of_a_killed_service_would_run_on(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.start(backend, "--tcp-timeout", "off")
    service.connect().ask("GET", "/work?ms=3000")
    pids = service.pids
    postgres.await_working(pids)
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait(BOUND)  # the kernel may take a moment longer over the workers
    assert postgres.working(pids)
    postgres.await_no_sessions(pids)
