"""What both runners are made of: one service's gate, ledger, phase and events, without a colour.

The shells add what waits (threads or asyncio) and the order of nothing: the steps come from `shutdown`.
Everything here is quick and runs under the shell's lock where it touches gate or ledger. Events are emitted
under it as well: their order in the transcript is the order of the decisions they tell of. A method whose name ends in
`_locked` is called with the lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from pooldrain.errors import describe_error
from pooldrain.gate import RequestGate, Reservation
from pooldrain.in_flight import Checkout, GivenId, InFlightRequest, route_label
from pooldrain.leak_rules import LeakRule
from pooldrain.ledger import PINNED_LOOK, Holding, describe
from pooldrain.phases import Phase, move
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.problems import CUT
from pooldrain.shutdown import AnyStep, CutRequest, Done, Failed, RequestCounts, ShutdownReport, Tally
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain.stacks import raised_at
from pooldrain.transcript import (
    AcceptPaused,
    BackgroundFailed,
    ConnectionReclaimed,
    DrainEnded,
    DrainStarted,
    PhaseEntered,
    PoolAbandoned,
    PoolDisposed,
    RequestAdmitted,
    RequestCut,
    RequestFinished,
    RequestRefused,
    ResponseBroken,
    ShutdownComplete,
    SignalIgnored,
    SignalReceived,
    StepFailed,
)


class Server(Protocol):
    """What a runner needs of a server; what waits there has the shell's colour."""

    def drain(self) -> None:
        """From now on requests are refused: on threads, keep them off the busy ones."""

    def cancel(self) -> None:
        """From now on no request waits for its client any more, or for a thread."""


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


PoolT = TypeVar("PoolT", bound=TrackedPool)
Hook = TypeVar("Hook")


