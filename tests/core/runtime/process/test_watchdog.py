"""The last resort: a process that hangs is ended when its grace period is over, and tells where it hung."""

from __future__ import annotations

import subprocess
import sys
import time

from pooldrain.policy import MASTER_MARGIN
from pooldrain.runtime.master.master import REFUSING
from pooldrain.runtime.process.watchdog import ALONE, END_MARGIN, MASTER, WORKER

GRACE = 0.3
SLOW_START = 5.0  # seconds for a Python to start, on a busy machine


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import atexit, logging, os, signal, sys, threading, time\n"
        "from pooldrain.runtime.process.exit import fast_exit\n"
        "from pooldrain.runtime.output.logging import configure_logging\n"
        "from pooldrain.runtime.process.watchdog import Watchdog\n"
        'configure_logging("console", "info")\n'
        f"watchdog = Watchdog({GRACE})\n" + code
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


HANG = """
def hang():
    time.sleep(60)
"""


def test_a_process_that_hangs_is_ended_and_tells_where_it_hung() -> None:
    started = time.monotonic()
    done = run(HANG + "signal.signal(signal.SIGTERM, lambda *_: watchdog.arm())\nos.kill(os.getpid(), 15)\nhang()")
    # Nothing is served yet: the servers set the exit code of a failed dispose once they do.
    assert done.returncode == 1
    assert GRACE + ALONE.margin < time.monotonic() - started < GRACE + END_MARGIN + SLOW_START
    assert "not ended within the grace period of 0.3 s: leaving at once, from " in done.stderr
    assert " in hang < " in done.stderr


def test_what_hangs_at_the_exit_does_not_change_the_exit_code() -> None:
    done = run(HANG + "watchdog.arm()\nwatchdog.exit_code = 3\natexit.register(hang)\nfast_exit(3)")
    assert done.returncode == 3


def test_a_log_that_hangs_keeps_nobody() -> None:
    done = run(HANG + "logging.getLogger().handlers[0].acquire()\nwatchdog.arm()\nhang()")
    assert done.returncode == 1
    assert not done.stderr


def test_nothing_happens_before_the_shutdown_begins_or_when_it_ends_in_time() -> None:
    done = run(f"time.sleep({GRACE + END_MARGIN})\nwatchdog.arm()\nfast_exit(0)")
    assert (done.returncode, done.stderr) == (0, "")


def test_each_process_ends_before_who_would_kill_it_and_all_of_them_within_the_margin() -> None:
    worker, alone, master = (patience.margin + patience.last_words for patience in (WORKER, ALONE, MASTER))
    assert worker < MASTER_MARGIN < MASTER_MARGIN + REFUSING < MASTER.margin
    assert alone <= END_MARGIN
    assert master <= END_MARGIN
