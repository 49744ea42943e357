"""The shutdown, decided: phases, steps, their order, the report and the exit code.

Rules:
1. The order of the steps is written once, in `shutdown_sequence`, a generator. It yields a frozen step with
   a deadline, is sent that step's result, and returns the report. It does nothing itself.
2. A runner (one a shell) performs the steps and knows nothing of their order.
3. Every phase is entered, also one with nothing to do, so that all transcripts have one shape.
4. A step that fails is noted, and the sequence goes on: a broken drain must not keep the pool open.

All times are monotonic seconds, all durations seconds.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pooldrain.exit_codes import ExitCode
from pooldrain.ledger import Holding
from pooldrain.phases import Phase
from pooldrain.policy import ShutdownPolicy


class Outcome(StrEnum):
    """The exit code in a word, for the report."""

    DRAINED = "drained"
    CUT = "cut"
    DISPOSE_FAILED = "dispose_failed"
    LEAKED = "leaked"


_EXIT_CODES = {
    Outcome.DRAINED: ExitCode.DRAINED,
    Outcome.CUT: ExitCode.CUT,
    Outcome.DISPOSE_FAILED: ExitCode.DISPOSE_FAILED,
    Outcome.LEAKED: ExitCode.LEAKED,
}

# Seconds beyond the linger for answers that are being written when everything else is done, within the grace period.
FLUSH_LIMIT = 1.0


# --- steps: what a runner is told to do, until when -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Base of the steps. `deadline` is an instant in monotonic seconds."""

    deadline: float


class Announce(Step):
    """Let load balancers look away: `/readyz` answers 503, everything else as before.

    A worker that retires, its service going on, spends this phase on its clients: it takes no new ones, and answers
    those it has. Its result is `Retired`.
    """

    phase = Phase.ANNOUNCING


class Drain(Step):
    """Close the gate; return as soon as nothing is in flight, or at the deadline."""

    phase = Phase.DRAINING


@dataclass(frozen=True, slots=True)
class Cancel(Step):
    """If `needed`: cancel the statements of what is in flight, wake pool waiters, wait for it to unwind."""

    phase = Phase.CANCELLING
    needed: bool


class Teardown(Step):
    """Let the application end: its lifespan, the functions that it has registered; the pool is still open to them."""

    phase = Phase.TEARDOWN


class Reclaim(Step):
    """Close the pool to checkouts; name, then close, every connection that is still out."""

    phase = Phase.RECLAIMING


class Dispose(Step):
    """Close every pooled connection."""

    phase = Phase.DISPOSING


@dataclass(frozen=True, slots=True)
class Stop(Step):
    """Answer what the kernel still queues, close the listener, flush; linger at most `linger` seconds.

    `limit`: an instant in monotonic seconds, until which answers that are being written may go on.
    """

    phase = Phase.STOPPING
    linger: float
    limit: float


class Close(Step):
    """Everything is over: answer with the Tally."""

    phase = Phase.CLOSED


AnyStep = Announce | Drain | Cancel | Teardown | Reclaim | Dispose | Stop | Close


# --- results: what a runner sends back ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """A step is done. `timed_out`: its deadline passed first. `hurried`: another signal cut the waiting short."""

    now: float
    timed_out: bool = False
    hurried: bool = False


@dataclass(frozen=True, slots=True)
class Retired(Done):
    """A worker has retired. `timed_out`: it still has clients, and they have had all of the drain's time."""


@dataclass(frozen=True, slots=True)
class Failed(Done):
    """The step raised."""

    error: str = ""


