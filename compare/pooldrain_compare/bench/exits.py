"""How soon a process is gone by how much it has when the signal comes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from pooldrain_compare.bench.asking import END_TIMEOUT, ask
from pooldrain_compare.bench.contenders import CONTENDERS, OURS, Ours
from pooldrain_compare.bench.recorder import Bench, Point, rounds
from pooldrain_compare.harness.http import ResponseReader
from pooldrain_compare.harness.load import LoadClient, Mode, constant
from pooldrain_compare.harness.processes import ServerProcess

GROWTH = "SIGTERM"
CONNECTIONS, REQUESTS, LEAKS = "idle connections", "requests in flight", "leaks"
NOTHING = "/ping"
READY_TIMEOUT = 60.0
LOOK = 0.01  # seconds between two looks at the load


class Holding(Protocol):
    """Has a server hold so many of something, signals it, and waits; milliseconds until its process is gone."""

    def __call__(self, bench: Bench, contender: Ours, number: int) -> float:
        """Measure once."""
        raise NotImplementedError


def measure(
    bench: Bench, runs: int, sizes: Mapping[str, Sequence[int]], progress: Callable[[str, float], None]
) -> None:
    """Every server with every number of each."""
    steps = [(what, number, name) for what, numbers in sizes.items() for number in numbers for name in OURS]
    for done, (_, (what, number, name)) in enumerate(rounds(steps, runs)):
        progress(f"{number} {what}, {name}", done / runs / len(steps))
        contender = CONTENDERS[name]
        assert isinstance(contender, Ours), "only ours are measured"
        metric = "last answer to exit" if what == REQUESTS else "signal to exit"
        point = Point(f"{GROWTH}, {what}", name, metric, "ms", number, what)
        bench.recorder.add(point, _HOLDINGS[what](bench, contender, number))


def _idle(bench: Bench, contender: Ours, number: int) -> float:
    with contender.process(bench.url, bench.directory) as process, ExitStack() as clients:
        for _ in range(number):
            client = clients.enter_context(socket.create_connection(process.address, timeout=READY_TIMEOUT))
            client.sendall(f"GET {NOTHING} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            reader = ResponseReader()
            while not reader.feed(client.recv(65536)):
                pass
        return _end(process)


def _in_flight(bench: Bench, contender: Ours, number: int) -> float:
    with contender.process(bench.url, bench.directory) as process:
        load = LoadClient(process.address, constant(NOTHING), clients=number, modes=(Mode.KEEP_ALIVE,)).start()
        try:
            while load.answered < number and load.running:
                time.sleep(LOOK)
            signal_at = process.signal()
            ended = process.wait(END_TIMEOUT)
            last = load.join(END_TIMEOUT).last_answer or signal_at
        finally:
            load.stop()
        return max(0.0, ended.at - max(last, signal_at)) * 1000


def _leaking(bench: Bench, contender: Ours, number: int) -> float:
    options = ("--app", contender.app, "--pool-size", str(number), "--min-idle", "0")
    with contender.backend.process(bench.url, bench.directory, *options, observed=False) as process:
        for _ in range(number):
            ask(process.address, "/db-test-leak")
        return _end(process)


def _end(process: ServerProcess) -> float:
    signal_at = process.signal()
    return (process.wait(END_TIMEOUT).at - signal_at) * 1000


_HOLDINGS: dict[str, Holding] = {CONNECTIONS: _idle, REQUESTS: _in_flight, LEAKS: _leaking}
