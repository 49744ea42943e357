"""What both runners are made of: one service's gate, ledger, phase and events, without a colour.

The shells add what waits (threads or asyncio) and the order of nothing: the steps come from `shutdown`.
Everything here is quick and runs under the shell's lock where it touches gate or ledger. Events are emitted
under it as well: their order in the transcript is the order of the decisions they tell of. A method whose name ends in
`_locked` is called with the lock held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pooldrain.access import Access, AccessSink
from pooldrain.current import functions_at_shutdown
from pooldrain.errors import StartupError, describe_error
from pooldrain.gate import RequestGate, Reservation
from pooldrain.in_flight import Checkout, GivenId, InFlightRequest, fit_id, route_label
from pooldrain.leak_rules import CERTAIN, LeakRule
from pooldrain.ledger import PINNED_LOOK, Holding, describe
from pooldrain.meter import RequestMeter
from pooldrain.phases import Phase, move
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.probes import Probes
from pooldrain.problems import CUT, REFUSED
from pooldrain.shutdown import AnyStep, CutRequest, Done, Failed, PoolCounts, RequestCounts, ShutdownReport, Tally
from pooldrain.snapshot import LISTED, EngineCounters, ProcessStatus, added_engines
from pooldrain.sqla.adoption import fallback_name, given_name
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.drivers import limits
from pooldrain.sqla.hooks import EventSink
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain.stacks import raised_at
from pooldrain.teardown import Ending
from pooldrain.transcript import (
    AcceptPaused,
    BackgroundFailed,
    ConnectionReclaimed,
    DrainEnded,
    DrainStarted,
    EngineAdopted,
    Event,
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
    TeardownAbandoned,
    WorkCut,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.exc import DBAPIError


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


# Seconds between two looks, while the service drains, whether what works outside requests has ended its transactions.
WORK_LOOK = 0.05

# Who holds the connections that are checked out while the application ends.
TEARDOWN_HOLDER = "the application's shutdown"

# Pools of engines that are gone whose counts are kept apart, for the report.
PAST_POOLS = 20

# What the others are called together.
GONE = "engines that are gone"


def never() -> float:
    """When to look again where the end of what is waited for is an event."""
    return math.inf


PoolT = TypeVar("PoolT", bound=TrackedPool)
Hook = TypeVar("Hook")


class Lifecycle(Generic[PoolT, Hook]):
    """One service's state. `lock` guards gate and ledgers; `clock` gives monotonic seconds.

    `pools` has the pools it stops with: one of its own, the main one, or none; those that are added, and those of the
    engines that its application makes (`adopt`).
    """

    make_pool: Callable[..., PoolT]  # of the shell's colour; see `Pool` there
    adopt_pool: Callable[..., PoolT]  # and `AdoptedPool`

    def __init__(
        self,
        pools: Sequence[PoolT],
        policy: ShutdownPolicy,
        *,
        events: EventSink | None = None,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
    ) -> None:
        told = pools[0].events if pools else events
        assert told is not None, "a service without a pool of its own has to be told where its events go"
        self.gate = RequestGate()
        self.meter = RequestMeter()
        self._phase: Phase | None = None  # before the first
        self._entered: list[tuple[Phase, float]] = []
        self._made = clock()
        self.policy = policy
        self.probes = Probes()
        self.access: AccessSink | None = None
        self.told_when_ready: list[Event] = []
        self.followers: list[Callable[[Phase], object]] = []  # who else is told of each phase
        self.signals: list[str] = []
        self.events = told
        self.clock = clock
        self.pools: list[PoolT] = []
        self._main = pools[0] if pools else None
        self._pools_closed = False
        self._past: list[EngineCounters] = []  # of engines that are gone
        self._hooks: list[Hook] = []
        self._at_shutdown: list[Callable[[], object]] = []
        self.at_exit: Callable[[], list[Callable[[], object]]] = list  # the last functions of the shutdown
        self.at_last: Callable[[], list[Callable[[], object]]] = list  # what exports how it went
        self.names_taken: list[str] = []  # names that the application has given to two engines
        self._lock = lock
        self._in_flight_at_signal = 0
        self._held: dict[InFlightRequest, Holding] = {}  # by what was cancelled: the connection it had then
        self._cut_work: tuple[Holding, ...] = ()
        self._outstanding: tuple[Holding, ...] = ()
        self._reclaimed = 0
        self._accept_paused = False
        for pool in pools:
            self._take_in(pool)
        self._failures: set[tuple[str, type[BaseException], str]] = set()  # those that were told
        self._errors: list[str] = []  # what broke beside the requests

    def changed_locked(self) -> None:
        """Something that a step may wait for has happened: the shell wakes its waiter."""
        raise NotImplementedError

    def look_again(self) -> None:
        """The same without the lock: a retiring worker's clients have gone, or the whole service ends."""
        with self._lock:
            self.changed_locked()

    @property
    def pool(self) -> PoolT:
        """The service's own pool. Raises LookupError if it has none: its application makes its engines itself."""
        if self._main is None:
            raise LookupError("this service has no pool of its own; its application makes its engines itself")
        return self._main

    @property
    def has_no_pool(self) -> bool:
        """Whether the service has no pool of its own."""
        return self._main is None

    def cannot_prepare(self, error: DBAPIError) -> StartupError | None:
        """Why the application could not be prepared, if that is the fault of the service's own database."""
        return None if self._main is None else self._main.cannot_prepare(error)

    def own(self, pool: PoolT) -> None:
        """Give the service a pool of its own, the main one. Before `open`, once."""
        self._main = pool
        self._take_in(pool)
        self.pools.insert(0, self.pools.pop())

    def answer_always(self, path: str) -> None:
        """Answer requests at this path in every phase, and never count them, as probes are. Before `open`."""
        self.probes = replace(self.probes, others=self.probes.others | {path})

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
        self._take_in(added)
        return added

    def adopt(self, engine: Engine, policy: PoolPolicy, leaks: LeakPolicy, service: str) -> PoolT:
        """Track the pool of an engine that the application has made, which is closable by now, and stop with it.

        `service` is the name for the database server to show, unless the application has one.
        """
        given = given_name(engine)
        name = given or fallback_name(engine)
        with self._lock:
            if given is not None and any(pool.name == given and not pool.gone for pool in self.pools):
                self.names_taken.append(given)
            adopted = type(self).adopt_pool(
                engine,
                self._free_name(name),
                policy,
                leaks,
                self.events,
                service=service,
                lock=self._lock,
                clock=self.clock,
            )
            self._take_in(adopted)
            pool_class = type(adopted.pool).__name__
            driver = engine.url.drivername if "+" in engine.url.drivername else f"{engine.name}+{engine.driver}"
            unable = limits(engine.driver)
            self.events.emit(EngineAdopted(adopted.name, driver, pool_class, unable))
        return adopted

    def _take_in(self, pool: PoolT) -> None:
        pool.tracker.returned_locked = self.tell_if_idle_locked
        self.pools.append(pool)
        if self._pools_closed:  # too late for it
            pool.close()

    def _free_name(self, name: str) -> str:
        taken = {pool.name for pool in self.pools}
        number = 2
        free = name
        while free in taken:
            free, number = f"{name} ({number})", number + 1
        return free

    def on_shutdown(self, function: Callable[[], object]) -> None:
        """Have `function` called in the teardown; see `pooldrain.on_shutdown`, whose functions come after these."""
        self._at_shutdown.append(function)

    def on_open(self, hook: Hook) -> None:
        """Have `hook` called when the pools are open, before the service is ready."""
        self._hooks.append(hook)

    # --- life --------------------------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Move on to `phase`. Raises PhaseError if it does not follow the one before."""
        with self._lock:
            self._phase = move(self._phase, phase)
            self._entered.append((phase, self.clock()))
            if phase is Phase.ANNOUNCING:  # together with `/readyz`: whoever reconnects may find another process
                self.gate.keep_alive = False
            if phase is Phase.READY:
                for event in self.told_when_ready:
                    self.events.emit(event)
            self.events.emit(PhaseEntered(phase.value))
        for follow in self.followers:
            follow(phase)

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
        self.let_go_pools()
        pauses = [PINNED_LOOK]
        for pool in list(self.pools):
            try:
                pauses.append(pool.look())
            except Exception as error:  # noqa: BLE001 - whatever it is, the other pools and the next look go on
                self.failed(f"the watch over the pool {pool.name}", error)
        return max(0.001, min(pauses))

    def let_go_pools(self) -> None:
        """Keep the counts alone of the pools of engines that are gone: an application may make one after the other."""
        with self._lock:
            gone = [pool for pool in self.pools if pool.adopted and pool.gone]
            for pool in gone:
                self.pools.remove(pool)
                self._past.append(pool.counters())
            if len(self._past) > PAST_POOLS:
                self._past = added_engines({**each, "name": GONE} for each in self._past)

    # --- requests ----------------------------------------------------------------------------------------

    def admit(
        self,
        method: str,
        path: str,
        given_id: GivenId,
        reservation: Reservation | None = None,
        worker: object = None,
        *,
        address: str = "",
    ) -> InFlightRequest | None:
        """The request, now in flight; None if it has to be refused. `address`: its client's."""
        with self._lock:
            waited = not self.gate.accepting
            request = self.gate.admit(method, path, given_id, self.clock(), reservation, worker)
            if self.events.detailed:
                if request is None:
                    self.events.emit(RequestRefused(route_label(method, path)))
                else:
                    self.events.emit(RequestAdmitted(request.request_id, request.route, waited))
        if request is not None:
            request.address = address
        elif self.access is not None:
            sent = 0 if method == "HEAD" else len(REFUSED.body)
            refused = Access(address, method, path, REFUSED.status, sent, 0.0, fit_id(given_id) or "-", "refused")
            self.access(refused)
        return request

    def finish(self, request: InFlightRequest, outlives: Callable[[Checkout], bool] | None = None) -> None:
        """The response of `request` is finished; what it still holds is a leak (see `ledger.request_ended`)."""
        with self._lock:
            self.gate.finish(request)
            self.meter.observe(request.method, request.status, self.clock() - request.started)
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
        if self.access is not None and not request.given_up:
            self.access(self._access(request, cut=request.cancelled and request.was_cut))

    def _access(self, request: InFlightRequest, *, cut: bool) -> Access:
        """What the access log tells of a request."""
        return Access(
            client=request.address,
            method=request.method,
            path=request.path,
            status=request.status,
            sent=0 if request.method == "HEAD" else request.sent,
            seconds=round(self.clock() - request.started, 6),
            request_id=request.request_id,
            outcome="cut" if cut else "served",
        )

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
            started, refused = self.clock(), self.gate.refused
            self.end_streams_locked()
            return started, refused

    def end_streams_locked(self) -> None:
        """Have event streams ended, each between two events, if that is wanted: their clients come again, elsewhere."""
        if self.policy.streams != "end":
            return
        self.gate.ends_streams = True
        for request in list(self.gate.in_flight):
            if request.end_stream is not None:
                request.end_stream()

    def drained(self, started: float, refused_before: int) -> Done:
        """The waiting for requests is over, one way or another."""
        with self._lock:
            in_flight = self.gate.active
            refused = self.gate.refused - refused_before
            at_work = sum(map(len, self.working().values()))
            now = self.clock()
            complete = not in_flight and not at_work
            self.events.emit(DrainEnded(complete, in_flight, refused, round(now - started, 6), at_work))
        unfinished = bool(in_flight or at_work)
        hurried = unfinished and self.hurried
        return Done(now, timed_out=unfinished and not hurried, hurried=hurried)

    def working(self) -> dict[PoolT, list[Checkout]]:
        """The connections, by pool, that are at work outside requests: the drain waits for them, too."""
        working = {pool: pool.working() for pool in list(self.pools)}
        return {pool: checkouts for pool, checkouts in working.items() if checkouts}

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight, and nothing at work outside requests."""
        return self.gate.idle and not self.working()

    def next_look(self) -> float:
        """Seconds until somebody who waits for quiet has to look again: the end of a transaction is no event to us."""
        if not self.gate.idle:
            return math.inf
        named = all(checkout.named for checkouts in self.working().values() for checkout in checkouts)
        return math.inf if named else WORK_LOOK

    def unwound(self, work: dict[PoolT, list[Checkout]]) -> bool:
        """Whether nothing is in flight any more, and this work has returned its connections."""
        return self.gate.idle and not any(pool.still_out(checkouts) for pool, checkouts in work.items())

    def cancel_all(self) -> tuple[list[InFlightRequest], dict[PoolT, list[Checkout]]]:
        """Mark everything in flight as cancelled, so that it gets no connection any more; return it, and what works.

        Whoever waits for a connection at this moment gets none either.
        """
        work = self.working()
        with self._lock:
            requests = self.gate.cancel()
            for request in requests:
                if request.checkouts:
                    oldest = min(request.checkouts, key=lambda checkout: checkout.since)
                    self._held[request] = describe(oldest, self.clock())
            now = self.clock()
            self._cut_work = tuple(pool.tracker.describe(c, now) for pool, found in work.items() for c in found)
        for pool in list(self.pools):
            pool.lifetime.turn_away()
        return requests, work

    def close_pools(self) -> None:
        """Refuse checkouts from every pool, before anything is done about one of them."""
        with self._lock:
            self._pools_closed = True
            pools = list(self.pools)
        for pool in pools:
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
            for holding in self._cut_work:
                self.events.emit(WorkCut(holding))
        if self.access is not None:
            for request in given_up:
                self.access(self._access(request, cut=True))
        return Done(self.clock(), timed_out=bool(given_up))

    def shutdown_functions(self) -> list[tuple[str, Callable[[], object]]]:
        """What the application has to run at its end, by name, in the order of the calls to come."""
        functions = [*reversed(self._at_shutdown), *functions_at_shutdown(), *self.at_exit()]
        return [(_name_of(function), function) for function in functions]

    def ending(self) -> Ending:
        """The application's end, to be called through once."""
        return Ending(self.shutdown_functions(), self.failed)

    def torn_down(self, running: str | None, started: float) -> Done:
        """The application has ended, or its time is over while `running` still runs."""
        now = self.clock()
        if running is not None:
            with self._lock:
                self._errors.append(f"{running} has not ended within the teardown's time")
                self.events.emit(TeardownAbandoned(running, round(now - started, 6)))
        return Done(now, timed_out=running is not None)

    def step_failed(self, step: AnyStep, error: Exception) -> Failed:
        """A step has raised: it is told, and the sequence goes on, for the pool still has to be closed."""
        described = describe_error(error)
        self.events.emit(StepFailed(step.phase.value, described))
        return Failed(self.clock(), error=described)

    def tell_outstanding(self) -> list[tuple[PoolT, list[Checkout]]]:
        """Refuse checkouts, name every connection that is still out; what to reclaim, pool by pool."""
        self.close_pools()
        outstanding = []
        for pool in list(self.pools):
            checkouts, holdings = pool.tell_outstanding()
            outstanding.append((pool, checkouts))
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
        return sum(counts.closed for counts in self.pool_counts())

    def pool_counts(self) -> tuple[PoolCounts, ...]:
        """What became of each pool so far, those of engines that are gone included."""
        with self._lock:
            return tuple(map(_counts, [*(pool.counters() for pool in self.pools), *self._past]))

    def disposed(self, done: Done, started: float, closed_before: int) -> Done:
        """Tell how the pool was closed."""
        closed = self.connections_closed
        left = sum(counts.opened for counts in self.pool_counts()) - closed
        seconds = round(done.now - started, 6)
        if done.timed_out or left:
            self.events.emit(PoolAbandoned(left, seconds))
        else:
            self.events.emit(PoolDisposed(seconds, closed - closed_before))
        return done

    def snapshot(self) -> ProcessStatus:
        """What can be seen of this process, for `/status`; from any thread. Changes nothing."""
        with self._lock:
            now, gate = self.clock(), self.gate
            entered = [*self._entered, (self.phase, now)]
            in_flight = list(gate.in_flight)[:LISTED]
            pools, past = list(self.pools), list(self._past)
            status: ProcessStatus = {
                "pid": 0,  # which process this is, the core does not know
                "seen": 0.0,
                "uptime": round(now - self._made, 3),
                "phase": self.phase.value,
                "phases": [
                    {"phase": phase.value, "seconds": round(until - since, 6)}
                    for (phase, since), (_, until) in pairwise(entered)
                ],
                "signals": list(self.signals),
                "in_flight": len(gate.in_flight),
                "waiting": gate.waiting,
                "requests": [
                    {
                        "request_id": request.request_id,
                        "route": request.route,
                        "age": round(now - request.started, 3),
                        "status": request.status,
                        "cancelled": request.cancelled,
                        "connections": len(request.checkouts),
                    }
                    for request in in_flight
                ],
                "engines": [],
                "counters": {
                    "finished": gate.finished,
                    "refused": gate.refused,
                    "cut": len(gate.cut),
                    "reclaimed": self._reclaimed,
                    "abandoned": 0,
                    "durations": [
                        {"method": method, "status": code, "seconds": histogram.data()}
                        for (method, code), histogram in self.meter.durations.items()
                    ],
                    "engines": [],
                },
            }
        status["engines"] = [pool.seen() for pool in pools]
        engines = status["counters"]["engines"] = added_engines([*past, *(pool.counters() for pool in pools)])
        if self.phase is Phase.CLOSED:
            status["counters"]["abandoned"] = sum(engine["opened"] - engine["closed"] for engine in engines)
        return status

    def tally(self) -> Tally:
        """The facts for the report."""
        now = self.clock()
        with self._lock:
            gate, pools, ledgers = self.gate, self.pool_counts(), [pool.ledger for pool in self.pools]
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
                cut_work=self._cut_work,
                leaks={rule.value: sum(counts.leaks[rule.value] for counts in pools) for rule in LeakRule},
                opened=sum(counts.opened for counts in pools),
                closed=sum(counts.closed for counts in pools),
                outstanding=self._outstanding,
                reclaimed=self._reclaimed,
                leaked=any(counts.leaks[rule.value] for counts in pools for rule in CERTAIN),
                fail_on_leak=any(ledger.policy.fail_on_leak for ledger in ledgers),
                signals=len(self.signals),
                pools=pools,
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
                work_cut=len(report.cut_work),
            )
        )

    def _held_by(self, request: InFlightRequest) -> tuple[str, str]:
        """Call site and last statement of the connection that a request held when it was cancelled."""
        held = self._held.get(request)
        return ("", "") if held is None else (held.call_site, held.statement or "")

    def _facts(self, request: InFlightRequest) -> tuple[str, str, int | None, float]:
        return request.request_id, request.route, request.status, round(self.clock() - request.started, 6)


def _counts(engine: EngineCounters) -> PoolCounts:
    return PoolCounts(engine["name"], engine["opened"], engine["closed"], engine["leaks"])


def _name_of(function: Callable[[], object]) -> str:
    """`shop.web:stop_scheduler`, as well as it can be told."""
    told = getattr(function, "func", function)  # of a partial
    name = getattr(told, "__qualname__", None) or type(told).__qualname__
    return f"{getattr(told, '__module__', None) or '?'}:{name}"
