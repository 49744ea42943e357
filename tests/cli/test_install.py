"""What is built can be uploaded, and runs where nothing else is installed than it asks for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from pooldrain_compare.harness.processes import clean_environment, free_port
from tests.harness.http import ask
from tests.harness.waiting import BOUND, eventually

ROOT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")

APP = """
from sqlalchemy import create_engine, text
engine = create_engine("sqlite:///shop.db")

def app(environ, start_response):
    with engine.connect() as connection:
        body = str(connection.execute(text("SELECT 6 * 7")).scalar()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def run(*command: str | Path, cwd: Path) -> str:
    ended = subprocess.run(
        command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel and a source distribution."""
    place = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", str(place), cwd=ROOT)
    return place


def test_what_is_built_can_be_uploaded(built: Path) -> None:
    files = sorted(built.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"] or [file.suffix for file in files] == [".gz", ".whl"]
    assert "FAILED" not in run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files), cwd=built)


def test_the_wheel_runs_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    """As `pip install pooldrain[sync]` would: everything that it needs, and nothing else."""
    [wheel] = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv" / "bin"
    run(bin_ / "python", *PIP, "install", f"{wheel}[sync]", cwd=tmp_path)
    assert run(bin_ / "pooldrain-sync", "--version", cwd=tmp_path).startswith("pooldrain-sync ")
    (tmp_path / "shop.py").write_text(APP, "utf-8")
    port = free_port()
    for server in ("gunicorn", "waitress"):
        process = subprocess.Popen(
            [bin_ / "pooldrain-sync", "shop:app", "--server", server, "--bind", f"127.0.0.1:{port}"],
            cwd=tmp_path,
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            eventually(lambda: answer(port) == b"42", "it serves")
            os.kill(process.pid, signal.SIGTERM)
            _, said = process.communicate(timeout=BOUND)
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert "1 idle connections closed" in said


def answer(port: int) -> bytes:
    try:
        return ask(("127.0.0.1", port), "GET", "/").body
    except OSError:
        return b""
