"""The master's wait for signals."""

from __future__ import annotations

import subprocess
import sys

from tests.harness.programs import SIGNAL_ONCE_IT_WAITS

# Python tells of signals in the main thread alone, between two instructions. One that the kernel hands to another
# thread does not interrupt what the main thread waits in: just as one that comes a moment before it begins to wait.
PROGRAM = (
    """
import queue, time
from types import SimpleNamespace
from pooldrain.runtime.master.master import Master
from pooldrain.runtime.process.service_manager import ServiceManager
from pooldrain.runtime.process.signals import SignalWatch

master = Master.__new__(Master)
master.SIG_QUEUE = queue.SimpleQueue()
master.app = SimpleNamespace(ground=SimpleNamespace(watch=SignalWatch(), manager=ServiceManager()))
master.log = SimpleNamespace(close_on_exec=lambda: None)
master.init_signals()
"""
    + SIGNAL_ONCE_IT_WAITS
    + """
started = time.monotonic()
print([int(number) for number in master._signals_within(20)], time.monotonic() - started < 10)
"""
)


def test_a_signal_that_does_not_interrupt_the_wait_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[15] True\n", done.stderr
