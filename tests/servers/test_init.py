"""A service as a container's first process: it reaps orphans, hears signals, and ends with its own exit code."""

from __future__ import annotations

import shutil
import signal
import subprocess

import psutil
import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, UVICORN, Backend
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually
from tests.servers import orphan_app

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
everywhere = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


first_process = pytest.mark.skipif(not may_unshare(), reason="no namespace of processes may be made here")


def as_first(services: Launcher, backend: Backend, *options: str) -> tuple[Service, psutil.Process]:
    """A service that runs as process 1 of a namespace, and that process as we see it."""
    colour = backend.module.removeprefix("pooldrain_")
    service = services.prepare(backend, "--app", f"{orphan_app.__name__}:create_{colour}", *options)
    service.process.argv[:0] = UNSHARE
    services.enter(service)
    [first] = psutil.Process(service.process.pid).children()
    return service, first


def leave_orphans(service: Service) -> None:
    for _ in range(5):
        assert service.get("/leave").status == 200


def zombies(first: psutil.Process) -> int:
    return sum(child.status() == psutil.STATUS_ZOMBIE for child in first.children())


@every_way
@first_process
def test_as_process_1_it_reaps_orphans_and_drains_at_sigterm(services: Launcher, backend: Backend) -> None:
    service, first = as_first(services, backend)
    before = len(first.children())
    leave_orphans(service)
    eventually(lambda: len(first.children()) == before and not zombies(first), "the orphans are reaped")
    first.send_signal(signal.SIGTERM)
    assert service.ended().code == ExitCode.DRAINED
    assert service.report["outcome"] == "drained"


@first_process
def test_without_it_orphans_stay(services: Launcher) -> None:
    service, first = as_first(services, UVICORN, "--init", "off")
    leave_orphans(service)
    eventually(lambda: zombies(first) == 5, "nobody has reaped them")
    first.send_signal(signal.SIGTERM)
    assert service.ended().code == ExitCode.DRAINED


@everywhere
def test_it_does_so_elsewhere_if_asked_for_and_passes_every_signal_on(services: Launcher, backend: Backend) -> None:
    service = services.start_app(backend, orphan_app.__name__, "--init", "on", "--drain-timeout", "60")
    leave_orphans(service)
    first = psutil.Process(service.process.pid)
    eventually(lambda: [child.name() for child in first.children()] != [] and not zombies(first), "they are reaped")
    assert service.get("/wait").body.strip(b'"') == b"7", "a child that the application waits for is its own"
    service.send_signal(signal.SIGHUP)
    service.await_event("signal_ignored" if backend.name != "gunicorn" else "listening")
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED


@everywhere
def test_a_terminals_ctrl_c_counts_once(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--init", "on")
    service.send_group_signal()
    assert service.ended().code == ExitCode.DRAINED
    assert service.report["hurried"] is False
    assert service.report["signal"] == "SIGINT"


@everywhere
def test_its_exit_code_is_that_of_the_service(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--init", "on", "--drain-timeout", "0.1", "--cancel-timeout", "1")
    hung = service.connect().ask("GET", "/work?ms=60000")
    service.await_admitted(1)
    service.send_signal()
    assert hung.answer().status == 504
    assert service.ended().code == ExitCode.CUT


def test_it_does_not_outlive_its_first_process(services: Launcher) -> None:
    service = services.start(UVICORN, "--init", "on")
    [serving] = psutil.Process(service.process.pid).children()
    psutil.Process(service.process.pid).kill()
    serving.wait(15)
    assert not serving.is_running()