class Lifecycle(Generic[PoolT, Hook]):
    """One service's state. `lock` guards gate and ledgers; `clock` gives monotonic seconds.

    `pools` has the pools it stops with, the main one first: most services have one.
    """

    make_pool: Callable[..., PoolT]  # of the shell's colour; see `Pool` there

    def __init__(
        self,
        pools: Sequence[PoolT],
        policy: ShutdownPolicy,
        *,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
    ) -> None:
        self.gate = RequestGate()
        self._phase: Phase | None = None  # before the first
        self.policy = policy
        self.signals: list[str] = []
        self.events = pools[0].events
        self.clock = clock
        self.pools = list(pools)
        self.pool = pools[0]  # the main one
        self._hooks: list[Hook] = []
        self._lock = lock
        self._in_flight_at_signal = 0
        self._held: dict[InFlightRequest, Holding] = {}  # by what was cancelled: the connection it had then
        self._outstanding: tuple[Holding, ...] = ()
        self._reclaimed = 0
        self._accept_paused = False
        self._failures: set[tuple[str, type[BaseException], str]] = set()  # those that were told
        self._errors: list[str] = []  # what broke beside the requests

    def changed_locked(self) -> None:
        """Something that a step may wait for has happened: the shell wakes its waiter."""
        raise NotImplementedError

    def look_again(self) -> None:
        """The same without the lock: a retiring worker's clients have gone, or the whole service ends."""
        with self._lock:
            self.changed_locked()

    def add_pool(self, url: DatabaseUrl, pool: PoolPolicy, leaks: LeakPolicy, name: str | None = None) -> PoolT:
        """Another engine, with a pool that opens and stops with the main one. Before `open`."""
        added = type(self).make_pool(
            url,
            pool,
            leaks,
            self.events,
            service=self.pool.service,
            lock=self._lock,
            clock=self.clock,
            name=name or f"pool {len(self.pools) + 1}",
        )
        self.pools.append(added)
        return added

    def on_open(self, hook: Hook) -> None:
        """Have `hook` called when the pools are open, before the service is ready."""
        self._hooks.append(hook)

    # --- life --------------------------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Move on to `phase`. Raises PhaseError if it does not follow the one before."""
        with self._lock:
            self._phase = move(self._phase, phase)
            self.events.emit(PhaseEntered(phase.value))

    @property
    def phase(self) -> Phase:
        """The phase it is in."""
        return self._phase or Phase.STARTING

    @property
    def hurried(self) -> bool:
        """Whether a second signal asked not to wait for requests."""
        return len(self.signals) > 1

    def signalled(self, name: str) -> bool:
        """A signal has come (called from the server's loop, not from the handler). True for the first one."""
        with self._lock:
            self.signals.append(name)
            first = len(self.signals) == 1
            if first:
                self._in_flight_at_signal = self.gate.unanswered
            self.events.emit(SignalReceived(name, len(self.signals)))
            self.changed_locked()
        return first

    def signal_ignored(self, name: str) -> None:
        """A signal has come that means nothing."""
        self.events.emit(SignalIgnored(name))

    def cannot_accept(self, error: str) -> None:
        """There is no room for another connection: told, if there was before."""
        if not self._accept_paused:
            self._accept_paused = True
            self.events.emit(AcceptPaused(error))

    def can_accept(self) -> None:
        """There is room again."""
        self._accept_paused = False

    def failed(self, what: str, error: BaseException) -> None:
        """Something that runs beside the requests has broken: it is told, and the exit code will be 4.

        What fails again and again is told once; another failure, or one in another place, anew. What broke goes on, or
        the shutdown begins; whoever calls this sees to that.
        """
        with self._lock:
            failure = (what, type(error), raised_at(error))
            if failure in self._failures:
                return
            self._failures.add(failure)
            described = describe_error(error)
            self._errors.append(f"{what}: {described}")
            self.events.emit(BackgroundFailed(what, described, raised_at(error)))

    def look_at_pools(self) -> float:
        """Let each pool report, by its own policy, what time alone makes a leak; the seconds until the next look."""
        pauses = [PINNED_LOOK]
        for pool in self.pools:
            try:
                pauses.append(pool.look())
            except Exception as error:  # noqa: BLE001 - whatever it is, the other pools and the next look go on
                self.failed(f"the watch over the pool {pool.name}", error)
        return max(0.001, min(pauses))

    # --- requests ----------------------------------------------------------------------------------------

    def admit(
        self,
        method: str,
        path: str,
        given_id: GivenId,
        reservation: Reservation | None = None,
        worker: object = None,
    ) -> InFlightRequest | None:
        """The request, now in flight; None if it has to be refused."""
        with self._lock:
            waited = not self.gate.accepting
            request = self.gate.admit(method, path, given_id, self.clock(), reservation, worker)
            if self.events.detailed:
                if request is None:
                    self.events.emit(RequestRefused(route_label(method, path)))
                else:
                    self.events.emit(RequestAdmitted(request.request_id, request.route, waited))
        return request

    def finish(self, request: InFlightRequest, outlives: Callable[[Checkout], bool] | None = None) -> None:
        """The response of `request` is finished; what it still holds is a leak (see `ledger.request_ended`)."""
        with self._lock:
            self.gate.finish(request)
            if request.checkouts:
                now = self.clock()
                for pool in self.pools:
                    pool.tracker.report(pool.ledger.request_ended(request, now, outlives))
            if request.cancelled and request.was_cut and not request.given_up:
                self.events.emit(RequestCut(*self._facts(request), self._held_by(request)[0]))
            if self.events.detailed:
                self.events.emit(RequestFinished(*self._facts(request)))
            if not self.gate.accepting:
                self.tell_if_idle_locked()

    def response_broken(self, request: InFlightRequest | None, method: str, path: str, body: str) -> None:
        """A response is `shorter` or `longer` than it has announced."""
        request_id = None if request is None else request.request_id
        self.events.emit(ResponseBroken(request_id, route_label(method, path), body))

    def unanswered(self) -> int:
        """How many requests are being served, as `/pool-status` shows it."""
        with self._lock:
            return self.gate.unanswered

    def tell_if_idle_locked(self) -> None:
        """Wake who waits for the drain, if this was the last request."""
        if not self.gate.accepting and self.gate.idle:
            self.changed_locked()

    def check_threshold(self) -> bool:
        """The tutorial's coarse leak flag. Asking changes nothing; its rise is told where a leak is found."""
        return self.pool.ledger.at_threshold(self.pool.status.checkedout)

    # --- shutdown ----------------------------------------------------------------------------------------

    def close_gate(self) -> tuple[float, int]:
        """Refuse requests from now on; the instant, and how many had been refused before."""
        with self._lock:
            self.gate.close()
            self.events.emit(DrainStarted(self.gate.unanswered))
            return self.clock(), self.gate.refused

    def drained(self, started: float, refused_before: int) -> Done:
        """The waiting for requests is over, one way or another."""
        with self._lock:
            in_flight = self.gate.active
            refused = self.gate.refused - refused_before
            now = self.clock()
            self.events.emit(DrainEnded(not in_flight, in_flight, refused, round(now - started, 6)))
        hurried = bool(in_flight) and self.hurried
        return Done(now, timed_out=bool(in_flight) and not hurried, hurried=hurried)

    def cancel_all(self) -> list[InFlightRequest]:
        """Mark everything in flight as cancelled, close the pools to it, and return it."""
        with self._lock:
            requests = self.gate.cancel()
            for request in requests:
                if request.checkouts:
                    oldest = min(request.checkouts, key=lambda checkout: checkout.since)
                    self._held[request] = describe(oldest, self.clock())
        self.close_pools()
        return requests

    def close_pools(self) -> None:
        """Refuse checkouts from every pool, before anything is done about one of them."""
        for pool in self.pools:
            pool.close()

    def give_up(self) -> Done:
        """Count what did not unwind in time as cut; its clients are answered here, where that can still be done."""
        with self._lock:
            stuck = list(self.gate.in_flight)
        for request in stuck:
            response = CUT.raw(head_only=request.method == "HEAD")
            if request.client is not None and request.client.answer_instead(response):
                request.status = CUT.status
        with self._lock:
            given_up = self.gate.give_up()
            for request in given_up:
                self.events.emit(RequestCut(*self._facts(request), self._held_by(request)[0]))
        return Done(self.clock(), timed_out=bool(given_up))

    def step_failed(self, step: AnyStep, error: Exception) -> Failed:
        """A step has raised: it is told, and the sequence goes on, for the pool still has to be closed."""
        described = describe_error(error)
        self.events.emit(StepFailed(step.phase.value, described))
        return Failed(self.clock(), error=described)

    def tell_outstanding(self) -> list[list[Checkout]]:
        """Refuse checkouts, name every connection that is still out; what to reclaim, pool by pool."""
        self.close_pools()
        outstanding = []
        for pool in self.pools:
            checkouts, holdings = pool.tell_outstanding()
            outstanding.append(checkouts)
            self._outstanding += holdings
        return outstanding

    def reclaimed(self, checkout: Checkout) -> None:
        """A connection was closed that its holder had not returned."""
        with self._lock:
            self._reclaimed += 1
            self.events.emit(ConnectionReclaimed(checkout.holder, checkout.request_id))

    @property
    def connections_closed(self) -> int:
        """Connections of all pools that were seen to close."""
        return sum(pool.tracker.closed for pool in self.pools)

    def disposed(self, done: Done, started: float, closed_before: int) -> Done:
        """Tell how the pool was closed."""
        closed = self.connections_closed
        left = sum(pool.tracker.opened for pool in self.pools) - closed
        seconds = round(done.now - started, 6)
        if done.timed_out or left:
            self.events.emit(PoolAbandoned(left, seconds))
        else:
            self.events.emit(PoolDisposed(seconds, closed - closed_before))
        return done

    def tally(self) -> Tally:
        """The facts for the report."""
        now = self.clock()
        with self._lock:
            gate, ledgers = self.gate, [pool.ledger for pool in self.pools]
            return Tally(
                requests=RequestCounts(self._in_flight_at_signal, gate.finished, gate.refused, len(gate.cut)),
                cut_requests=tuple(
                    CutRequest(
                        request.request_id,
                        request.route,
                        round(now - request.started, 3),
                        request.status,
                        *self._held_by(request),
                    )
                    for request in gate.cut
                ),
                leaks={rule.value: sum(ledger.counts[rule] for ledger in ledgers) for rule in LeakRule},
                opened=sum(pool.tracker.opened for pool in self.pools),
                closed=self.connections_closed,
                outstanding=self._outstanding,
                reclaimed=self._reclaimed,
                leaked=any(ledger.leaked for ledger in ledgers),
                fail_on_leak=any(ledger.policy.fail_on_leak for ledger in ledgers),
                signals=len(self.signals),
                errors=tuple(self._errors),
            )

    def completed(self, report: ShutdownReport) -> None:
        """The last line of the story."""
        self.events.emit(
            ShutdownComplete(
                outcome=report.outcome.value,
                exit_code=report.exit_code,
                signal=report.signal,
                seconds=round(report.seconds, 6),
                finished=report.requests.finished,
                refused=report.requests.refused,
                cut=report.requests.cut,
                leaked=len(report.outstanding),
                collected=report.leaks.get(LeakRule.COLLECTED, 0),
            )
        )

    def _held_by(self, request: InFlightRequest) -> tuple[str, str]:
        """Call site and last statement of the connection that a request held when it was cancelled."""
        held = self._held.get(request)
        return ("", "") if held is None else (held.call_site, held.statement or "")

    def _facts(self, request: InFlightRequest) -> tuple[str, str, int | None, float]:
        return request.request_id, request.route, request.status, round(self.clock() - request.started, 6)
