"""What ends beside ours: a process that has their size, and nothing to do."""

from __future__ import annotations

import sys

import psutil

from pooldrain_compare.bench.asking import END_TIMEOUT, ask
from pooldrain_compare.bench.contenders import CONTENDERS
from pooldrain_compare.bench.recorder import Bench
from pooldrain_compare.harness.processes import ServerProcess

# It grows to so many bytes of resident memory, says that it is ready as ours do, and is gone at a SIGTERM.
_BARE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
held = []
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
while resident() < int(sys.argv[1]):
    held.append(b"x" * 100_000)
print('{"event": "listening", "host": "127.0.0.1", "port": 0}', flush=True)
while True:
    signal.pause()
"""


def milliseconds(bench: Bench, name: str) -> float:
    """Milliseconds from SIGTERM to the end of a process that does nothing, as large as the largest of `name`'s."""
    with CONTENDERS[name].process(bench.url, bench.directory) as process:
        ask(process.address, "/db-test")
        leader = psutil.Process(process.pid)
        size = max(each.memory_info().rss for each in (leader, *leader.children(recursive=True)))
    bare = ServerProcess([sys.executable, "-c", _BARE, str(size)], log=bench.directory / "bare.log")
    with bare as process:
        return (-process.signal() + process.wait(END_TIMEOUT).at) * 1000
