"""What happens to the database before, during and at the end of a shutdown."""

from __future__ import annotations

from pooldrain.phases import Phase
from pooldrain_compare.harness.faults.catalogue import LATENCY
from pooldrain_compare.parity.scenarios.vocabulary import (
    SHORT_DRAIN,
    SHORT_DRAIN_BAND,
    SIGTERM,
    Admitted,
    Answered,
    Ask,
    AtLatch,
    AtQuery,
    Band,
    Draining,
    Event,
    Expect,
    Fault,
    Open,
    Scenario,
    Start,
    Step,
    TakeBack,
    order,
)

_ONE = (1,)  # worker: what a fault does to one it does to each
_HUNG = (*SHORT_DRAIN, "--cancel-timeout", "0.8")
_IN_TEST = "a request that hangs in the test of its connection is cut"
_IN_STATEMENT = "a request whose connection was used just now hangs in its statement, and is cut"
_HAS_IT = Event("checkout", request="b")
_HUNG_BANDS = {**SHORT_DRAIN_BAND, Phase.CANCELLING: Band(0.0, 1.8)}


def _before(fault: str, shows: str, answer: int) -> Scenario:
    """A fault that is over at once strikes an idle service, which is asked again."""
    return Scenario(
        name=f"{fault}-before",
        shows=shows,
        workers=_ONE,
        steady_sessions=False,
        steps=(Ask("a", "/query"), Fault(fault), TakeBack(), Ask("b", "/query"), SIGTERM),
        expect=Expect(answers={"a": 200, "b": answer}),
    )


def _out_of_reach(fault: str, shows: str) -> Scenario:
    """A database that is out of reach for a while."""
    return Scenario(
        name=f"{fault}-before",
        shows=shows,
        workers=_ONE,
        steady_sessions=False,
        steps=(
            Ask("a", "/query"),
            Fault(fault),
            Ask("b", "/query"),
            TakeBack(),
            Ask("c", "/query"),
            SIGTERM,
        ),
        expect=Expect(answers={"a": 200, "b": 503, "c": 200}),
    )


def _hanging(fault: str, name: str, shows: str, untested: str, hangs: Step) -> Scenario:
    """A request hangs that is the first to use a connection after the fault."""
    return Scenario(
        name=f"{fault}-{name}",
        shows=shows,
        workers=_ONE,
        steady_sessions=False,
        policy=(*_HUNG, "--pre-ping-idle", untested),
        steps=(Ask("a", "/query"), Fault(fault), Start("b", "/query"), hangs, SIGTERM, Answered(("b",))),
        expect=Expect(
            exit_code=3, outcome="cut", answers={"a": 200, "b": 504}, cut=1, phases=_HUNG_BANDS, after_last_act=_END
        ),
    )


_END = Band(0.0, 3.0)
_IN_QUERY: tuple[Step, ...] = (Start("slow", "/query?latch=q"), AtQuery("q"), SIGTERM, Draining())


