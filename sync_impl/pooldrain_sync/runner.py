"""The threaded shell's runner: performs the steps of the shutdown, and waits with a condition variable.

The order of the steps is not known here (`pooldrain.shutdown` knows it).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from sqlalchemy.exc import DBAPIError

from pooldrain import lifecycle
from pooldrain.gate import Reservation
from pooldrain.in_flight import Checkout
from pooldrain.ledger import hold_as
from pooldrain.lifecycle import TEARDOWN_HOLDER, never
from pooldrain.phases import Phase
from pooldrain.policy import ShutdownPolicy
from pooldrain.shutdown import (
    Announce,
    AnyStep,
    Cancel,
    Close,
    Dispose,
    Done,
    Drain,
    Reclaim,
    Retired,
    ShutdownReport,
    Stop,
    Tally,
    Teardown,
    shutdown_sequence,
)
from pooldrain.sqla.hooks import EventSink
from pooldrain_sync.bounded import run_all
from pooldrain_sync.pool import AdoptedPool, Pool


def _call(function: Callable[[], object]) -> None:
    """Call it; one of asyncio's runs on a loop of its own."""
    result = function()
    if inspect.isawaitable(result):
        asyncio.run(_awaited(result))


async def _awaited(result: Awaitable[object]) -> None:
    await result


class Server(lifecycle.Server, Protocol):
    """What a runner needs of a server."""

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""


class Retiring(lifecycle.Retiring, Protocol):
    """What a runner needs of a worker that ends while its service goes on."""

    def retire(self) -> None:
        """Leave new clients to the other workers; close, after a while, the connections on which nothing comes."""

    def rejoin(self) -> None:
        """Take new clients again: the whole service ends, and they are to be told."""


class Runner(lifecycle.Lifecycle[Pool, Callable[[], None]]):
    """One service and its shutdown."""

    make_pool = Pool
    adopt_pool = AdoptedPool

    def __init__(
        self,
        pool: Pool | None,
        policy: ShutdownPolicy,
        *,
        events: EventSink | None = None,
        lock: threading.RLock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__([] if pool is None else [pool], policy, events=events, lock=lock, clock=clock)
        self._condition = threading.Condition(lock)
        self._retiring: Retiring | None = None

    def changed_locked(self) -> None:
        """Wake the step that waits."""
        self._condition.notify_all()

    def open(self) -> None:
        """Open the pools, prepare the application; then the service is ready. Raises StartupError."""
        self.enter(Phase.STARTING)
        for pool in list(self.pools):
            pool.open()
        try:
            for hook in self._hooks:
                hook()
        except DBAPIError as error:
            if (told := self.cannot_prepare(error)) is not None:  # in one line, without a traceback
                raise told from error
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
            self.tell_if_idle_locked()

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
            return self.step_failed(step, error)

    def _perform(self, step: AnyStep, server: Server) -> Done | Tally:
        match step:
            case Announce():
                return self._announce(step)
            case Drain():
                return self._drain(step, server)
            case Cancel():
                return self._cancel(step, server)
            case Teardown():
                return self._teardown(step)
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
            self.end_streams_locked()
        worker.retire()
        self._wait(lambda: self.hurried or worker.called_off or not worker.connected, deadline)

    def _drain(self, step: Drain, server: Server) -> Done:
        started, refused = self.close_gate()
        server.drain()
        self._wait(lambda: self.hurried or self.quiet, step.deadline, self.next_look)
        return self.drained(started, refused)

    def _cancel(self, step: Cancel, server: Server) -> Done:
        if not step.needed:
            return Done(self.clock())
        requests, work = self.cancel_all()
        try:
            server.cancel()
            patience = (self.clock() + step.deadline) / 2
            left = patience - self.clock()
            works = [each for pool in self.pools for each in pool.cancellations(requests, work.get(pool, ()), left)]
            run_all(works, patience, self.clock, name="pooldrain-cancel")
            self._wait(lambda: self.unwound(work), patience)
            for pool in self.pools:
                pool.end_in_transit()
                pool.cut_off(requests, work.get(pool, ()))
            self._wait(lambda: self.unwound(work), step.deadline)
        finally:  # also if a cancellation raised: nobody goes uncounted
            done = self.give_up()
        return done

    def _teardown(self, step: Teardown) -> Done:
        started, ending = self.clock(), self.ending()

        def end() -> None:
            with hold_as(TEARDOWN_HOLDER):
                for function in ending:
                    try:
                        _call(function)
                    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the others run
                        ending.failed(error)

        if ending:
            run_all([end], step.deadline, self.clock, name="pooldrain-teardown")
        return self.torn_down(ending.abandon(), started)

    def _reclaim(self, deadline: float) -> Done:
        self.close_pools()
        for pool in self.pools:
            pool.end_in_transit()
        outstanding = self.tell_outstanding()
        works = [partial(self._reclaim_from, pool, checkouts, deadline) for pool, checkouts in outstanding]
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

    def _wait(self, happened: Callable[[], bool], deadline: float, look: Callable[[], float] = never) -> None:
        """Wait until it happened or the deadline (monotonic seconds) passes; look again after `look()` seconds."""
        with self._lock:
            while not happened() and (left := deadline - self.clock()) > 0:
                self._condition.wait(min(left, look()))

    def _watch(self) -> None:
        """Report what time alone makes a leak. A look that fails is told, and the next one comes all the same."""
        while self.phase is not Phase.CLOSED:
            time.sleep(self.look_at_pools())