# --- the report --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CutRequest:
    """A request that the deadline ended."""

    request_id: str
    route: str
    age: float
    status: int | None  # what its client was answered, None: nothing
    call_site: str = ""  # where it checked out the connection that it held, the first one if it held several
    statement: str = ""  # the last one on that connection


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests over the life of the process; seen = finished + refused + cut."""

    in_flight_at_signal: int = 0
    finished: int = 0
    refused: int = 0
    cut: int = 0

    @property
    def seen(self) -> int:
        """All of them."""
        return self.finished + self.refused + self.cut


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """Connections over the life of the process; opened = closed + reclaimed + abandoned."""

    opened: int = 0
    closed: int = 0
    reclaimed: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """What became of one pool."""

    pool: str  # its name
    opened: int  # connections
    closed: int  # those of them that were seen to close, by whomever
    leaks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Tally:
    """The facts a runner holds at the end, for the report."""

    requests: RequestCounts
    cut_requests: tuple[CutRequest, ...]
    leaks: dict[str, int]
    opened: int  # connections
    closed: int  # of those, the ones seen to close, reclaimed ones included
    outstanding: tuple[Holding, ...]  # what had not been returned when reclaiming began
    reclaimed: int  # how many of those were closed
    leaked: bool
    fail_on_leak: bool
    signals: int
    cut_work: tuple[Holding, ...] = ()  # connections at work outside requests that the deadline found
    pools: tuple[PoolCounts, ...] = ()
    errors: tuple[str, ...] = ()  # what broke beside the requests and the steps


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What happened, for the log, the report file and the exit code."""

    outcome: Outcome
    exit_code: int
    signal: str
    signals: int
    hurried: bool
    phases: tuple[tuple[Phase, float], ...]
    seconds: float
    requests: RequestCounts
    cut_requests: tuple[CutRequest, ...]
    outstanding: tuple[Holding, ...]
    leaks: dict[str, int]
    connections: ConnectionCounts
    errors: tuple[str, ...]
    cut_work: tuple[Holding, ...] = ()
    pools: tuple[PoolCounts, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data; under `workers` in the `--report` file (see `service_report`)."""
        return {
            "outcome": self.outcome.value,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "signals": self.signals,
            "hurried": self.hurried,
            "seconds": round(self.seconds, 6),
            "phases": [{"phase": phase.value, "seconds": round(seconds, 6)} for phase, seconds in self.phases],
            "requests": {**asdict(self.requests), "seen": self.requests.seen},
            "cut_requests": [asdict(cut) for cut in self.cut_requests],
            "cut_work": [asdict(holding) for holding in self.cut_work],
            "outstanding": [asdict(holding) for holding in self.outstanding],
            "leaks": dict(self.leaks),
            "connections": asdict(self.connections),
            "pools": [asdict(pool) for pool in self.pools],
            "errors": list(self.errors),
        }


@dataclass(slots=True)
class _Course:
    """What the sequence notes as it goes."""

    phases: list[tuple[Phase, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hurried: bool = False
    now: float = 0.0

    def passed(self, step: AnyStep, result: Done) -> Done:
        self.phases.append((step.phase, result.now - self.now))
        self.now = result.now
        self.hurried = self.hurried or result.hurried
        if isinstance(result, Failed):
            self.errors.append(f"{step.phase.value}: {result.error}")
        return result


def shutdown_sequence(
    policy: ShutdownPolicy, signal: str, now: float
) -> Generator[AnyStep, Done | Tally, ShutdownReport]:
    """The shutdown, step by step. Send each step's result (the Tally for Close); get the report.

    The first `next()` yields the first step. `now` is the instant of the signal.
    """
    course = _Course(now=now)

    def perform(step: AnyStep) -> Generator[AnyStep, Done | Tally, Done]:
        result = yield step
        assert isinstance(result, Done), "a runner answers a step with its result"
        return course.passed(step, result)

    announced = yield from perform(Announce(now + policy.announce_period))
    spent = course.hurried or (isinstance(announced, Retired) and announced.timed_out)
    drained = yield from perform(Drain(course.now + (0.0 if spent else policy.drain_timeout)))
    unfinished = drained.timed_out or drained.hurried or isinstance(drained, Failed)
    yield from perform(Cancel(course.now + policy.cancel_timeout, needed=unfinished))

    yield from perform(Teardown(course.now + policy.teardown_timeout))

    # Reclaiming and disposing share one timeout: both close connections, and a dead server stalls both alike.
    dispose_deadline = course.now + policy.dispose_timeout
    yield from perform(Reclaim(dispose_deadline))
    disposed = yield from perform(Dispose(dispose_deadline))
    lingered = course.now + policy.linger
    flushed = min(lingered + FLUSH_LIMIT, now + policy.ladder.grace_period)
    yield from perform(Stop(lingered, linger=policy.linger, limit=max(lingered, flushed)))

    tally = yield Close(course.now)
    assert isinstance(tally, Tally), "a runner ends with its tally"
    course.errors.extend(tally.errors)
    return _report(course, signal, now, disposed, tally)


def _report(course: _Course, signal: str, start: float, disposed: Done, tally: Tally) -> ShutdownReport:
    # What was never seen to close is still open when the process ends: nobody may call that closed.
    abandoned = tally.opened - tally.closed
    leaked = tally.leaked or any(holding.rule is not None for holding in tally.outstanding)
    outcome = _outcome(abandoned > 0 or bool(course.errors) or disposed.timed_out, leaked, tally)
    return ShutdownReport(
        outcome=outcome,
        exit_code=int(_EXIT_CODES[outcome]),
        signal=signal,
        signals=tally.signals,
        hurried=course.hurried,
        phases=tuple(course.phases),
        seconds=course.now - start,
        requests=tally.requests,
        cut_requests=tally.cut_requests,
        cut_work=tally.cut_work,
        outstanding=tally.outstanding,
        leaks=tally.leaks,
        connections=ConnectionCounts(
            opened=tally.opened,
            closed=tally.closed - tally.reclaimed,
            reclaimed=tally.reclaimed,
            abandoned=abandoned,
        ),
        pools=tally.pools,
        errors=tuple(course.errors),
    )


def _outcome(dispose_failed: bool, leaked: bool, tally: Tally) -> Outcome:
    if dispose_failed:
        return Outcome.DISPOSE_FAILED
    if tally.requests.cut or tally.cut_work:
        return Outcome.CUT
    if leaked and tally.fail_on_leak:
        return Outcome.LEAKED
    return Outcome.DRAINED
