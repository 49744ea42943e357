"""The catalogue of scenarios: what is done to a service, and what has to come of it. Data, no code.

A scenario is a policy, a list of steps, and expectations. Steps wait for events, never for time to pass. The
expectations say what is right; whether all servers do the same, `comparison` finds out for everything that was
seen, expected or not.

Latches: see `scenario_routes`. `/query?latch=a` is held up until `Open("a")`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from pooldrain.shutdown import Phase

POSTGRESQL, SQLITE = "postgresql", "sqlite"
BOTH = (POSTGRESQL, SQLITE)

# --- steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection that stays open, by name."""

    name: str
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a request, and go on. `on`: a connection opened before; else a new one, to this worker.

    Its name is its X-Request-ID, so that transcripts and reports speak of it.
    """

    name: str
    target: str
    method: str = "GET"
    body: bytes = b""
    on: str | None = None
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Ask(Start):
    """Begin a request, and wait for its answer."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Wait until these requests are in flight."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AtQuery:
    """Wait until so many statements wait at a query latch."""

    latch: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class AtLatch:
    """Wait until so many have come to an application latch."""

    latch: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Open:
    """Open latches; what waits there goes on."""

    latches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Wait for the answers of these requests (or for the end of their connections)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """Wait for the first bytes of a body."""

    name: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection of a request that is being served."""

    name: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to the service (to its master, if it has one)."""

    number: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the workers, as a machine that is out of breath would: what comes now queues in the kernel."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let them go on."""


@dataclass(frozen=True, slots=True)
class OthersEnded:
    """Wait until every worker but the first, which has requests in flight, has ended."""


@dataclass(frozen=True, slots=True)
class Entered:
    """Wait until every worker has entered a phase."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Draining:
    """Wait until every worker refuses requests."""


@dataclass(frozen=True, slots=True)
class Event:
    """Wait for events of the transcript, by name and, if given, leak rule or request."""

    name: str
    count: int = 1
    rule: str | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Sessions:
    """Wait until the database server shows so many sessions of the first worker; the idle one has its `min_idle`."""

    total: int


@dataclass(frozen=True, slots=True)
class EndSessions:
    """End every session of the service from the database server's side."""


Step = (
    Connect | Start | Ask | Admitted | AtQuery | AtLatch | Open | Answered | FirstBytes | Disconnect
    | Send | Pause | Resume | OthersEnded | Entered | Draining | Event | Sessions | EndSessions
)  # fmt: skip

SIGTERM, SIGINT = Send(), Send(signal.SIGINT)


# --- expectations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Band:
    """Seconds between which a duration has to be."""

    least: float
    most: float

    def __contains__(self, seconds: float) -> bool:
        return self.least <= seconds <= self.most

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g} s"


