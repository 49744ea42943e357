"""How `--reload` ends the service that it has started."""

from __future__ import annotations

import subprocess
import sys

from pooldrain.exit_codes import ExitCode
from pooldrain.runtime.reload import end_service


def process(program: str) -> subprocess.Popen[bytes]:
    """A Python process which has said that its program runs."""
    started = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{program}"], stdout=subprocess.PIPE)
    assert started.stdout is not None
    with started.stdout as said:
        assert said.readline()
    return started


def test_a_service_that_is_ended_before_it_listens_for_signals_has_lost_nothing() -> None:
    assert end_service(process("import signal; signal.pause()")) == ExitCode.DRAINED


def test_a_service_that_a_signal_has_killed_is_told_as_a_shell_tells_it() -> None:
    killed = process("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    killed.wait()
    assert end_service(killed) == 128 + 9
