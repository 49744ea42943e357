"""Requests that are in flight for exactly as long as a test wants them to be."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import psycopg

from tests.harness.http import Answer, Connection
from tests.harness.postgres import Postgres
from tests.harness.service import Service
from tests.harness.waiting import eventually

_SHARED = 12  # requests of which one worker may have none by chance: the kernel gives them to who is awake first


@dataclass(frozen=True)
class Order:
    """One that is to be stored."""

    id: str
    body: bytes


class Taken:
    """Ids that a transaction of ours has stored orders by, until we roll it back: who stores one of them waits."""

    def __init__(self, url: str) -> None:
        self._blocker = psycopg.connect(url, application_name="pooldrain tests")

    def order(self) -> Order:
        """Another order whose id is taken."""
        identity = f"held-{uuid.uuid4().hex[:12]}"
        self._blocker.execute("INSERT INTO orders (id, item, quantity) VALUES (%s, 'x', 1)", (identity,))
        return Order(identity, b'{"id": "%s", "item": "x"}' % identity.encode())

    def release(self) -> float:
        """Let them go on, if they still wait; the instant."""
        at = time.monotonic()
        self._blocker.close()
        return at


class InFlight:
    """Orders that wait in the database, until they are released.

    At least `number` of them, and at least one in each worker; `ids` are theirs, and their requests'.
    """

    def __init__(self, postgres: Postgres, service: Service, number: int = 1) -> None:
        self.connections: list[Connection] = []
        self.ids: list[str] = []
        self._service = service
        self._taken = Taken(service.url)
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
            order = self._taken.order()
            asked = self._service.connect().ask("POST", "/orders", order.body, headers=[("X-Request-ID", order.id)])
            self.connections.append(asked)
            self.ids.append(order.id)

    def release(self) -> float:
        """Let them go on, if they still wait; the instant."""
        return self._taken.release()

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
