"""The pure sequence in every interleaving of a few events, with no thread, loop or clock, judged by the checker.

A tiny model plays both the service and its surroundings: it performs the steps that `shutdown_sequence` yields on a
real gate and a real ledger, and asks at every point what happens next. Every answer is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from collections.abc import Set as AbstractSet
from itertools import count
from typing import Any

import pytest

from pooldrain.gate import RequestGate
from pooldrain.in_flight import CURRENT_REQUEST, Checkout, InFlightRequest
from pooldrain.leak_rules import LeakRule
from pooldrain.ledger import CheckoutLedger, Holding, describe
from pooldrain.phases import Phase
from pooldrain.policy import LeakPolicy, ShutdownPolicy
from pooldrain.shutdown import (
    Announce,
    AnyStep,
    Cancel,
    Close,
    CutRequest,
    Dispose,
    Done,
    Drain,
    Failed,
    Reclaim,
    RequestCounts,
    ShutdownReport,
    Stop,
    Tally,
    Teardown,
    shutdown_sequence,
)
from pooldrain.status import PoolStatus
from pooldrain.transcript import (
    CheckedIn,
    CheckedOut,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReclaimed,
    DrainEnded,
    DrainStarted,
    Event,
    LeakFound,
    LeakReturned,
    NotReturned,
    Outstanding,
    PhaseEntered,
    PoolAbandoned,
    PoolClosing,
    PoolDisposed,
    PoolOpened,
    RequestAdmitted,
    RequestCut,
    RequestFinished,
    RequestRefused,
    ShutdownComplete,
    SignalReceived,
    StepFailed,
)
from pooldrain_compare.checker import check

Sequence = Generator[AnyStep, Done | Tally, ShutdownReport]
MakeSequence = Callable[[ShutdownPolicy, str, float], Sequence]
Choose = Callable[[list[str]], str]

POOL = 3  # connections, all of them open from the start
REQUESTS = 2  # in flight when the signal comes, each with a connection


class Model:
    """One service in one course of events."""

    def __init__(
        self, choose: Choose, *, spare: AbstractSet[str], announce: bool, fail_on_leak: bool, sequence: MakeSequence
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self._choose = choose
        self._policy = ShutdownPolicy(announce_period=1.0 if announce else 0.0)
        self._sequence = sequence
        self._gate = RequestGate()
        self._ledger = CheckoutLedger(LeakPolicy(fail_on_leak=fail_on_leak))
        self._keys = count()
        self._idle = POOL
        self._closed = 0
        self._signals = 0
        self._spare = set(spare)  # what may still happen, once each
        self._leaked: list[Checkout] = []
        self._closing = False
        self._outstanding: tuple[Holding, ...] = ()
        self._reclaimed = 0

    # --- what is told ------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        self.events.append({**event.as_dict(), "t": float(len(self.events)), "pid": 1})

    @property
    def _now(self) -> float:
        return float(len(self.events))

    # --- the course --------------------------------------------------------------------------------------

    def run(self) -> ShutdownReport:
        """From the start to the end."""
        self._emit(PhaseEntered(Phase.STARTING))
        for _ in range(POOL):
            self._emit(ConnectionOpened())
        self._emit(PoolOpened("sqlite:///model.db", POOL, 0, POOL, 0.0))
        self._emit(PhaseEntered(Phase.READY))
        for _ in range(REQUESTS):
            self._arrive()
        self._signal()
        sequence = self._sequence(self._policy, "SIGTERM", self._now)
        step = next(sequence)
        while True:
            self._emit(PhaseEntered(step.phase))
            result = self._perform(step)
            try:
                step = sequence.send(result)
            except StopIteration as stop:
                report: ShutdownReport = stop.value
                self._complete(report)
                return report

    def _perform(self, step: AnyStep) -> Done | Tally:
        match step:
            case Announce():
                if self._policy.announce_period:
                    self._wait(lambda: self._signals > 1)
                return Done(self._now, hurried=self._signals > 1)
            case Drain():
                return self._or_fails(step, self._drain)
            case Cancel():
                return self._or_fails(step, self._cancel) if step.needed else Done(self._now)
            case Teardown():
                return self._or_fails(step, lambda: Done(self._now))
            case Reclaim():
                return self._or_fails(step, self._reclaim)
            case Dispose():
                return self._or_fails(step, self._dispose)
            case Stop():
                return self._or_fails(step, lambda: Done(self._now))
            case Close():
                return self._tally()

    def _or_fails(self, step: AnyStep, perform: Callable[[], Done]) -> Done:
        if self._troubled():
            if isinstance(step, Drain):  # whatever a step fails at, what the next ones rely on is done
                self._gate.close()
            if isinstance(step, Cancel):
                self._give_up()
            return self._fails(step.phase)
        return perform()

    def _fails(self, phase: Phase) -> Failed:
        self._emit(StepFailed(phase, "RuntimeError: planned"))
        return Failed(self._now, error="RuntimeError: planned")

    def _troubled(self) -> bool:
        """Whether something goes wrong here, in a course in which it may."""
        troubled = "trouble" in self._spare and self._choose(["well", "trouble"]) == "trouble"
        if troubled:
            self._spare.discard("trouble")
        return troubled

    def _wait(self, happened: Callable[[], bool], *, cancelled: bool = False) -> bool:
        """Let things happen until `happened`; False if the deadline comes first."""
        while not happened():
            what = self._choose(["deadline", *self._possible(cancelled=cancelled)])
            if what == "deadline":
                return False
            self._happen(what)
        return True

    def _possible(self, *, cancelled: bool) -> Iterator[str]:
        for number, request in enumerate(self._gate.in_flight):
            yield f"return {number}"
            if request.checkouts:
                yield f"leak {number}"
            if cancelled:
                yield f"unwind {number}"
        yield from sorted(self._spare & {"arrive", "signal"})
        if self._leaked:
            yield "back"

    def _happen(self, what: str) -> None:
        name, _, number = what.partition(" ")
        self._spare.discard(name)
        match name:
            case "arrive":
                self._arrive()
            case "signal":
                self._signal()
            case "back":
                self._check_in(self._leaked.pop(0))
            case _:
                request = list(self._gate.in_flight)[int(number)]
                if name != "leak":
                    for checkout in list(request.checkouts):
                        self._check_in(checkout)
                self._finish(request, 503 if name == "unwind" else 200)

    # --- requests and connections ------------------------------------------------------------------------

    def _signal(self) -> None:
        self._signals += 1
        self._emit(SignalReceived("SIGTERM", self._signals))

    def _arrive(self) -> None:
        """A request comes; an admitted one takes a connection, if there is one."""
        request = self._gate.admit("GET", "/work", None, self._now)
        if request is None:
            self._emit(RequestRefused("GET /work"))
            return
        self._emit(RequestAdmitted(request.request_id, request.route, waited=False))
        if self._idle:
            self._idle -= 1
            token = CURRENT_REQUEST.set(request)
            checkout = self._ledger.check_out(next(self._keys), self._now, (), None, object)
            CURRENT_REQUEST.reset(token)
            self._emit(CheckedOut(checkout.holder, checkout.request_id, ""))

    def _check_in(self, checkout: Checkout) -> None:
        self._ledger.check_in(checkout.key)
        if checkout.rule is not None:
            self._emit(LeakReturned(checkout.rule, self._holding(checkout)))
        self._emit(CheckedIn(checkout.holder, checkout.request_id, 0.0))
        if self._closing:
            self._close_one()
        else:
            self._idle += 1

    def _close_one(self) -> None:
        self._closed += 1
        self._emit(ConnectionClosed())

    def _finish(self, request: InFlightRequest, status: int) -> None:
        request.status = status
        self._gate.finish(request)
        for leak in self._ledger.request_ended(request, self._now):
            assert leak.checkout is not None
            self._leaked.append(leak.checkout)
            self._emit(LeakFound(leak.rule, self._holding(leak.checkout)))
        facts = (request.request_id, request.route, status, 0.0)
        if request.was_cut and not request.given_up:
            self._emit(RequestCut(*facts))
        self._emit(RequestFinished(*facts))

    def _holding(self, checkout: Checkout) -> Holding:
        return describe(checkout, self._now)

    # --- the steps ---------------------------------------------------------------------------------------

    def _drain(self) -> Done:
        refused = self._gate.refused
        self._gate.close()
        self._emit(DrainStarted(self._gate.active))
        self._wait(lambda: self._gate.idle or self._signals > 1)
        active = self._gate.active
        self._emit(DrainEnded(not active, active, self._gate.refused - refused, 0.0))
        hurried = bool(active) and self._signals > 1
        return Done(self._now, timed_out=bool(active) and not hurried, hurried=hurried)

    def _cancel(self) -> Done:
        self._closing = True
        self._gate.cancel()
        self._wait(lambda: self._gate.idle, cancelled=True)
        return Done(self._now, timed_out=self._give_up())

    def _give_up(self) -> bool:
        given_up = self._gate.give_up()
        for request in given_up:
            self._emit(RequestCut(request.request_id, request.route, request.status, 0.0))
        return bool(given_up)

    def _reclaim(self) -> Done:
        self._closing = True
        checkouts = list(self._ledger.outstanding.values())
        self._emit(PoolClosing(PoolStatus(POOL, len(checkouts), 0, self._idle)))
        self._outstanding = tuple(self._holding(checkout) for checkout in checkouts)
        if checkouts:
            self._emit(NotReturned(len(checkouts)))
        for number, holding in enumerate(self._outstanding, 1):
            self._emit(Outstanding(number, holding))
        for checkout in checkouts:
            if self._troubled():  # half-way
                if self._choose(["hangs", "raises"]) == "raises":
                    return self._fails(Phase.RECLAIMING)
                return Done(self._now, timed_out=True)
            self._close_one()
            self._ledger.check_in(checkout.key)
            self._emit(CheckedIn(checkout.holder, checkout.request_id, 0.0))
            self._emit(ConnectionReclaimed(checkout.holder, checkout.request_id))
            self._reclaimed += 1
        return Done(self._now)

    def _dispose(self) -> Done:
        self._closing = True
        before = self._closed
        timed_out = bool(self._idle) and self._troubled()
        while self._idle and not timed_out:
            self._idle -= 1
            self._close_one()
        left = POOL - self._closed
        self._emit(PoolAbandoned(left, 0.0) if timed_out or left else PoolDisposed(0.0, self._closed - before))
        return Done(self._now, timed_out=timed_out)

    def _tally(self) -> Tally:
        gate = self._gate
        return Tally(
            requests=RequestCounts(REQUESTS, gate.finished, gate.refused, len(gate.cut)),
            cut_requests=tuple(CutRequest(each.request_id, each.route, 0.0, each.status) for each in gate.cut),
            leaks={rule.value: self._ledger.counts[rule] for rule in LeakRule},
            opened=POOL,
            closed=self._closed,
            outstanding=self._outstanding,
            reclaimed=self._reclaimed,
            leaked=self._ledger.leaked,
            fail_on_leak=self._ledger.policy.fail_on_leak,
            signals=self._signals,
        )

    def _complete(self, report: ShutdownReport) -> None:
        self._emit(
            ShutdownComplete(
                outcome=report.outcome,
                exit_code=report.exit_code,
                signal=report.signal,
                seconds=report.seconds,
                finished=report.requests.finished,
                refused=report.requests.refused,
                cut=report.requests.cut,
                leaked=len(report.outstanding),
                collected=0,
            )
        )


class Chooser:
    """Answers as `prefix` says, then always with the first; knows where other answers were possible."""

    def __init__(self, prefix: list[int]) -> None:
        self._prefix = prefix
        self.taken: list[int] = []
        self.possible: list[int] = []

    def __call__(self, options: list[str]) -> str:
        place = len(self.taken)
        choice = self._prefix[place] if place < len(self._prefix) else 0
        self.taken.append(choice)
        self.possible.append(len(options))
        return options[choice]

    def alternatives(self) -> Iterator[list[int]]:
        """The answers that were not given, each after those that came before it."""
        for place in range(len(self._prefix), len(self.taken)):
            for choice in range(1, self.possible[place]):
                yield [*self.taken[:place], choice]


def explore(
    spare: AbstractSet[str],
    *,
    announce: bool = False,
    fail_on_leak: bool = False,
    sequence: MakeSequence = shutdown_sequence,
) -> Iterator[tuple[Model, ShutdownReport]]:
    """Every course that there is."""
    prefixes: list[list[int]] = [[]]
    while prefixes:
        chooser = Chooser(prefixes.pop())
        model = Model(chooser, spare=spare, announce=announce, fail_on_leak=fail_on_leak, sequence=sequence)
        yield model, model.run()
        prefixes.extend(chooser.alternatives())


ALL = frozenset({"arrive", "signal", "trouble"})


@pytest.mark.parametrize(
    ("spare", "announce", "fail_on_leak", "outcomes"),
    [
        (ALL, False, False, {"drained", "cut", "dispose_failed"}),
        ({"signal", "trouble"}, False, True, {"drained", "cut", "dispose_failed", "leaked"}),
        ({"arrive"}, True, False, {"drained", "cut"}),
        ({"signal"}, True, True, {"drained", "cut", "leaked"}),
    ],
    ids=["at-once", "leaks-punished", "announced-and-one-comes", "announced-and-hurried"],
)
def test_no_interleaving_breaks_a_rule(
    spare: AbstractSet[str], announce: bool, fail_on_leak: bool, outcomes: AbstractSet[str]
) -> None:
    seen: Counter[str] = Counter()
    for model, report in explore(spare, announce=announce, fail_on_leak=fail_on_leak):
        assert check(model.events, report.as_dict(), report.exit_code) == []
        seen[report.outcome] += 1
    assert set(seen) == outcomes
    assert seen.total() > 300


def without(kind: type[AnyStep]) -> MakeSequence:
    """The sequence of somebody who forgot a step."""

    def sequence(policy: ShutdownPolicy, signal: str, now: float) -> Sequence:
        real = shutdown_sequence(policy, signal, now)
        step = next(real)
        while True:
            try:
                step = real.send(Done(step.deadline) if isinstance(step, kind) else (yield step))
            except StopIteration as stop:
                report: ShutdownReport = stop.value
                return report

    return sequence


@pytest.mark.parametrize("kind", [Announce, Drain, Cancel, Reclaim, Dispose, Stop], ids=lambda kind: kind.__name__)
def test_a_forgotten_step_is_noticed_in_every_interleaving(kind: type[AnyStep]) -> None:
    courses = 0
    for model, report in explore({"signal"}, sequence=without(kind)):
        courses += 1
        assert check(model.events, report.as_dict(), report.exit_code)
    assert courses
