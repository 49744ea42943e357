"""The threaded shell's runner: performs the steps of the shutdown, and waits with a condition variable.

The order of the steps is not known here (`pooldrain.shutdown` knows it).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from sqlalchemy.exc import DBAPIError

from pooldrain.errors import StartupError, describe_error
from pooldrain.gate import Reservation
from pooldrain.in_flight import Checkout, InFlightRequest
from pooldrain.lifecycle import Service
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
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
    Retired,
    ShutdownReport,
    Stop,
    Tally,
    shutdown_sequence,
)
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.errors import is_temporary, startup_problem
from pooldrain.sqla.tracked_pool import cut_off, end_in_transit
from pooldrain.transcript import StepFailed
from pooldrain_sync.bounded import run_all
from pooldrain_sync.pool import Pool


class Server(Protocol):
    """What a runner needs of a server."""

    def drain(self) -> None:
        """From now on requests are refused: keep them off the busy threads."""

    def cancel(self) -> None:
        """From now on no request waits for its client any more, or for a thread."""

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""


class Retiring(Protocol):
    """What a runner needs of a worker that ends while its service goes on."""

    @property
    def called_off(self) -> bool:
        """Whether the whole service ends by now."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it has clients."""
        ...

    def retire(self) -> None:
        """Leave new clients to the other workers; close, after a while, the connections on which nothing comes."""

    def rejoin(self) -> None:
        """Take new clients again: the whole service ends, and they are to be told."""


class Runner(Service):
    """One service and its shutdown."""

    def __init__(
        self,
        pool: Pool,
        policy: ShutdownPolicy,
        *,
        lock: threading.RLock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pools = [pool]
        super().__init__(self.pools, policy, lock=lock, clock=clock)
        self.pool = pool  # the main one
        self._pools_lock = lock
        self._hooks: list[Callable[[], None]] = []
        self._condition = threading.Condition(lock)
        self._retiring: Retiring | None = None

    def changed(self) -> None:
        """Wake the step that waits."""
        self._condition.notify_all()

    def look_again(self) -> None:
        """The same without the lock: a retiring worker's clients have gone, or the whole service ends."""
        with self._lock:
            self.changed()

    def add_pool(self, url: DatabaseUrl, pool: PoolPolicy, leaks: LeakPolicy) -> Pool:
        """Another engine, with a pool that opens and stops with the main one. Before `open`."""
        added = Pool(url, pool, leaks, self.events, service=self.pool.service, lock=self._pools_lock, clock=self.clock)
        self.pools.append(added)
        return added

    def on_open(self, hook: Callable[[], None]) -> None:
        """Have `hook` called when the pools are open, before the service is ready."""
        self._hooks.append(hook)

    def open(self) -> None:
        """Open the pools, prepare the application; then the service is ready. Raises StartupError."""
        self.enter(Phase.STARTING)
        for pool in self.pools:
            pool.open()
        try:
            for hook in self._hooks:
                hook()
        except DBAPIError as error:
            if is_temporary(error):  # not the application's fault: no traceback
                raise StartupError(startup_problem(self.pool.url, error, "cannot prepare")) from error
            raise
        threading.Thread(target=self._watch, name="pooldrain-watch", daemon=True).start()
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

    def shut_down(self, server: Server, retiring: Retiring | None = None) -> ShutdownReport:
        """Perform the shutdown, start to end, and return its report. Runs in a thread beside the server's loop.

        `retiring`: the worker, if it is one of several processes and may be the only one that ends.
        """
        self._retiring = retiring
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
                self._dispose(self.clock() + self.policy.dispose_timeout)

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
                return self._announce(step)
            case Drain():
                return self._drain(step, server)
            case Cancel():
                return self._cancel(step, server)
            case Reclaim():
                return self._reclaim(step.deadline)
            case Dispose():
                return self._dispose(step.deadline)
            case Stop():
                server.stop(step)
                return Done(self.clock())
            case Close():
                return self.tally()

    def _announce(self, step: Announce) -> Done:
        worker, deadline = self._retiring, step.deadline
        if worker is not None and not worker.called_off:
            self._retire(worker)
            if not worker.called_off:
                return Retired(self.clock(), timed_out=worker.connected, hurried=self.hurried)
            worker.rejoin()
            deadline = self.clock() + self.policy.announce_period
        self._wait(lambda: self.hurried, deadline)
        return Done(self.clock(), hurried=self.hurried)

    def _retire(self, worker: Retiring) -> None:
        """Serve the clients that a worker has, until none is left or all of the drain's time has passed."""
        deadline = self.clock() + self.policy.drain_timeout
        with self._lock:
            self.gate.keep_alive = False
        worker.retire()
        self._wait(lambda: self.hurried or worker.called_off or not worker.connected, deadline)

    def _drain(self, step: Drain, server: Server) -> Done:
        started, refused = self.close_gate()
        server.drain()
        self._wait(lambda: self.gate.idle or self.hurried, step.deadline)
        return self.drained(started, refused)

    def _cancel(self, step: Cancel, server: Server) -> Done:
        if not step.needed:
            return Done(self.clock())
        requests: list[InFlightRequest] = self.cancel_all()
        try:
            server.cancel()
            patience = (self.clock() + step.deadline) / 2
            works = [work for pool in self.pools for work in pool.cancellations(requests, patience - self.clock())]
            run_all(works, patience, self.clock, name="pooldrain-cancel")
            self._wait(lambda: self.gate.idle, patience)
            for pool in self.pools:
                end_in_transit(pool)
                cut_off(pool, requests)
            self._wait(lambda: self.gate.idle, step.deadline)
        finally:  # also if a cancellation raised: nobody goes uncounted
            done = self.give_up()
        return done

    def _reclaim(self, deadline: float) -> Done:
        self.close_pools()
        for pool in self.pools:
            end_in_transit(pool)
        works = [
            partial(self._reclaim_from, pool, checkouts, deadline)
            for pool, checkouts in zip(self.pools, self.tell_outstanding(), strict=True)
        ]
        finished = run_all(works, deadline, self.clock, name="pooldrain-reclaim")
        return Done(self.clock(), timed_out=not finished)

    def _reclaim_from(self, pool: Pool, checkouts: list[Checkout], deadline: float) -> None:
        for checkout in checkouts:
            if self.clock() < deadline and pool.reclaim(checkout):
                self.reclaimed(checkout)

    def _dispose(self, deadline: float) -> Done:
        started, closed = self.clock(), self.connections_closed
        self.close_pools()
        works = [partial(pool.dispose, deadline) for pool in self.pools]
        finished = run_all(works, deadline, self.clock, name="pooldrain-dispose")
        return self.disposed(Done(self.clock(), timed_out=not finished), started, closed)

    def _wait(self, happened: Callable[[], bool], deadline: float) -> None:
        """Wait until it happened or the deadline (monotonic seconds) passes."""
        with self._lock:
            self._condition.wait_for(happened, max(0.0, deadline - self.clock()))

    def _watch(self) -> None:
        """Report what time alone makes a leak. A look that fails is told, and the next one comes all the same."""
        while self.phase is not Phase.CLOSED:
            time.sleep(self.look_at_pools())
