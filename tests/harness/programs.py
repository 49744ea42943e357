"""Programs that tests run in a process of their own, and pieces of them."""

from __future__ import annotations

import os
import subprocess
import sys


def printed_by(program: str, *arguments: str, **environment: str) -> str:
    """What a program prints that ends well."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


# Signals the process by a thread of it, once its main thread sleeps: which does not interrupt what that waits in.
SIGNAL_ONCE_IT_WAITS = """
import signal, threading, time
main = f"/proc/self/task/{threading.get_native_id()}/stat"

def signal_once_it_waits():
    asleep = 0
    while asleep < 50:  # looks in a row
        with open(main) as stat:
            asleep = asleep + 1 if stat.read().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=signal_once_it_waits).start()
"""
