"""Leaving fast, with the right code, after everything that has to happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import atexit, logging, os, signal, sys, threading, time\n"
        "from pooldrain import ConfigurationError, StartupError\n"
        "from pooldrain.runtime.process.exit import fast_exit, run_cli\n"
        "from pooldrain.runtime.output.logging import configure_logging\n" + code
    )
    # Buffered, as a service's stdout is, whatever the tests themselves run with.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)


@pytest.mark.parametrize("code", [0, 3, 143])
def test_the_exit_code_is_the_one_asked_for(code: int) -> None:
    assert run(f"fast_exit({code})").returncode == code


def test_what_was_written_and_registered_is_done_first() -> None:
    done = run("""
configure_logging("console", "info")
atexit.register(lambda: logging.getLogger("pooldrain").info("registered first, run last"))
atexit.register(lambda: print("at exit"))
sys.stdout.write("unflushed ")
fast_exit(0)
""")
    assert done.stdout == "unflushed at exit\n"
    assert "registered first, run last" in done.stderr


def test_a_callback_that_fails_is_logged_and_stops_nothing() -> None:
    done = run("""
configure_logging("console", "info")
def careless():
    raise RuntimeError("no such file")
atexit.register(lambda: print("still run"))
atexit.register(careless)
atexit.register(sys.exit, 9)
fast_exit(5)
""")
    assert done.returncode == 5
    assert done.stdout == "still run\n"
    assert "ERROR error in an atexit callback: RuntimeError('no such file') in careless (<string>:" in done.stderr
    assert "ERROR error in an atexit callback: SystemExit(9)\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_threads_that_would_keep_the_process_do_not() -> None:
    before = time.monotonic()
    assert run("threading.Thread(target=time.sleep, args=(25,)).start()\nfast_exit(0)").returncode == 0
    assert time.monotonic() - before < 20


def test_streams_that_are_closed_or_broken_do_not_change_the_code() -> None:
    assert run("sys.stdout.close()\nsys.stderr = None\nfast_exit(4)").returncode == 4
    broken = "reader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 1)\nprint('lost')\nfast_exit(4)"
    done = run(broken)
    assert (done.returncode, done.stderr) == (4, "")


@pytest.mark.parametrize(
    ("raised", "code"), [('ConfigurationError("--bind is wrong")', 2), ('StartupError("port in use\\n  hint")', 1)]
)
def test_an_expected_error_is_one_line(raised: str, code: int) -> None:
    done = run(f"def main():\n    raise {raised}\nrun_cli('pooldrain-sync', main)")
    message = {2: "--bind is wrong", 1: "port in use hint"}[code]
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"pooldrain-sync: error: {message}\n")


def test_an_expected_error_is_a_json_line_where_the_log_is_json() -> None:
    done = run("""
def main():
    configure_logging("json", "info")
    raise StartupError("port in use")
run_cli("pooldrain-sync", main)
""")
    line = json.loads(done.stderr)
    assert (done.returncode, line["level"], line["event"], line["message"]) == (1, "error", "error", "port in use")


@pytest.mark.parametrize(("stop", "code"), [("SystemExit(0)", 0), ("SystemExit", 0), ("SystemExit(7)", 7)])
def test_what_argparse_wants_is_done(stop: str, code: int) -> None:
    done = run(f"def main():\n    raise {stop}\nrun_cli('pooldrain-sync', main)")
    assert (done.returncode, done.stderr) == (code, "")


def test_the_code_main_returns_is_the_code_of_the_process() -> None:
    assert run("run_cli('pooldrain-sync', lambda: 3)").returncode == 3


def test_an_interrupted_start_shows_no_traceback() -> None:
    done = run("run_cli('pooldrain-sync', lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(25))")
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_an_error_nobody_expected_shows_where_it_came_from() -> None:
    done = run("configure_logging('console', 'info')\nrun_cli('pooldrain-sync', lambda: 1 // 0)")
    assert done.returncode == 1
    assert "pooldrain-sync: unexpected error" in done.stderr
    assert "ZeroDivisionError" in done.stderr
