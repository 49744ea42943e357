"""Workers that go while their service stays, with a master over two of them.

Worker 0 was started first. A worker that is to go waits for its successor, so whoever waits for the third `listening`
knows that there is one. Worker 0's retirement, its ANNOUNCING, takes as long as the suite holds its requests up.
"""

from __future__ import annotations

import signal

from pooldrain.phases import Phase
from pooldrain_compare.parity.scenarios.vocabulary import (
    AT_ONCE,
    SHORT_DRAIN,
    SIGTERM,
    Answered,
    Ask,
    AtQuery,
    Band,
    Connect,
    Entered,
    Event,
    Expect,
    Open,
    OthersEnded,
    Scenario,
    Send,
    Start,
    WorkerEnded,
)

HELD_UP = {Phase.ANNOUNCING: Band(0.0, 20.0)}

TERM_0 = Send(signal.SIGTERM, worker=0)
HUP = Send(signal.SIGHUP)
REPLACED = Event("listening", 3)
RETIRES = Entered(Phase.ANNOUNCING, workers=1)

WORKERS: tuple[Scenario, ...] = (
    Scenario(
        name="worker-told-to-end",
        shows="SIGTERM to one worker: it answers those whom it has, others take new clients, nobody is refused",
        workers=(2,),
        steady_sessions=False,
        steps=(
            Connect("kept", worker=0),
            Start("slow", "/query?latch=a"),
            AtQuery("a"),
            TERM_0,
            REPLACED,
            RETIRES,
            Ask("on-a-kept-connection", "/db-test", on="kept"),
            Ask("new", "/db-test", worker=2),
            Open(("a",)),
            Answered(("slow",)),
            WorkerEnded(0),
            Ask("later", "/db-test", worker=1),
            SIGTERM,
        ),
        expect=Expect(
            answers={"slow": 200, "on-a-kept-connection": 200, "new": 200, "later": 200},
            phases=HELD_UP,
        ),
    ),
    Scenario(
        name="idle-worker-told-to-end",
        shows="SIGTERM to one worker that has no clients",
        workers=(2,),
        steady_sessions=False,
        steps=(TERM_0, REPLACED, WorkerEnded(0), Ask("later", "/db-test", worker=2), SIGTERM),
        expect=Expect(answers={"later": 200}),
    ),
    Scenario(
        name="idle-clients-of-a-worker-told-to-end",
        shows="SIGTERM to one worker whose clients want nothing: they are disconnected after a while, in order",
        workers=(2,),
        steady_sessions=False,
        steps=(Connect("used", worker=0), Connect("used-too", worker=0), TERM_0, REPLACED, WorkerEnded(0), SIGTERM),
        expect=Expect(phases={Phase.ANNOUNCING: Band(0.0, 6.0)}),
    ),
    Scenario(
        name="hung-worker-told-to-end",
        shows="SIGTERM to one worker with a request that does not end: it is cut after the drain timeout, once",
        workers=(2,),
        steady_sessions=False,
        policy=SHORT_DRAIN,
        steps=(
            Start("stuck", "/query?latch=a"),
            AtQuery("a"),
            TERM_0,
            Answered(("stuck",)),
            WorkerEnded(0),
            Ask("later", "/db-test", worker=2),
            SIGTERM,
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"stuck": 504, "later": 200},
            cut=1,
            phases={Phase.ANNOUNCING: Band(0.0, 1.4), Phase.DRAINING: AT_ONCE},
        ),
    ),
    Scenario(
        name="all-told-to-end-while-one-retires",
        shows="SIGTERM to the service while a worker retires: that one, too, refuses from then on, and new clients too",
        workers=(2,),
        steady_sessions=False,
        steps=(
            Connect("kept", worker=0),
            Start("slow", "/query?latch=a"),
            AtQuery("a"),
            TERM_0,
            REPLACED,
            RETIRES,
            SIGTERM,
            Event("drain_started", 3),
            OthersEnded(),
            Ask("on-a-kept-connection", "/db-test", on="kept"),
            Ask("new", "/db-test"),
            Open(("a",)),
            Answered(("slow",)),
        ),
        expect=Expect(
            answers={"slow": 200, "on-a-kept-connection": 503, "new": 503},
            refused=2,
            phases=HELD_UP,
        ),
    ),
    Scenario(
        name="sighup",
        shows="SIGHUP to the master: every worker is replaced, one by one, and nobody is refused",
        workers=(2,),
        steady_sessions=False,
        steps=(
            Start("slow", "/query?latch=a"),
            AtQuery("a"),
            HUP,
            REPLACED,
            RETIRES,
            Ask("new", "/db-test", worker=2),
            Open(("a",)),
            Answered(("slow",)),
            WorkerEnded(0),
            Event("listening", 4),
            WorkerEnded(1),
            Ask("later", "/db-test", worker=3),
            SIGTERM,
        ),
        expect=Expect(answers={"slow": 200, "new": 200, "later": 200}, phases=HELD_UP),
    ),
    Scenario(
        name="max-requests",
        shows="a worker that has served as many requests as it may is replaced",
        workers=(2,),
        steady_sessions=False,
        policy=("--max-requests", "3"),
        steps=(
            Ask("a", "/db-test"),
            Ask("b", "/"),
            Ask("c", "/no-such-route"),
            REPLACED,
            WorkerEnded(0),
            Ask("later", "/db-test", worker=2),
            SIGTERM,
        ),
        expect=Expect(answers={"a": 200, "b": 200, "c": 404, "later": 200}, phases=HELD_UP),
    ),
    Scenario(
        name="sigquit",
        shows="SIGQUIT, to a single process or to the master of several, does not wait for requests",
        steps=(Start("stuck", "/query?latch=a"), AtQuery("a"), Send(signal.SIGQUIT)),
        expect=Expect(exit_code=3, outcome="cut", hurried=True, answers={"stuck": 504}, cut=1),
    ),
)
