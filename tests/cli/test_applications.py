"""A user's application at the command line: what is wrong with it is told in one line, or by its own traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pooldrain_compare.harness.processes import clean_environment, free_port
from tests.harness.http import ask
from tests.harness.waiting import BOUND, eventually

MODULES = ("pooldrain_sync", "pooldrain_async")
both = pytest.mark.parametrize("module", MODULES)

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "1")])
    return [b"%s"]
"""
ASGI = "async def app(scope, receive, send):\n    ...\n"
TWINS = """
from sqlalchemy import create_engine
kept = [create_engine("sqlite:///a.db", logging_name="shop") for _ in range(2)]
app = lambda *arguments: None
"""


def run(module: str, *options: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A command that is to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", module, "--bind", "127.0.0.1:0", *options],
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    for name, source in {
        "shop_wsgi": WSGI % "1",
        "shop_asgi": ASGI,
        "twins": TWINS,
        "broken": "import os\n\n1 / 0\n",
        "number": "app = 42\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
    return tmp_path


@both
@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("nowhere:app", "there is no module nowhere, neither in "),
        ("shop_wsgi:apq", "has no attribute apq; did you mean app?"),
        ("number:app", "is an int, and no application"),
        ("twins:app", "has two engines that are called shop; give each its own logging_name"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line_with_exit_code_2(
    place: Path, module: str, app: str, told: str
) -> None:
    ended = run(module, app, directory=place)
    lines = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    assert told in lines[0]


@pytest.mark.parametrize(
    ("module", "app", "right"),
    [("pooldrain_sync", "shop_asgi:app", "pooldrain-async"), ("pooldrain_async", "shop_wsgi:app", "pooldrain-sync")],
)
def test_the_other_colours_application_is_sent_to_the_other_command(
    place: Path, module: str, app: str, right: str
) -> None:
    ended = run(module, app, directory=place)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"serve it with {right} {app}" in ended.stderr


@both
@pytest.mark.parametrize("workers", [(), ("--max-requests", "1000")], ids=["alone", "under a master"])
def test_a_module_that_fails_shows_its_own_traceback_with_exit_code_1(
    place: Path, module: str, workers: tuple[str, ...]
) -> None:
    ended = run(module, "broken:app", *workers, directory=place)
    assert ended.returncode == 1
    first, *_, last = ended.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "broken.py" in ended.stderr.splitlines()[1]
    assert last.endswith("error: cannot import broken: ZeroDivisionError: division by zero")
    assert "pooldrain" not in ended.stderr.partition(last)[0]


@both
def test_checking_serves_nothing_and_says_so(place: Path, module: str) -> None:
    app = "shop_wsgi:app" if module == "pooldrain_sync" else "shop_asgi:app"
    ended = run(module, app, "--check-config", directory=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{module.replace('_', '-')}: the configuration is in order\n"
    assert run(module, "nowhere:app", "--check-config", directory=place).returncode == 2


@both
def test_the_configuration_is_printed_with_its_origins(place: Path, module: str) -> None:
    (place / "pyproject.toml").write_text("[tool.pooldrain]\ndrain-timeout = 7\n")
    ended = run(module, "--print-config", directory=place)
    assert ended.returncode == 0
    assert "# pyproject.toml: tool.pooldrain.drain-timeout" in ended.stdout
    assert not (place / ".pooldrain").exists(), "nothing is started"


@contextmanager
def serving(module: str, *options: str, directory: Path) -> Generator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """A command that serves on a port of its own, ended whatever happens."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--bind", f"127.0.0.1:{port}", *options],
        cwd=directory,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, ("127.0.0.1", port)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=BOUND)


def body(address: tuple[str, int]) -> bytes:
    try:
        return ask(address, "GET", "/").body
    except OSError:
        return b""


def test_reloading_drains_and_serves_what_was_changed(place: Path) -> None:
    with serving("pooldrain_sync", "shop_wsgi:app", "--reload", directory=place) as (process, address):
        eventually(lambda: body(address) == b"1", "it serves what was written first")
        # Of another length each: Python tells its compiled files by that, and by the second of the source.
        (place / "shop_wsgi.py").write_text(WSGI % "2" + "# two\n", "utf-8")
        eventually(lambda: body(address) == b"2", "it serves what was written then")
        (place / "shop_wsgi.py").write_text("1 / 0\n", "utf-8")
        eventually(lambda: body(address) == b"", "what fails is not served")
        (place / "shop_wsgi.py").write_text(WSGI % "3" + "# three\n", "utf-8")
        eventually(lambda: body(address) == b"3", "and what is mended is")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(BOUND) == 0


def test_an_application_of_its_own_needs_no_database(place: Path) -> None:
    options = ("--pool-size", "3", "--report", "report.json")
    with serving("pooldrain_sync", "shop_wsgi:app", *options, directory=place) as (process, address):
        eventually(lambda: body(address) == b"1", "it serves")
        os.kill(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=BOUND)
        assert process.returncode == 0
    assert "no effect: --pool-size; shop_wsgi:app makes its engines itself" in said
    assert not (place / ".pooldrain").exists()
    assert '"opened": 0' in (place / "report.json").read_text("utf-8")
