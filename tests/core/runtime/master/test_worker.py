"""How long a worker that was told to end goes on as before."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from pooldrain.runtime.master.worker import ManagedWorker, ServiceFlags, WorkerFlags
from pooldrain.runtime.process.signals import SignalWatch


class Worker(ManagedWorker):
    """One without a server, whose master is this process's parent."""

    def __init__(self) -> None:
        self.app: Any = SimpleNamespace(flags=ServiceFlags())
        self.flags = WorkerFlags()
        self.watch = SignalWatch(managed=True)
        self.ppid = os.getppid()
        self._signalled_at = None
        self._told = 0

    def _wake_master(self) -> None:
        pass


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_worker_that_nobody_told_to_end_goes_on(worker: Worker) -> None:
    assert worker.patience(100.0) == float("inf")
    assert worker.due_signals(100.0) == []


def test_its_master_has_a_fifth_of_a_second_to_say_that_all_end_and_its_successor_fifteen_seconds_to_come(
    worker: Worker,
) -> None:
    worker.watch.handle(signal.SIGTERM)
    assert worker.patience(100.0) == pytest.approx(0.2)
    assert not worker.flags.leaving
    assert worker.patience(100.2) == pytest.approx(14.8)
    assert worker.flags.leaving, "it asks for a successor"
    assert worker.due_signals(114.9) == []
    assert worker.patience(115.0) == 0.0
    assert worker.due_signals(115.0) == ["SIGTERM"]
    assert worker.due_signals(116.0) == [], "each once"


@pytest.mark.parametrize("said", ["released", "stopping", "hurried"])
def test_a_word_of_its_master_ends_the_waiting(worker: Worker, said: str) -> None:
    worker.watch.handle(signal.SIGTERM)
    worker.patience(100.0)
    worker.flags.released = said == "released"
    worker.app.flags.stopping = said != "released"
    worker.app.flags.hurried = said == "hurried"
    assert worker.due_signals(100.1) == (["SIGTERM", "SIGQUIT"] if said == "hurried" else ["SIGTERM"])


def test_an_orphan_waits_for_nobody(worker: Worker) -> None:
    worker.ppid = 0
    looks: list[int] = []
    vars(worker)["look_again"] = lambda: looks.append(1)
    worker.mind_master()
    assert worker.due_signals(100.0) == ["SIGTERM"]
    worker.mind_master()
    assert worker.watch.received == ["SIGTERM"], "once"
    assert looks == [1, 1]
