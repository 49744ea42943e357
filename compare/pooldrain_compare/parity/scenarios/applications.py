"""Shutdowns of applications that do more than answer: work outside requests, an end, engines, errors of their own."""

from __future__ import annotations

from pooldrain.phases import Phase
from pooldrain_compare.parity.scenarios.vocabulary import (
    SHORT_DRAIN,
    SHORT_DRAIN_BAND,
    SIGTERM,
    Answered,
    Ask,
    AtLatch,
    AtQuery,
    Band,
    Draining,
    EndSessions,
    Event,
    Expect,
    Open,
    Scenario,
    Start,
)

FULL = 40  # requests, as many as a threaded worker has threads

APPLICATIONS: tuple[Scenario, ...] = (
    # --- work outside requests ---
    Scenario(
        name="background-work-is-waited-for",
        shows="a transaction outside any request is in a statement at the signal: waited for, and committed",
        workers=(1,),
        steps=(
            Ask("a", "/outside?id=nightly&latch=q"),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Ask("refused", "/db-test"),
            Open(("q",)),
        ),
        expect=Expect(answers={"a": 200, "refused": 503}, refused=1, orders=("nightly",)),
    ),
    Scenario(
        name="background-work-overstays",
        shows="a transaction outside any request overstays the drain: cancelled on the server, and named",
        policy=SHORT_DRAIN,
        steps=(Ask("a", "/outside?id=nightly&latch=q"), AtQuery("q"), SIGTERM),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"a": 200},
            cut_work=("outside a request",),
            after_last_act=Band(0.39, 2.4),
            phases=SHORT_DRAIN_BAND,
        ),
    ),
    Scenario(
        name="idle-listener",
        shows="a connection that is held outside any request, in no transaction, holds nothing up and is no leak",
        steps=(Ask("a", "/listener?latch=l"), AtLatch("l"), SIGTERM),
        expect=Expect(answers={"a": 200}, outstanding=("outside a request",)),
    ),
    # --- the application's own end ---
    Scenario(
        name="teardown",
        shows="the application writes at its end, after the last request and with the pool still open",
        app="create_quick_teardown",
        workers=(1,),
        steps=(Start("slow", "/query?latch=q"), AtQuery("q"), SIGTERM, Draining(), Open(("q",)), Answered(("slow",))),
        expect=Expect(answers={"slow": 200}, orders=("shutdown",)),
    ),
    Scenario(
        name="teardown-after-a-cut-request",
        shows="a request is cut; the application's own end gets a connection all the same",
        app="create_quick_teardown",
        policy=SHORT_DRAIN,
        workers=(1,),
        steps=(Start("slow", "/query?latch=q"), AtQuery("q"), SIGTERM),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"slow": 504},
            cut=1,
            orders=("shutdown",),
            after_last_act=Band(0.39, 2.4),
            phases=SHORT_DRAIN_BAND,
        ),
    ),
    Scenario(
        name="teardown-slow",
        shows="the application takes its time to end, within its timeout",
        app="create_slow_teardown",
        workers=(1,),
        steps=(SIGTERM, AtLatch("teardown"), Ask("refused", "/db-test"), Open(("teardown",))),
        expect=Expect(answers={"refused": 503}, refused=1, phases={Phase.TEARDOWN: Band(0.0, 3.0)}),
    ),
    Scenario(
        name="teardown-hangs",
        shows="the application does not end: left to itself at its timeout, and the pool closed all the same",
        app="create_slow_teardown",
        policy=("--teardown-timeout", "0.4"),
        workers=(1,),
        steps=(SIGTERM, AtLatch("teardown")),
        expect=Expect(
            exit_code=4,
            outcome="dispose_failed",
            after_last_act=Band(0.3, 2.4),
            phases={Phase.TEARDOWN: Band(0.39, 1.6)},
        ),
    ),
    Scenario(
        name="teardown-fails",
        shows="a function of the application's end raises: told, the next one runs, the pool is closed",
        app="create_failing_teardown",
        workers=(1,),
        steps=(SIGTERM,),
        expect=Expect(exit_code=4, outcome="dispose_failed", orders=("shutdown",)),
    ),
    # --- engines that the application makes ---
    Scenario(
        name="adopted-engine",
        shows="requests hold connections of our pool and of an engine that the application has made: both are drained",
        app="create_adopted",
        second_pool=2,
        workers=(1,),
        steps=(
            Start("first", "/query?latch=q"),
            Start("second", "/second?latch=q"),
            AtQuery("q", 2),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("first", "second")),
        ),
        expect=Expect(answers={"first": 200, "second": 200}),
    ),
    Scenario(
        name="adopted-engine-leak",
        shows="a leak of an engine that the application has made is named, with the engine's name, and reclaimed",
        app="create_adopted",
        second_pool=2,
        workers=(1,),
        steps=(Ask("leak", "/second-leak"), Event("leak", rule="unreturned"), SIGTERM),
        expect=Expect(answers={"leak": 200}, leaks={"unreturned": 1}, outstanding=("GET /second-leak",)),
    ),
    Scenario(
        name="adopted-engine-cut",
        shows="a query on an engine that the application has made overstays: cancelled on the server",
        app="create_adopted",
        second_pool=2,
        policy=SHORT_DRAIN,
        workers=(1,),
        steps=(Start("slow", "/second?latch=q"), AtQuery("q"), SIGTERM),
        expect=Expect(exit_code=3, outcome="cut", answers={"slow": 504}, cut=1, phases=SHORT_DRAIN_BAND),
    ),
    # --- its probes ---
    Scenario(
        name="probes-under-full-threads",
        shows="every thread waits for a connection or has one; probes are answered, before and in the drain",
        workers=(1,),
        steps=(
            *(Start(f"slow{number}", "/query?latch=q") for number in range(3)),
            AtQuery("q", 3),  # first: or it would be chance which three of all get a connection
            *(Start(f"slow{number}", "/query?latch=q") for number in range(3, FULL)),
            Ask("live", "/livez"),
            Ask("ready", "/readyz"),
            SIGTERM,
            Draining(),
            Ask("live-still", "/livez"),
            Ask("unready", "/readyz"),
            Open(("q",)),
            Answered(tuple(f"slow{number}" for number in range(FULL))),
        ),
        expect=Expect(
            answers={f"slow{number}": 200 for number in range(FULL)}
            | {"live": 200, "ready": 200, "live-still": 200, "unready": 503}
        ),
    ),
    # --- an application that handles no error ---
    Scenario(
        name="escaped-pool-timeout",
        shows="a pool time-out that the application lets through is a 503, its framework's page replaced",
        app="create_plain",
        policy=("--pool-size", "1", "--pool-timeout", "0.1"),
        workers=(1,),
        steps=(
            Start("slow", "/query?latch=q"),
            AtQuery("q"),
            Ask("waits", "/late-checkout"),
            SIGTERM,
            Draining(),
            Open(("q",)),
            Answered(("slow",)),
        ),
        expect=Expect(answers={"slow": 200, "waits": 503}),
    ),
    Scenario(
        name="escaped-lost-connection",
        shows="a connection that is lost in the middle, which the application lets through, is a 504",
        app="create_plain",
        workers=(1,),
        steady_sessions=False,
        steps=(
            Start("lost", "/query?latch=q"),
            AtQuery("q"),
            EndSessions(),
            Answered(("lost",)),
            Ask("b", "/query"),
            SIGTERM,
        ),
        expect=Expect(answers={"lost": 504, "b": 200}),
    ),
)