# What needs no time may take this long: two processes start on the same two cores beside the one that is timed.
AT_ONCE = Band(0.0, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What has to come of it, on every server. Counts are sums over the workers."""

    exit_code: int = 0
    outcome: str | None = "drained"  # of the first worker; None: it leaves no report
    hurried: bool = False
    answers: Mapping[str, int | None] = field(default_factory=dict)  # status by request; None: no whole answer
    refused: int = 0
    cut: int = 0
    leaks: Mapping[str, int] = field(default_factory=dict)  # by rule, those that are not 0
    outstanding: (
        tuple[str, ...] | None
    ) = ()  # holders of what was not returned, and reclaimed; None: not the same everywhere
    abandoned: int = 0
    orders: tuple[str, ...] = ()  # ids in the table afterwards
    after_last_act: Band = AT_ONCE  # from the last thing that was done to the service to its end
    phases: Mapping[Phase, Band] = field(default_factory=dict)  # DRAINING is the suite's doing; others: AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario. `shows`: in one line, what it is about."""

    name: str
    shows: str
    steps: tuple[Step, ...]
    expect: Expect = Expect()
    policy: tuple[str, ...] = ()  # options, in place of POLICY's
    app: str = "create_app"  # factory of the scenario applications
    databases: tuple[str, ...] = (POSTGRESQL,)
    workers: tuple[int, ...] = (1, 2)
    starts_listening: bool = True  # wait for the service to listen before the first step
    steady_sessions: bool = True  # none is replaced before the signal: the server keeps one for a moment longer
    second_pool: int = 0  # connections that a second engine may have

    @property
    def min_idle(self) -> int:
        """Sessions of a worker that nothing was asked of."""
        return int(self._values["--min-idle"])

    @property
    def most_sessions(self) -> int:
        """Sessions that a worker may have at one time."""
        return int(self._values["--pool-size"]) + int(self._values["--max-overflow"]) + self.second_pool

    @property
    def options(self) -> tuple[str, ...]:
        """Its policy as options of a command line."""
        return (*(word for pair in self._values.items() for word in pair), *filter(_is_flag, self.policy))

    @property
    def _values(self) -> dict[str, str]:
        pairs = [word for word in self.policy if not _is_flag(word)]
        return POLICY | dict(zip(pairs[::2], pairs[1::2], strict=True))


def _is_flag(word: str) -> bool:
    return word.startswith(("--no-", "--fail-"))


# Small pools start fast; timeouts are long where they must not matter.
POLICY: dict[str, str] = {
    "--pool-size": "3",
    "--max-overflow": "0",
    "--min-idle": "1",
    "--pool-timeout": "20",
    "--drain-timeout": "20",
    "--cancel-timeout": "5",
    "--dispose-timeout": "5",
}

# A drain that times out soon, and a patience with what is cut that is long enough never to matter.
SHORT_DRAIN = ("--drain-timeout", "0.4")
SHORT_DRAIN_BAND = {Phase.DRAINING: Band(0.39, 1.4)}

CROWD = 40  # more than a server takes in one turn of its loop


def _order(identity: str) -> bytes:
    return json.dumps({"id": identity, "item": "notebook", "quantity": 2}).encode()


SCENARIOS: tuple[Scenario, ...] = (
    # --- nothing in the way ---
    Scenario(
        name="idle",
        shows="SIGTERM after a few answered requests, with nothing in flight",
        databases=BOTH,
        steps=(
            Ask("a", "/db-test"),
            Ask("b", "/"),
            Ask("c", "/no-such-route"),
            Ask("d", "/db-test", method="POST"),
            Ask("e", "/orders", method="POST", body=_order("e")),
            Ask("f", "/orders", method="POST", body=_order("e")),
            Sessions(1),
            SIGTERM,
        ),
        expect=Expect(answers={"a": 200, "b": 200, "c": 404, "d": 405, "e": 201, "f": 200}, orders=("e",)),
    ),
    Scenario(
        name="signal-before-the-first-request",
        shows="SIGTERM to a service that was never asked anything",
        databases=BOTH,
        steps=(Sessions(1), SIGTERM),
    ),
    Scenario(
        name="signal-during-start",
        shows="SIGTERM while the pool is open and the application still prepares itself",
        app="create_slow_start",
        starts_listening=False,
        workers=(1,),
        steps=(AtLatch("start"), SIGTERM, Open(("start",))),
    ),
    Scenario(
        name="sigint",
        shows="SIGINT means what SIGTERM means",
        steps=(Start("slow", "/query?latch=q"), AtQuery("q"), SIGINT, Draining(), Open(("q",))),
        expect=Expect(answers={"slow": 200}),
    ),
    # --- requests in flight ---
    Scenario(
        name="slow-request",
        shows="one request is in a query at the signal, and is answered",
        databases=BOTH,
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Sessions(1),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("slow",)),
        ),
        expect=Expect(answers={"slow": 200}),
    ),
    Scenario(
        name="many-slow-requests",
        shows="several requests are in queries at the signal, and all are answered",
        policy=("--pool-size", "6"),
        steps=(
            *(Start(f"slow{number}", "/query?latch=q") for number in range(6)),
            AtQuery("q", 6),
            Sessions(6),
            SIGTERM,
            Draining(),
            Open(("q",)),
        ),
        expect=Expect(answers={f"slow{number}": 200 for number in range(6)}),
    ),
    Scenario(
        name="slow-requests-on-both-workers",
        shows="each worker drains its own requests, the later one ends last",
        workers=(2,),
        steps=(
            Start("first", "/query?latch=a"),
            Start("second", "/query?latch=b", worker=1),
            AtQuery("a"),
            AtQuery("b"),
            SIGTERM,
            Draining(),
            Open(("b",)),
            Answered(("second",)),
            Open(("a",)),
        ),
        expect=Expect(answers={"first": 200, "second": 200}),
    ),
    Scenario(
        name="requests-during-the-drain",
        shows="new requests are refused with 503 while one is in flight; probes and status are answered",
        databases=BOTH,
        workers=(1,),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Ask("refused1", "/db-test"),
            Ask("refused2", "/orders", method="POST", body=_order("late")),
            Ask("refused3", "/no-such-route"),
            Ask("live", "/livez"),
            Ask("ready", "/readyz"),
            Ask("status", "/pool-status"),
            Open(("q",)),
        ),
        expect=Expect(
            answers={
                "slow": 200,
                "refused1": 503,
                "refused2": 503,
                "refused3": 503,
                "live": 200,
                "ready": 503,
                "status": 200,
            },
            refused=3,
        ),
    ),
    Scenario(
        name="refusals-by-workers",
        shows="with one of two workers still draining, what comes on kept and on new connections is refused",
        workers=(2,),
        steps=(
            Connect("kept"),
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            OthersEnded(),
            Ask("refused1", "/db-test", on="kept"),
            Ask("refused2", "/db-test"),
            Ask("refused3", "/orders", method="POST", body=_order("late")),
            Open(("q",)),
        ),
        expect=Expect(answers={"slow": 200, "refused1": 503, "refused2": 503, "refused3": 503}, refused=3),
    ),
    Scenario(
        name="kept-connections",
        shows="a kept connection is told to close with its next answer; an idle one is closed at the end, not reset",
        workers=(1,),
        steps=(
            Connect("used"),
            Connect("idle"),
            Ask("before", "/db-test", on="used"),
            Ask("other", "/db-test", on="idle"),
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Ask("refused", "/db-test", on="used"),
            Open(("q",)),
        ),
        expect=Expect(answers={"before": 200, "other": 200, "slow": 200, "refused": 503}, refused=1),
    ),
    Scenario(
        name="late-crowd",
        shows="a crowd that the kernel still queues when the pool has been closed is answered 503, and none is reset",
        app="create_slow_stop",
        workers=(1,),
        steps=(
            SIGTERM,
            AtLatch("stop"),
            Pause(),
            *(Start(f"late{number}", "/query") for number in range(CROWD)),
            Open(("stop",)),
            Resume(),
            Answered(tuple(f"late{number}" for number in range(CROWD))),
        ),
        expect=Expect(answers={f"late{number}": 503 for number in range(CROWD)}, refused=CROWD),
    ),
    Scenario(
        name="checkout-during-the-drain",
        shows="a request in flight may still check a connection out, and open one for it",
        app="create_bare",
        policy=("--min-idle", "0"),
        steps=(
            Start("late", "/late-checkout?latch=l"),
            AtLatch("l"),
            Sessions(0),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Answered(("late",)),
        ),
        expect=Expect(answers={"late": 200}),
    ),
    Scenario(
        name="longer-than-the-drain-timeout",
        shows="a query that overstays is cancelled on the server, its client answered 503",
        databases=BOTH,
        policy=SHORT_DRAIN,
        steps=(Start("slow", "/query?latch=q"), AtQuery("q"), SIGTERM, Answered(("slow",))),
        expect=Expect(exit_code=3, outcome="cut", answers={"slow": 503}, cut=1, phases=SHORT_DRAIN_BAND),
    ),
    Scenario(
        name="no-drain-timeout",
        shows="with a drain timeout of 0 what is in flight is cancelled at once",
        policy=("--drain-timeout", "0"),
        steps=(Start("slow", "/query?latch=q"), AtQuery("q"), SIGTERM, Answered(("slow",))),
        expect=Expect(exit_code=3, outcome="cut", answers={"slow": 503}, cut=1, phases={Phase.DRAINING: AT_ONCE}),
    ),
    Scenario(
        name="cut-while-holding-a-connection",
        shows="a request that overstays without running a query, holding a connection, is cut",
        policy=(*SHORT_DRAIN, "--cancel-timeout", "0.6"),
        steps=(Start("held", "/hold?latch=l"), AtLatch("l"), SIGTERM),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            cut=1,
            outstanding=None,
            after_last_act=Band(0.4, 3.0),
            phases={**SHORT_DRAIN_BAND, Phase.CANCELLING: Band(0.0, 1.6)},
        ),
    ),
    Scenario(
        name="one-cut-one-finished",
        shows="of two requests one ends in time and one is cut",
        policy=("--drain-timeout", "1.0"),
        steps=(
            Start("quick", "/query?latch=a"),
            Start("slow", "/query?latch=b"),
            AtQuery("a"),
            AtQuery("b"),
            SIGTERM,
            Draining(),
            Open(("a",)),
            Answered(("quick", "slow")),
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"quick": 200, "slow": 503},
            cut=1,
            after_last_act=Band(0.5, 2.5),
            phases={Phase.DRAINING: Band(0.99, 2.0)},
        ),
    ),
    Scenario(
        name="handler-raises",
        shows="a handler that raises is answered 500 and leaves no connection behind, before and during the drain",
        databases=BOTH,
        steps=(
            Ask("before", "/fail"),
            Start("during", "/fail?latch=l"),
            AtLatch("l"),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Answered(("during",)),
        ),
        expect=Expect(answers={"before": 500, "during": 500}),
    ),
    Scenario(
        name="client-disconnects",
        shows="a client leaves while its request is in a query: the request still ends in order",
        steps=(
            Start("gone", "/query?latch=q"),
            AtQuery("q"),
            Disconnect("gone"),
            SIGTERM,
            Draining(),
            Open(("q",)),
        ),
        expect=Expect(answers={"gone": None}),
    ),
    Scenario(
        name="client-disconnects-during-the-drain",
        shows="the same, leaving after the signal",
        steps=(
            Start("gone", "/query?latch=q"),
            Start("stays", "/query?latch=q"),
            AtQuery("q", 2),
            SIGTERM,
            Draining(),
            Disconnect("gone"),
            Open(("q",)),
        ),
        expect=Expect(answers={"gone": None, "stays": 200}),
    ),
    Scenario(
        name="stream-finishes",
        shows="a streaming response goes on during the drain, to its end",
        databases=BOTH,
        steps=(
            Start("stream", "/stream?latch=q"),
            FirstBytes("stream"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("stream",)),
        ),
        expect=Expect(answers={"stream": 200}),
    ),
    Scenario(
        name="stream-is-cut",
        shows="a streaming response that overstays is broken off, and counted as cut",
        policy=SHORT_DRAIN,
        steps=(Start("stream", "/stream?latch=q"), FirstBytes("stream"), AtQuery("q"), SIGTERM, Answered(("stream",))),
        expect=Expect(exit_code=3, outcome="cut", answers={"stream": None}, cut=1, phases=SHORT_DRAIN_BAND),
    ),
    # --- transactions ---
    Scenario(
        name="transaction-commits",
        shows="a transaction that is open at the signal commits, because its request finishes",
        databases=BOTH,
        steps=(
            Start("order", "/reserve?id=kept&latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("order",)),
        ),
        expect=Expect(answers={"order": 201}, orders=("kept",)),
    ),
    Scenario(
        name="transaction-rolls-back",
        shows="a transaction that is open at the signal rolls back, because its request is cut",
        databases=BOTH,
        policy=SHORT_DRAIN,
        steps=(Start("order", "/reserve?id=lost&latch=q"), AtQuery("q"), SIGTERM, Answered(("order",))),
        expect=Expect(exit_code=3, outcome="cut", answers={"order": 503}, cut=1, phases=SHORT_DRAIN_BAND),
    ),
    # --- the pool ---
    Scenario(
        name="waiters-finish",
        shows="requests that wait for a connection at the signal get it and are answered",
        policy=("--pool-size", "1"),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Start("waits1", "/query"),
            Admitted(("waits1",)),
            Start("waits2", "/query"),
            Admitted(("waits2",)),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("slow", "waits1", "waits2")),
        ),
        expect=Expect(answers={"slow": 200, "waits1": 200, "waits2": 200}),
    ),
    Scenario(
        name="waiters-are-cut",
        shows="requests that still wait for a connection at the deadline are woken and answered 503",
        policy=("--pool-size", "1", *SHORT_DRAIN),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Start("waits1", "/query"),
            Start("waits2", "/query"),
            Admitted(("waits1", "waits2")),
            SIGTERM,
            Answered(("slow", "waits1", "waits2")),
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"slow": 503, "waits1": 503, "waits2": 503},
            cut=3,
            phases=SHORT_DRAIN_BAND,
        ),
    ),
    Scenario(
        name="pool-timeout",
        shows="a request that waits too long for a connection is answered 503, before and during the drain",
        policy=("--pool-size", "1", "--pool-timeout", "0.3"),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Ask("before", "/query"),
            Start("during", "/late-checkout?latch=l"),
            AtLatch("l"),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Answered(("during",)),
            Open(("q",)),
        ),
        expect=Expect(answers={"slow": 200, "before": 503, "during": 503}),
    ),
    Scenario(
        name="overflow-in-use",
        shows="overflow connections are in use at the signal and close when they come back",
        policy=("--pool-size", "1", "--max-overflow", "2"),
        steps=(
            Start("a", "/query?latch=q"),
            Start("b", "/query?latch=q"),
            Start("c", "/query?latch=q"),
            AtQuery("q", 3),
            Sessions(3),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("a", "b", "c")),
        ),
        expect=Expect(answers={"a": 200, "b": 200, "c": 200}),
    ),
    Scenario(
        name="empty-pool",
        shows="a pool that holds no connection is closed",
        app="create_bare",
        policy=("--min-idle", "0"),
        steps=(Sessions(0), SIGTERM),
    ),
    Scenario(
        name="full-pool",
        shows="a pool filled at the start is emptied at the end",
        policy=("--pool-size", "5", "--min-idle", "5"),
        steps=(Sessions(5), Ask("a", "/db-test"), SIGTERM),
        expect=Expect(answers={"a": 200}),
    ),
    Scenario(
        name="min-idle-0",
        shows="connections are opened by the first request, and closed at the end",
        app="create_bare",
        databases=BOTH,
        policy=("--min-idle", "0"),
        steps=(Sessions(0), Ask("a", "/query"), Sessions(1), SIGTERM),
        expect=Expect(answers={"a": 200}),
    ),
    Scenario(
        name="recycle-due",
        shows="connections older than the recycle time are replaced at checkout, also during the drain",
        policy=("--pool-recycle", "0.001"),
        steady_sessions=False,
        steps=(
            Ask("a", "/query"),
            Start("late", "/late-checkout?latch=l"),
            AtLatch("l"),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Answered(("late",)),
        ),
        expect=Expect(answers={"a": 200, "late": 200}),
    ),
    Scenario(
        name="pre-ping-replaces-a-dead-connection",
        shows="connections that died in the pool are noticed at checkout and replaced",
        steady_sessions=False,
        steps=(EndSessions(), Ask("a", "/query"), Sessions(1), SIGTERM),
        expect=Expect(answers={"a": 200}),
        workers=(1,),
    ),
    Scenario(
        name="dead-connection-without-pre-ping",
        shows="without pre-ping the first request fails with 503, the next is served",
        policy=("--no-pre-ping",),
        steady_sessions=False,
        steps=(EndSessions(), Ask("a", "/query"), Ask("b", "/query"), SIGTERM),
        expect=Expect(answers={"a": 503, "b": 200}),
        workers=(1,),
    ),
    Scenario(
        name="dead-connections-at-the-end",
        shows="connections that died in the pool do not disturb its closing",
        policy=("--pool-size", "3", "--min-idle", "3"),
        steps=(EndSessions(), Sessions(0), SIGTERM),
        workers=(1,),
    ),
    Scenario(
        name="dispose-timeout",
        shows="closing the pool hangs: it is abandoned at the deadline, and the exit code says so",
        app="create_slow_close",
        policy=("--dispose-timeout", "0.5"),
        workers=(1,),
        steps=(Ask("a", "/query"), SIGTERM, AtLatch("close")),
        expect=Expect(
            exit_code=4,
            outcome="dispose_failed",
            answers={"a": 200},
            abandoned=1,
            after_last_act=Band(0.3, 2.0),
            phases={Phase.DISPOSING: Band(0.49, 1.5)},
        ),
    ),
    Scenario(
        name="two-engines",
        shows="a request holds a connection of each of two engines; both pools are drained and closed",
        app="create_with_second_engine",
        second_pool=2,
        workers=(1,),
        steps=(
            Start("first", "/query?latch=q"),
            Start("second", "/second?latch=q"),
            AtQuery("q", 2),
            Sessions(2),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("first", "second")),
        ),
        expect=Expect(answers={"first": 200, "second": 200}),
    ),
    Scenario(
        name="two-engines-leak",
        shows="a leak of the second engine is named and reclaimed as well",
        app="create_with_second_engine",
        second_pool=2,
        workers=(1,),
        steps=(Ask("leak", "/second-leak"), Ask("other", "/db-test-leak"), SIGTERM),
        expect=Expect(
            answers={"leak": 200, "other": 200},
            leaks={"unreturned": 2},
            outstanding=("GET /db-test-leak", "GET /second-leak"),
        ),
    ),
    # --- leaks ---
    Scenario(
        name="leak-unreturned",
        shows="two requests end without returning their connections: named, reported, reclaimed",
        databases=BOTH,
        steps=(
            Ask("leak1", "/db-test-leak"),
            Ask("leak2", "/db-test-leak"),
            Event("leak", 2, rule="unreturned"),
            Sessions(2),
            SIGTERM,
        ),
        expect=Expect(
            answers={"leak1": 200, "leak2": 200},
            leaks={"unreturned": 2},
            outstanding=("GET /db-test-leak", "GET /db-test-leak"),
        ),
    ),
    Scenario(
        name="leak-collected",
        shows="a leaked connection that the garbage collector finds is reported and discarded, not pooled",
        databases=BOTH,
        steady_sessions=False,
        steps=(
            Ask("leak", "/db-test-leak?collect=1"),
            Event("leak", rule="collected"),
            Ask("next", "/query"),
            SIGTERM,
        ),
        expect=Expect(answers={"leak": 200, "next": 200}, leaks={"collected": 1}),
    ),
    Scenario(
        name="leak-overdue",
        shows="a connection held longer than the leak age is reported, and its return too",
        policy=("--leak-age", "0.2"),
        steps=(
            Start("late", "/hold?latch=l"),
            AtLatch("l"),
            Event("leak", rule="overdue"),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Answered(("late",)),
        ),
        expect=Expect(answers={"late": 200}, leaks={"overdue": 1}),
    ),
    Scenario(
        name="leak-threshold",
        shows="the coarse rule: so many connections are out that the status page calls it a leak",
        policy=("--leak-threshold", "2"),
        workers=(1,),
        steps=(
            Ask("leak1", "/db-test-leak"),
            Ask("below", "/pool-status"),
            Ask("leak2", "/db-test-leak"),
            Event("leak", 2, rule="unreturned"),
            Ask("reached", "/pool-status"),
            SIGTERM,
        ),
        expect=Expect(
            answers={"leak1": 200, "below": 200, "leak2": 200, "reached": 200},
            leaks={"unreturned": 2, "threshold": 1},
            outstanding=("GET /db-test-leak", "GET /db-test-leak"),
        ),
    ),
    Scenario(
        name="leak-and-slow-request",
        shows="a leak does not hold up the drain, a slow request does; both end in order",
        steps=(
            Ask("leak", "/db-test-leak"),
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Sessions(2),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("slow",)),
        ),
        expect=Expect(answers={"leak": 200, "slow": 200}, leaks={"unreturned": 1}, outstanding=("GET /db-test-leak",)),
    ),
    Scenario(
        name="leak-and-cut-request",
        shows="a leak and a request that is cut: the cut one is in the report, the leak reclaimed, exit code 3",
        policy=SHORT_DRAIN,
        steps=(
            Ask("leak", "/db-test-leak"),
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Answered(("slow",)),
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"leak": 200, "slow": 503},
            cut=1,
            leaks={"unreturned": 1},
            outstanding=("GET /db-test-leak",),
            phases=SHORT_DRAIN_BAND,
        ),
    ),
    Scenario(
        name="fail-on-leak",
        shows="with --fail-on-leak a leak is the exit code",
        databases=BOTH,
        policy=("--fail-on-leak",),
        steps=(Ask("leak", "/db-test-leak"), Event("leak"), SIGTERM),
        expect=Expect(
            exit_code=5,
            outcome="leaked",
            answers={"leak": 200},
            leaks={"unreturned": 1},
            outstanding=("GET /db-test-leak",),
        ),
    ),
    Scenario(
        name="returned-late",
        shows="a connection is returned after its request, before the signal: reported as returned, nothing is left",
        steps=(
            Ask("keep", "/keep"),
            Event("leak", rule="unreturned"),
            Ask("return", "/return"),
            Event("leak_returned"),
            SIGTERM,
        ),
        expect=Expect(answers={"keep": 200, "return": 200}, leaks={"unreturned": 1}),
    ),
    Scenario(
        name="returned-during-the-drain",
        shows="the same, returned by a request that the drain waits for",
        steps=(
            Ask("keep", "/keep"),
            Event("leak", rule="unreturned"),
            Start("return", "/return?latch=l"),
            AtLatch("l"),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Answered(("return",)),
        ),
        expect=Expect(answers={"keep": 200, "return": 200}, leaks={"unreturned": 1}),
    ),
    # --- background tasks ---
    Scenario(
        name="background-task-holds",
        shows="a task that outlives its request still holds a connection at the end: reclaimed by name, no leak",
        steps=(Ask("a", "/background?latch=l"), AtLatch("l"), SIGTERM),
        expect=Expect(answers={"a": 200}, outstanding=("the nightly report",)),
    ),
    Scenario(
        name="background-task-finishes",
        shows="a task that outlives its request returns its connection during the drain",
        steps=(
            Ask("a", "/background?latch=l"),
            AtLatch("l"),
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Open(("l",)),
            Event("checkin", request=""),
            Open(("q",)),
            Answered(("slow",)),
        ),
        expect=Expect(answers={"a": 200, "slow": 200}),
    ),
    Scenario(
        name="work-after-the-response",
        shows="work that belongs to a request but follows its answer is waited for",
        steps=(
            Start("a", "/after-response?latch=l"),
            AtLatch("l"),
            Answered(("a",)),
            SIGTERM,
            Draining(),
            Open(("l",)),
        ),
        expect=Expect(answers={"a": 200}),
    ),
    # --- announcing and hurrying ---
    Scenario(
        name="announce-period",
        shows="while announcing, /readyz says no and requests are served; refusing begins afterwards",
        policy=("--announce-period", "1.0"),
        workers=(1,),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Ask("ready", "/readyz"),
            SIGTERM,
            Entered(Phase.ANNOUNCING),
            Ask("unready", "/readyz"),
            Ask("served", "/query"),
            Draining(),
            Ask("refused", "/query"),
            Open(("q",)),
        ),
        expect=Expect(
            answers={"slow": 200, "ready": 200, "unready": 503, "served": 200, "refused": 503},
            refused=1,
            phases={Phase.ANNOUNCING: Band(0.99, 2.0)},
        ),
    ),
    Scenario(
        name="second-signal",
        shows="a second signal ends the waiting: what is in flight is cut, the pool still closed",
        databases=BOTH,
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            OthersEnded(),
            SIGTERM,
            Answered(("slow",)),
        ),
        expect=Expect(
            exit_code=3, outcome="cut", hurried=True, answers={"slow": 503}, cut=1, phases={Phase.DRAINING: AT_ONCE}
        ),
    ),
    Scenario(
        name="second-signal-on-both-workers",
        shows="the master passes a second signal on: each worker cuts its own requests",
        workers=(2,),
        steps=(
            Start("first", "/query?latch=q"),
            Start("second", "/query?latch=q", worker=1),
            AtQuery("q", 2),
            SIGTERM,
            Draining(),
            SIGTERM,
            Answered(("first", "second")),
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            hurried=True,
            answers={"first": 503, "second": 503},
            cut=2,
            phases={Phase.DRAINING: AT_ONCE},
        ),
    ),
    Scenario(
        name="second-signal-while-announcing",
        shows="a second signal ends the announcement, too",
        policy=("--announce-period", "20"),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Entered(Phase.ANNOUNCING),
            SIGINT,
            Answered(("slow",)),
        ),
        expect=Expect(exit_code=3, outcome="cut", hurried=True, answers={"slow": 503}, cut=1),
    ),
    Scenario(
        name="second-signal-with-a-leak",
        shows="hurried, with a leak: the leak is still named and reclaimed",
        steps=(
            Ask("leak", "/db-test-leak"),
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            OthersEnded(),
            SIGTERM,
            Answered(("slow",)),
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            hurried=True,
            answers={"leak": 200, "slow": 503},
            cut=1,
            leaks={"unreturned": 1},
            outstanding=("GET /db-test-leak",),
        ),
    ),
    Scenario(
        name="third-signal",
        shows="a third signal ends the process at once, with 128 + its number",
        steps=(
            Start("held", "/hold?latch=l"),
            AtLatch("l"),
            SIGTERM,
            Draining(),
            OthersEnded(),
            SIGTERM,
            Entered(Phase.CANCELLING),
            SIGTERM,
        ),
        expect=Expect(exit_code=143, outcome=None, answers={"held": None}),
    ),
)

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
