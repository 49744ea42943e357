"""The threaded shell's runner: performs the steps of the shutdown, and waits with a condition variable.

The order of the steps is not known here (`pooldrain.shutdown` knows it).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from pooldrain.errors import describe_error
from pooldrain.gate import InFlightRequest, Reservation
from pooldrain.policy import ShutdownPolicy
from pooldrain.service import Service
from pooldrain.shutdown import (
    Announce,
    AnyStep,
    Cancel,
    Close,
    Dispose,
    Done,
    Drain,
    Failed,
    Phase,
    Reclaim,
    ShutdownReport,
    Stop,
    Tally,
    shutdown_sequence,
)
from pooldrain.transcript import StepFailed
from pooldrain_sync.pool import PoolManager


class Server(Protocol):
    """What a runner needs of a server."""

    def drain(self) -> None:
        """From now on requests are refused: keep them off the busy threads."""

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""


class Runner(Service):
    """One service and its shutdown."""

    def __init__(
        self,
        pool: PoolManager,
        policy: ShutdownPolicy,
        *,
        lock: threading.RLock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pool, policy, lock=lock, clock=clock)
        self.pool = pool
        self._condition = threading.Condition(lock)

    def changed(self) -> None:
        """Wake the step that waits."""
        self._condition.notify_all()

    def open(self, prepare: Callable[[], None] | None = None) -> None:
        """Open the pool, `prepare` the application; then the service is ready. Raises StartupError."""
        self.enter(Phase.STARTING)
        self.pool.open()
        if prepare is not None:
            prepare()
        if self.pool.ledger.policy.leak_age is not None:
            threading.Thread(target=self._watch_overdue, name="pooldrain-overdue", daemon=True).start()
        self.enter(Phase.READY)

    def reserve(self) -> Reservation | None:
        """Promise an answer to a request that waits for a thread; None once requests are refused."""
        with self._lock:
            return self.gate.reserve()

    def release(self, reservation: Reservation) -> None:
        """Take the promise back, if no request claimed it."""
        with self._lock:
            self.gate.release(reservation)
            self.tell_if_idle()

    def shut_down(self, server: Server) -> ShutdownReport:
        """Perform the shutdown, start to end, and return its report. Runs in a thread beside the server's loop."""
        sequence = shutdown_sequence(self.policy, self.signals[0], self.clock())
        try:
            step = next(sequence)
            while True:
                self.enter(step.phase)
                result = self._perform_safely(step, server)
                try:
                    step = sequence.send(result)
                except StopIteration as stop:
                    report: ShutdownReport = stop.value
                    self.completed(report)
                    return report
        finally:
            if self.phase is not Phase.CLOSED:  # the runner itself broke: the pool is closed all the same
                self.pool.dispose(self.clock() + self.policy.dispose_timeout)

    def _perform_safely(self, step: AnyStep, server: Server) -> Done | Tally:
        """Perform a step; one that raises is told, and the sequence goes on."""
        try:
            return self._perform(step, server)
        except Exception as error:  # noqa: BLE001 - whatever it is, the pool still has to be closed
            self.events.emit(StepFailed(step.phase.value, describe_error(error)))
            return Failed(self.clock(), error=describe_error(error))

    def _perform(self, step: AnyStep, server: Server) -> Done | Tally:
        match step:
            case Announce():
                self._wait(lambda: self.hurried, step.deadline)
                return Done(self.clock(), hurried=self.hurried)
            case Drain():
                return self._drain(step, server)
            case Cancel():
                return self._cancel(step)
            case Reclaim():
                return self.pool.reclaim(step.deadline)
            case Dispose():
                started, closed = self.clock(), self.pool.tracker.closed
                return self.disposed(self.pool.dispose(step.deadline), started, closed)
            case Stop():
                server.stop(step)
                return Done(self.clock())
            case Close():
                return self.tally()

    def _drain(self, step: Drain, server: Server) -> Done:
        started, refused = self.close_gate()
        server.drain()
        self._wait(lambda: self.gate.idle or self.hurried, step.deadline)
        return self.drained(started, refused)

    def _cancel(self, step: Cancel) -> Done:
        if not step.needed:
            return Done(self.clock())
        requests: list[InFlightRequest] = self.cancel_all()
        self.pool.cancel(requests, step.deadline - self.clock())
        self._wait(lambda: self.gate.idle, step.deadline)
        return self.give_up()

    def _wait(self, happened: Callable[[], bool], deadline: float) -> None:
        """Wait until it happened or the deadline (monotonic seconds) passes."""
        with self._lock:
            self._condition.wait_for(happened, max(0.0, deadline - self.clock()))

    def _watch_overdue(self) -> None:
        """Report checkouts that become overdue; sleeps exactly until the next one can."""
        while self.phase is not Phase.CLOSED:
            time.sleep(self.pool.report_overdue())
