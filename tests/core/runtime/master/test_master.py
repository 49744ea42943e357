"""The master's wait for signals."""

from __future__ import annotations

import subprocess
import sys

# Python tells of signals in the main thread alone, between two instructions. One that the kernel hands to another
# thread does not interrupt what the main thread waits in: just as one that comes a moment before it begins to wait.
PROGRAM = """
import os, queue, signal, threading, time
from types import SimpleNamespace
from pooldrain.runtime.master.master import Master
from pooldrain.runtime.process.signals import SignalWatch

master = Master.__new__(Master)
master.SIG_QUEUE = queue.SimpleQueue()
master.app = SimpleNamespace(ground=SimpleNamespace(watch=SignalWatch()))
master.log = SimpleNamespace(close_on_exec=lambda: None)
master.init_signals()
main = f"/proc/self/task/{threading.get_native_id()}/stat"

def signal_once_it_waits():
    asleep = 0
    while asleep < 50:  # looks in a row
        with open(main) as stat:
            asleep = asleep + 1 if stat.read().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=signal_once_it_waits).start()
started = time.monotonic()
print([int(number) for number in master._signals_within(20)], time.monotonic() - started < 10)
"""


def test_a_signal_that_does_not_interrupt_the_wait_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[15] True\n", done.stderr
