"""`pooldrain top`: what the live page shows, in a terminal; and what goes wrong, in one line."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from pooldrain_compare.harness.processes import look_inside
from pooldrain_compare.harness.servers import UVICORN, WAITRESS, Backend
from tests.harness.service import Launcher
from tests.harness.waiting import BOUND, eventually

TOKEN = "a-token-that-nobody-guesses"
COMMAND = (sys.executable, "-c", "from pooldrain.runtime.tool import main; main()", "top")


def top(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env={**os.environ, "COLUMNS": "300", **environment},
        check=False,
    )


@pytest.mark.parametrize("backend", [WAITRESS, UVICORN], ids=lambda backend: backend.name)
def test_it_names_a_leak_and_who_is_in_flight(services: Launcher, backend: Backend) -> None:
    service = services.start(backend, "--admin", "127.0.0.1:0")
    assert service.get("/db-test-leak").status == 200
    eventually(lambda: look_inside(service.process.admin)["totals"]["finished"] == 1, "it is over, not only answered")
    shown = top(service.process.admin, "--once")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"{backend.service}  ready  1 workers  0 in flight  1 finished" in shown.stdout
    assert "GET /db-test-leak, leaked (unreturned), in a transaction" in shown.stdout
    assert "SELECT 1 AS test" in shown.stdout
    assert "1 used, 9 idle of 30, 0 waiting" in shown.stdout


def test_in_a_terminal_it_goes_on_until_it_is_interrupted(services: Launcher) -> None:
    service = services.start(WAITRESS, "--admin", "127.0.0.1:0")
    master, slave = pty.openpty()
    running = subprocess.Popen([*COMMAND, service.process.admin], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        seen, deadline = b"", time.monotonic() + BOUND
        while seen.count(b"pooldrain-sync") < 3 and time.monotonic() < deadline:
            if select.select([master], [], [], 1.0)[0]:
                seen += os.read(master, 65536)
        assert seen.count(b"pooldrain-sync") >= 3, "it shows the service again and again"
        running.terminate()
        while select.select([master], [], [], 1.0)[0]:
            try:
                if not os.read(master, 65536):
                    break
            except OSError:  # its end
                break
        assert running.wait(BOUND) == 0
    finally:
        running.kill()
        running.wait()
        os.close(master)


def test_a_service_that_is_not_there_is_told_with_exit_code_1() -> None:
    shown = top("http://127.0.0.1:1", "--once")
    assert shown.returncode == 1
    assert shown.stdout.startswith("http://127.0.0.1:1 does not answer: ")


def test_without_the_token_it_says_how_to_give_it(services: Launcher) -> None:
    service = services.prepare(WAITRESS, "--admin", "127.0.0.1:0", "--admin-token", TOKEN)
    services.enter(service)
    refused = top(service.process.admin, "--once")
    assert refused.returncode == 1
    assert "answers 401; give its token, as http://:TOKEN@127.0.0.1:" in refused.stdout
    assert "POOLDRAIN_ADMIN_TOKEN" in refused.stdout
    assert top(service.process.admin, "--once", POOLDRAIN_ADMIN_TOKEN=TOKEN).returncode == 0
    with_token = service.process.admin.replace("//", f"//:{TOKEN}@")
    shown = top(with_token, "--once")
    assert shown.returncode == 0
    assert TOKEN not in shown.stdout


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "unix:/run/a.sock"])
def test_what_is_no_url_is_told_in_one_line(url: str) -> None:
    refused = top(url)
    assert refused.returncode == 2
    assert refused.stderr == "pooldrain: error: top needs the admin listener's URL, as http://127.0.0.1:8001\n"
