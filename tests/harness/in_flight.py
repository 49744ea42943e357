"""Requests that are in flight for exactly as long as a test wants them to be."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager

import psutil
import psycopg

from tests.harness.http import Answer, Connection
from tests.harness.postgres import Postgres
from tests.harness.service import Service
from tests.harness.waiting import eventually

_SHARED = 12  # requests of which one worker may have none by chance: the kernel gives them to who is awake first


class InFlight:
    """Orders that wait in the database: their ids are taken by a transaction of ours, until we roll it back.

    At least `number` of them, and at least one in each worker.
    """

    def __init__(self, postgres: Postgres, service: Service, number: int = 1) -> None:
        self.connections: list[Connection] = []
        self._service = service
        self._blocker = psycopg.connect(service.url, application_name="pooldrain tests")
        try:
            missing, busy = number, set[int]()
            while missing:
                with _stopped(busy if len(self.connections) > _SHARED else set()):
                    self._put(missing)
                    busy = postgres.await_blocked(service.pids, len(self.connections))
                missing = 2 if busy != set(service.pids) else 0
        except BaseException:
            self.release()
            raise

    def __len__(self) -> int:
        return len(self.connections)

    def _put(self, number: int) -> None:
        for _ in range(number):
            order = f"held-{uuid.uuid4().hex[:12]}"
            self._blocker.execute("INSERT INTO orders (id, item, quantity) VALUES (%s, 'x', 1)", (order,))
            body = b'{"id": "%s", "item": "x"}' % order.encode()
            self.connections.append(self._service.connect().ask("POST", "/orders", body))

    def release(self) -> float:
        """Let them go on, if they still wait; the instant."""
        at = time.monotonic()
        self._blocker.close()
        return at

    def answers(self) -> list[Answer]:
        """Their answers, in order."""
        return [connection.answer() for connection in self.connections]


@contextmanager
def _stopped(pids: set[int]) -> Generator[None]:
    """These processes take nothing meanwhile."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids), "they stop")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