def _fails(fault: str, shows: str) -> Scenario:
    """A transaction is under way when the fault strikes in the drain: it fails, and the drain is complete."""
    return Scenario(
        name=f"{fault}-during",
        shows=shows,
        workers=_ONE,
        steps=(
            Start("order", "/reserve?id=lost&latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Fault(fault),
            Answered(("order",)),
        ),
        expect=Expect(answers={"order": 504}),
    )


def _hangs(fault: str, shows: str) -> Scenario:
    """A statement hangs that no cancellation reaches."""
    return Scenario(
        name=f"{fault}-during",
        shows=shows,
        workers=_ONE,
        policy=_HUNG,
        steps=(*_IN_QUERY, Fault(fault), Answered(("slow",))),
        expect=Expect(
            exit_code=3, outcome="cut", answers={"slow": 504}, cut=1, phases=_HUNG_BANDS, after_last_act=_END
        ),
    )


def _closing(fault: str, shows: str) -> Scenario:
    """The database goes while the pool is being closed, with a leaked connection to be reclaimed."""
    return Scenario(
        name=f"{fault}-at-the-end",
        shows=shows,
        workers=_ONE,
        app="create_slow_close",
        policy=("--min-idle", "3"),
        steps=(Ask("leak", "/db-test-leak"), Event("leak"), SIGTERM, AtLatch("close"), Fault(fault), Open(("close",))),
        expect=Expect(answers={"leak": 200}, leaks={"unreturned": 1}, outstanding=("GET /db-test-leak",)),
    )


FAULTS: tuple[Scenario, ...] = (
    # --- before the signal ---
    _before("restarted", "the database restarts: the next request gets a new connection", 200),
    _before("crashed", "a crash ends all sessions, and the database recovers: the next request is served", 200),
    _before("reset", "every connection is reset: the next request gets a new one", 200),
    _before("idle-killed", "the database ends idle sessions: the next request gets a new connection", 200),
    _before("idle-cut", "idle connections are cut on the way: the next request gets a new one", 200),
    _out_of_reach("killed", "the database is dead for a while: requests are answered 503 until it is back"),
    _out_of_reach("refused", "the database refuses connections for a while: requests are answered 503 meanwhile"),
    _hanging("frozen", "before", f"the database stands still: {_IN_TEST}", "0", Admitted(("b",))),
    _hanging("black-hole", "before", f"nothing reaches the database any more: {_IN_TEST}", "0", Admitted(("b",))),
    _hanging("frozen", "just-after-use", f"the database stands still: {_IN_STATEMENT}", "60", _HAS_IT),
    _hanging("black-hole", "just-after-use", f"a black hole: {_IN_STATEMENT}", "60", _HAS_IT),
    Scenario(
        name="too-many-before",
        shows="the database takes no more connections: a request that needs a new one waits for one that there is",
        workers=_ONE,
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Fault("too-many"),
            Start("a", "/query"),
            Event("connections_refused"),
            Open(("q",)),
            Answered(("slow", "a")),
            TakeBack(),
            Ask("b", "/query"),
            SIGTERM,
        ),
        expect=Expect(answers={"slow": 200, "a": 200, "b": 200}),
    ),
    Scenario(
        name="too-many-in-vain",
        shows="the database takes no more connections, and none becomes free: a request that needs a new one gets 503",
        workers=_ONE,
        policy=("--pool-timeout", "0.5"),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Fault("too-many"),
            Ask("a", "/query"),
            TakeBack(),
            Ask("b", "/query"),
            SIGTERM,
            Draining(),
            Open(("q",)),
        ),
        expect=Expect(answers={"slow": 200, "a": 503, "b": 200}),
    ),
    Scenario(
        name="slow-before",
        shows=f"the database answers {LATENCY:g} s late: what is in flight is waited for",
        workers=_ONE,
        policy=("--no-pre-ping",),
        steps=(
            Ask("a", "/query"),
            Fault("slow"),
            Start("b", "/query"),
            Event("checkout", request="b"),
            SIGTERM,
            Answered(("b",)),
        ),
        expect=Expect(answers={"a": 200, "b": 200}, after_last_act=Band(2 * LATENCY - 0.1, 3 * LATENCY + 1.5)),
    ),
    Scenario(
        name="read-only-before",
        shows="a failover to a database that takes no writes: orders fail, reads are served, until it is undone",
        workers=_ONE,
        steady_sessions=False,
        steps=(
            Ask("a", "/orders", method="POST", body=order("a")),
            Fault("read-only"),
            Ask("b", "/orders", method="POST", body=order("b")),
            Ask("read", "/query"),
            TakeBack(),
            Ask("c", "/orders", method="POST", body=order("c")),
            SIGTERM,
        ),
        expect=Expect(answers={"a": 201, "b": 504, "read": 200, "c": 201}, orders=("a", "c")),
    ),
    # --- during the drain ---
    _fails("restarted", "the database restarts under a request of the drain: it is answered 504"),
    _fails("killed", "the database dies under a request of the drain: it is answered 504"),
    _fails("crashed", "the database crashes under a request of the drain: it is answered 504"),
    _fails("refused", "the database becomes unreachable under a request of the drain: it is answered 504"),
    _fails("reset", "the connection of a request of the drain is reset in mid-query: it is answered 504"),
    _fails("read-only", "a failover under a request of the drain: it is answered 504"),
    _hangs("frozen", "the database stands still under a request of the drain: it is cut, and answered 504"),
    _hangs("black-hole", "the answer to a request of the drain gets lost on the way: it is cut, and answered 504"),
    Scenario(
        name="too-many-during",
        shows="the database takes no more connections: a request of the drain waits for one of those that there are",
        workers=_ONE,
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Start("late", "/late-checkout?latch=l"),
            AtLatch("l"),
            SIGTERM,
            Draining(),
            Fault("too-many"),
            Open(("l",)),
            Event("connections_refused"),
            Open(("q",)),
            Answered(("slow", "late")),
        ),
        expect=Expect(answers={"slow": 200, "late": 200}),
    ),
    Scenario(
        name="slow-during",
        shows=f"the database answers {LATENCY:g} s late during the drain: the request is waited for",
        workers=_ONE,
        steps=(*_IN_QUERY, Fault("slow"), Open(("q",)), Answered(("slow",))),
        expect=Expect(answers={"slow": 200}, after_last_act=Band(2 * LATENCY - 0.1, 3 * LATENCY + 1.5)),
    ),
    Scenario(
        name="slow-and-cut",
        shows=f"a statement is cancelled on a database that answers {LATENCY:g} s late",
        workers=_ONE,
        policy=SHORT_DRAIN,
        steps=(*_IN_QUERY, Fault("slow"), Answered(("slow",))),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"slow": 504},
            cut=1,
            phases={**SHORT_DRAIN_BAND, Phase.CANCELLING: Band(0.0, 5.5)},
            after_last_act=Band(0.0, 7.0),
        ),
    ),
    Scenario(
        name="idle-killed-during",
        shows="the database ends the idle sessions during the drain: the request in flight is not disturbed",
        workers=_ONE,
        policy=("--min-idle", "3"),
        steps=(*_IN_QUERY, Fault("idle-killed"), Open(("q",)), Answered(("slow",))),
        expect=Expect(answers={"slow": 200}),
    ),
    # --- at the end ---
    _closing("killed", "the database dies while the pool is being closed: it is closed all the same"),
    _closing("frozen", "the database stands still while the pool is being closed: it is closed all the same"),
    _closing("black-hole", "nothing reaches the database while the pool is being closed: it is closed all the same"),
    Scenario(
        name="nothing-closes",
        shows="no connection can be closed, leaked or idle: they share one dispose timeout, and are abandoned",
        workers=_ONE,
        app="create_slow_close",
        policy=("--pool-size", "6", "--min-idle", "6", "--dispose-timeout", "0.8"),
        steps=(
            Ask("leak1", "/db-test-leak"),
            Ask("leak2", "/db-test-leak"),
            Event("leak", 2),
            SIGTERM,
            AtLatch("close"),
        ),
        expect=Expect(
            exit_code=4,
            outcome="dispose_failed",
            answers={"leak1": 200, "leak2": 200},
            leaks={"unreturned": 2},
            outstanding=None,
            abandoned=6,
            phases={Phase.RECLAIMING: Band(0.0, 1.8), Phase.DISPOSING: Band(0.0, 1.8)},
            after_last_act=Band(0.3, 2.5),
        ),
    ),
)
