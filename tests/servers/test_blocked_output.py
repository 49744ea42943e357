"""A log, or a transcript, that nobody reads: the service serves on, and ends as if somebody did."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pooldrain_compare.harness.processes import send
from pooldrain_compare.harness.servers import EVERY_WAY, SERVERS, Backend
from tests.harness.http import Address, ask
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND, eventually

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
all_servers = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)

LEAKS = 25  # requests, each with a line in the log; a pipe of 4 KiB holds a dozen of them


@contextmanager
def unread(service: Service) -> Generator[subprocess.Popen[bytes]]:
    """The service's process, with a stdout and a stderr that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = service.process
    with subprocess.Popen(
        process.argv, env=process.environment, stdout=writer, stderr=writer, start_new_session=True
    ) as popen:
        try:
            yield popen
        finally:
            send(popen.pid, signal.SIGKILL, group=True)
            os.close(reader)
            os.close(writer)


def listening(service: Service) -> Address:
    """Where it listens, as its transcript tells."""

    def told() -> list[int]:
        path = service.directory / f"{service.backend.name}.transcript.jsonl"
        events = service.transcript if path.exists() else []
        ports = [event["port"] for event in events if event["event"] == "listening"]
        return ports if len(ports) >= service.backend.workers else []

    return "127.0.0.1", eventually(told, "it listens")[0]


@every_way
def test_a_log_that_nobody_reads_keeps_no_request_and_no_exit(
    services: Launcher, postgres: Postgres, backend: Backend
) -> None:
    service = services.prepare(backend)
    with unread(service) as popen:
        address = listening(service)
        statuses = [ask(address, "GET", "/db-test-leak?collect=1").status for _ in range(LEAKS)]
        assert statuses == [200] * LEAKS
        assert [ask(address, "GET", path).status for path in ("/livez", "/readyz", "/db-test")] == [200] * 3
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(BOUND) == 0
    leaks = [event for event in service.transcript if event["event"] == "leak"]
    assert len(leaks) == LEAKS
    assert {report["outcome"] for report in service.reports} == {"drained"}
    postgres.await_nobody()


@all_servers
def test_a_transcript_that_nobody_reads_keeps_no_request_and_no_exit(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "transcript"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    service = services.start(backend, "--transcript", str(path))
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    for _ in range(LEAKS):
        assert service.get("/db-test").status == 200
    service.send_signal()
    assert service.ended().code == 0
    os.close(writer)
    os.close(reader)


@all_servers
def test_a_transcript_into_a_pipe_without_a_reader_is_refused_in_one_line(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    path = tmp_path / "transcript"
    os.mkfifo(path)
    service = services.begin(backend, "--transcript", str(path))
    assert service.ended().code == 1
    [line] = service.complaints
    assert line == f"cannot write the transcript {path}: nobody reads this named pipe"
