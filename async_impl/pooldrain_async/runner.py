"""The asyncio shell's runner: performs the steps of the shutdown, and waits with an event.

The order of the steps is not known here (`pooldrain.shutdown` knows it).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from sqlalchemy.exc import DBAPIError

from pooldrain import lifecycle
from pooldrain.in_flight import Checkout, InFlightRequest
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
from pooldrain_async.bounded import in_thread, run_all
from pooldrain_async.pool import AdoptedPool, Pool


async def _call(function: Callable[[], object]) -> None:
    """Call it: one of asyncio's on the loop, a plain one in a thread, for it may block."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 - its method is asked for
        result = function()
    else:
        result = await in_thread(function)
    if inspect.isawaitable(result):
        await result


class Server(lifecycle.Server, Protocol):
    """What a runner needs of a server."""

    async def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""


class Retiring(lifecycle.Retiring, Protocol):
    """What a runner needs of a worker that ends while its service goes on."""

    async def retire(self) -> None:
        """Leave new clients to the other workers; close, after a while, the connections on which nothing comes."""

    async def rejoin(self) -> None:
        """Take new clients again: the whole service ends, and they are to be told."""


class Runner(lifecycle.Lifecycle[Pool, Callable[[], Awaitable[None]]]):
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
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # once it is open
        self._thread = threading.get_ident()
        self._retiring: Retiring | None = None

    def changed_locked(self) -> None:
        """Wake the step that waits; a connection may come back in any thread."""
        if self._loop is None or threading.get_ident() == self._thread:
            self._event.set()
        else:
            self._loop.call_soon_threadsafe(self._event.set)

    async def open(self) -> None:
        """Open the pools, prepare the application; then the service is ready. Raises StartupError."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.enter(Phase.STARTING)
        for pool in list(self.pools):
            await pool.open()
        try:
            for hook in self._hooks:
                await hook()
        except DBAPIError as error:
            if (told := self.cannot_prepare(error)) is not None:  # in one line, without a traceback
                raise told from error
            raise
        self._watching = asyncio.create_task(self._watch(), name="pooldrain-watch")
        self.enter(Phase.READY)

    def end(self, request: InFlightRequest) -> None:
        """`finish`, minding that a task of the request may live on, with a connection of its own."""
        if request.checkouts:
            self._watch_workers(request)
            self.finish(request, _outlives(request))
        else:
            self.finish(request)

    async def shut_down(self, server: Server, retiring: Retiring | None = None) -> ShutdownReport:
        """Perform the shutdown, start to end, and return its report. Runs as a task beside the server.

        `retiring`: the worker, if it is one of several processes and may be the only one that ends.
        """
        self._retiring = retiring
        sequence = shutdown_sequence(self.policy, self.signals[0], self.clock())
        try:
            step = next(sequence)
            while True:
                self.enter(step.phase)
                result = await self._perform_safely(step, server)
                try:
                    step = sequence.send(result)
                except StopIteration as stop:
                    report: ShutdownReport = stop.value
                    self.completed(report)
                    return report
        finally:
            if self.phase is not Phase.CLOSED:  # the runner itself broke: the pool is closed all the same
                await self._dispose(self.clock() + self.policy.dispose_timeout)

    async def _perform_safely(self, step: AnyStep, server: Server) -> Done | Tally:
        """Perform a step; one that raises is told, and the sequence goes on."""
        try:
            return await self._perform(step, server)
        except Exception as error:  # noqa: BLE001 - whatever it is, the pool still has to be closed
            return self.step_failed(step, error)

    async def _perform(self, step: AnyStep, server: Server) -> Done | Tally:
        match step:
            case Announce():
                return await self._announce(step)
            case Drain():
                return await self._drain(step, server)
            case Cancel():
                return await self._cancel(step, server)
            case Teardown():
                return await self._teardown(step)
            case Reclaim():
                return await self._reclaim(step.deadline)
            case Dispose():
                return await self._dispose(step.deadline)
            case Stop():
                await server.stop(step)
                return Done(self.clock())
            case Close():
                return self.tally()

    async def _announce(self, step: Announce) -> Done:
        worker, deadline = self._retiring, step.deadline
        if worker is not None and not worker.called_off:
            await self._retire(worker)
            if not worker.called_off:
                return Retired(self.clock(), timed_out=worker.connected, hurried=self.hurried)
            await worker.rejoin()
            deadline = self.clock() + self.policy.announce_period
        await self._wait(lambda: self.hurried, deadline)
        return Done(self.clock(), hurried=self.hurried)

    async def _retire(self, worker: Retiring) -> None:
        """Serve the clients that a worker has, until none is left or all of the drain's time has passed."""
        deadline = self.clock() + self.policy.drain_timeout
        with self._lock:
            self.end_streams_locked()
        await worker.retire()
        await self._wait(lambda: self.hurried or worker.called_off or not worker.connected, deadline)

    async def _drain(self, step: Drain, server: Server) -> Done:
        started, refused = self.close_gate()
        server.drain()
        await self._wait(lambda: self.hurried or self.quiet, step.deadline, self.next_look)
        return self.drained(started, refused)

    async def _cancel(self, step: Cancel, server: Server) -> Done:
        if not step.needed:
            return Done(self.clock())
        requests, work = self.cancel_all()
        try:
            server.cancel()
            patience = (self.clock() + step.deadline) / 2
            left = patience - self.clock()
            works = [each for pool in self.pools for each in pool.cancellations(requests, work.get(pool, ()), left)]
            await run_all(works, patience, self.clock, name="pooldrain-cancel")
            await self._wait(lambda: self.unwound(work), patience)
            # What waits for the database unwinds by itself, as a thread does; only then are tasks cancelled.
            if sum(pool.end_in_transit() + pool.cut_off(requests, work.get(pool, ())) for pool in self.pools):
                await self._wait(lambda: self.unwound(work), (patience + step.deadline) / 2)
            still_out = [c for pool, checkouts in work.items() for c in checkouts if pool.still_out([c])]
            workers = [*(request.worker for request in self.gate.in_flight), *(c.worker for c in still_out)]
            for worker in workers:
                if isinstance(worker, asyncio.Task) and worker.get_loop() is self._loop:
                    worker.cancel()
            await self._wait(lambda: self.unwound(work), step.deadline)
        finally:  # also if a cancellation raised: nobody goes uncounted
            done = self.give_up()
        return done

    async def _teardown(self, step: Teardown) -> Done:
        started, ending = self.clock(), self.ending()

        async def end() -> None:
            with hold_as(TEARDOWN_HOLDER):
                for function in ending:
                    try:
                        await _call(function)
                    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the others run
                        ending.failed(error)

        if ending:
            await run_all([end], step.deadline, self.clock, name="pooldrain-teardown")
        return self.torn_down(ending.abandon(), started)

    async def _reclaim(self, deadline: float) -> Done:
        self.close_pools()
        for pool in self.pools:
            pool.end_in_transit()
        outstanding = self.tell_outstanding()
        works = [partial(self._reclaim_from, pool, checkouts, deadline) for pool, checkouts in outstanding]
        finished = await run_all(works, deadline, self.clock, name="pooldrain-reclaim")
        return Done(self.clock(), timed_out=not finished)

    async def _reclaim_from(self, pool: Pool, checkouts: list[Checkout], deadline: float) -> None:
        for checkout in checkouts:
            if self.clock() < deadline and await pool.reclaim(checkout):
                self.reclaimed(checkout)

    async def _dispose(self, deadline: float) -> Done:
        started, closed = self.clock(), self.connections_closed
        self.close_pools()
        works = [partial(pool.dispose, deadline) for pool in self.pools]
        finished = await run_all(works, deadline, self.clock, name="pooldrain-dispose")
        return self.disposed(Done(self.clock(), timed_out=not finished), started, closed)

    async def _wait(self, happened: Callable[[], bool], deadline: float, look: Callable[[], float] = never) -> None:
        """Wait until it happened or the deadline (monotonic seconds) passes; look again after `look()` seconds."""
        while not happened() and (left := deadline - self.clock()) > 0:
            self._event.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, look())):
                    await self._event.wait()

    async def _watch(self) -> None:
        """Report what time alone makes a leak. A look that fails is told, and the next one comes all the same."""
        while self.phase is not Phase.CLOSED:  # noqa: ASYNC110 - it is a clock that is waited for, no event
            await asyncio.sleep(self.look_at_pools())

    def _watch_workers(self, request: InFlightRequest) -> None:
        """Look again when the background tasks that outlive `request` end: they may leak, too."""
        outlives = _outlives(request)
        for checkout in request.checkouts:
            if outlives(checkout) and isinstance(checkout.worker, asyncio.Task):
                checkout.worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[object]) -> None:
        for pool in self.pools:
            with self._lock:
                leaks = pool.ledger.worker_ended(worker, self.clock())
            pool.tracker.report(leaks)


def _outlives(request: InFlightRequest) -> Callable[[Checkout], bool]:
    """Whether a checkout was made by another task than the request's, one that still runs."""

    def outlives(checkout: Checkout) -> bool:
        worker = checkout.worker
        return isinstance(worker, asyncio.Task) and worker is not request.worker and not worker.done()

    return outlives
