"""Clients that misbehave around the signal: each has a bound, and none delays the others."""

from __future__ import annotations

from pooldrain.phases import Phase
from pooldrain_compare.parity.scenarios.vocabulary import (
    BOTH,
    CROWD,
    SIGTERM,
    Admitted,
    Answered,
    Answering,
    Ask,
    AtLatch,
    AtQuery,
    Band,
    Connect,
    Crowd,
    CrowdLeaves,
    Disconnect,
    Draining,
    Event,
    Expect,
    FewDescriptors,
    Open,
    Scenario,
    Start,
    Take,
    Write,
    order,
    raw,
)

# A drain in which an ordinary request is answered, on a busy machine, too, before the others' time is up.
_DRAIN = ("--drain-timeout", "1.5")
_IN_FULL = {Phase.DRAINING: Band(1.49, 2.5)}
_BY_THEN = Band(0.0, 3.0)  # from the ordinary request's release to the end

_UPLOAD = raw("POST", "/orders", "upload", order("upload"))
_HALF, _REST = _UPLOAD[:-10], _UPLOAD[-10:]

# An ordinary request, to see what the others do to it.
_BEGIN = (Start("ordinary", "/query?latch=q"), AtQuery("q"))
_END = (Open(("q",)), Answered(("ordinary",)))

# As many as there are threads by default.
_BUSY = tuple(f"busy{number}" for number in range(40))
_PROBES = ("livez", "readyz", "pool-status")

CLIENTS: tuple[Scenario, ...] = (
    # --- that send no request, or not all of it ---
    Scenario(
        name="heads-that-never-end",
        shows="connections that are idle, silent, or stuck in a request's head hold nobody up and are closed",
        steps=(
            *(Connect(name) for name in ("idle", "silent", "half", "half-of-a-second")),
            Ask("first", "/db-test", on="idle"),
            Write("half", b"GET /db-test HTTP/1.1\r\nHost: x"),
            Write("half-of-a-second", raw("GET", "/livez", "") + b"GET /db-te"),
            Answering("half-of-a-second"),
            *_BEGIN,
            SIGTERM,
            Draining(),
            *_END,
        ),
        expect=Expect(answers={"first": 200, "ordinary": 200}, received={"half": (), "half-of-a-second": (200,)}),
    ),
    Scenario(
        name="head-ends-during-the-drain",
        shows="a request whose head is complete only during the drain is refused",
        workers=(1,),
        steps=(
            Connect("late"),
            Write("late", b"GET /db-test HTTP/1.1\r\nHost"),
            *_BEGIN,
            SIGTERM,
            Draining(),
            Write("late", b": x\r\n\r\n"),
            Take("late"),
            *_END,
        ),
        expect=Expect(answers={"ordinary": 200}, received={"late": (503,)}, refused=1),
    ),
    Scenario(
        name="body-ends-during-the-drain",
        shows="an upload whose head came before the signal is in flight: the order is stored",
        steps=(
            Connect("upload"),
            Write("upload", _HALF),
            Admitted(("upload",)),
            SIGTERM,
            Draining(),
            Write("upload", _REST),
        ),
        expect=Expect(received={"upload": (201,)}, orders=("upload",)),
    ),
    Scenario(
        name="body-that-never-ends",
        shows="an upload that stops half-way is cut at the drain timeout with 504, and delays nobody else",
        policy=_DRAIN,
        steps=(
            Connect("upload"),
            Write("upload", _HALF),
            Admitted(("upload",)),
            *_BEGIN,
            SIGTERM,
            Draining(),
            *_END,
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"ordinary": 200},
            received={"upload": (504,)},
            cut=1,
            after_last_act=_BY_THEN,
            phases=_IN_FULL,
        ),
    ),
    Scenario(
        name="body-of-a-late-request",
        shows="an upload that begins during the drain is refused at its head, and its body not waited for",
        workers=(1,),
        steps=(
            Connect("upload"),
            *_BEGIN,
            SIGTERM,
            Draining(),
            Write("upload", _HALF),
            Take("upload"),
            *_END,
        ),
        expect=Expect(answers={"ordinary": 200}, received={"upload": (503,)}, refused=1),
    ),
    Scenario(
        name="client-leaves-while-it-uploads",
        shows="a client leaves half-way through its upload: the request is over, and leaves nothing behind",
        steps=(
            Connect("upload"),
            Write("upload", _HALF),
            Admitted(("upload",)),
            *_BEGIN,
            SIGTERM,
            Draining(),
            Disconnect("upload"),
            Event("request_finished", request="upload"),
            *_END,
        ),
        expect=Expect(answers={"ordinary": 200}),
    ),
    Scenario(
        name="not-http",
        shows="what is not valid HTTP is answered 400 with the same problem document, before and during the drain",
        workers=(1,),
        steps=(
            *(Connect(name) for name in ("tls", "words", "header", "length", "late")),
            Write("tls", b"\x16\x03\x01\x02\x00\r\n\r\n"),
            Write("words", b"this is not HTTP\r\n\r\n"),
            Write("header", b"GET / HTTP/1.1\r\nHost: x\r\nno colon here\r\n\r\n"),
            Write("length", b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n"),
            *(Take(name) for name in ("tls", "words", "header", "length")),
            *_BEGIN,
            SIGTERM,
            Draining(),
            Write("late", b"this is not HTTP\r\n\r\n"),
            Take("late"),
            *_END,
        ),
        expect=Expect(
            answers={"ordinary": 200}, received=dict.fromkeys(("tls", "words", "header", "length", "late"), (400,))
        ),
    ),
    Scenario(
        name="more-clients-than-descriptors",
        shows="a crowd takes all descriptors: accepting pauses, what is in flight is served, others when they leave",
        workers=(1,),
        steps=(
            *_BEGIN,
            FewDescriptors(4),
            Crowd(CROWD),
            Event("accept_paused"),
            *_END,
            CrowdLeaves(),
            Ask("later", "/db-test"),
            SIGTERM,
        ),
        expect=Expect(answers={"ordinary": 200, "later": 200}),
    ),
    Scenario(
        name="probes-while-all-threads-are-busy",
        shows="every thread is busy: the probes and the status page are answered all the same, also in the drain",
        workers=(1,),
        steps=(
            *(Start(name, "/late-checkout?latch=l") for name in _BUSY),
            AtLatch("l", len(_BUSY)),
            *(Ask(f"{probe}-before", f"/{probe}") for probe in _PROBES),
            SIGTERM,
            Draining(),
            *(Ask(f"{probe}-during", f"/{probe}") for probe in _PROBES),
            Open(("l",)),
            Answered(_BUSY),
        ),
        expect=Expect(
            answers=dict.fromkeys((*_BUSY, *(f"{probe}-before" for probe in _PROBES)), 200)
            | {"livez-during": 200, "readyz-during": 503, "pool-status-during": 200},
        ),
    ),
    # --- that do not take their answers ---
    Scenario(
        name="big-answer-taken-late",
        shows="an answer of 20 MB that its client takes during the drain, and not before, comes whole",
        steps=(
            Connect("big"),
            Write("big", raw("GET", "/big", "big")),
            Answering("big"),
            SIGTERM,
            Draining(),
            Take("big"),
        ),
        expect=Expect(received={"big": (200,)}),
    ),
    Scenario(
        name="big-answer-never-taken",
        shows="an answer of 20 MB that nobody takes is cut at the drain timeout, and delays nobody else",
        policy=_DRAIN,
        steps=(
            Connect("big"),
            Write("big", raw("GET", "/big", "big")),
            Answering("big"),
            *_BEGIN,
            SIGTERM,
            Draining(),
            *_END,
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"ordinary": 200},
            received={"big": (200,)},
            cut=1,
            after_last_act=_BY_THEN,
            phases=_IN_FULL,
        ),
    ),
    Scenario(
        name="stream-without-end",
        shows="a stream that goes on and on is broken off at the drain timeout, its connection returned",
        policy=_DRAIN,
        steps=(
            Connect("endless"),
            Write("endless", raw("GET", "/endless", "endless")),
            Answering("endless"),
            Event("checkout", request="endless"),
            SIGTERM,
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            received={"endless": (200,)},
            cut=1,
            after_last_act=_BY_THEN,
            phases=_IN_FULL,
        ),
    ),
    Scenario(
        name="event-streams-end",
        shows="streams of events, which never end by themselves, are ended when the drain begins and hold nobody up",
        databases=BOTH,
        steps=(
            Connect("one"),
            Write("one", raw("GET", "/events", "one")),
            Answering("one"),
            Event("checkin", request="one"),
            Connect("two"),
            Write("two", raw("GET", "/events", "two")),
            Answering("two"),
            Event("checkin", request="two"),
            SIGTERM,
        ),
        expect=Expect(received={"one": (200,), "two": (200,)}),
    ),
    Scenario(
        name="event-stream-is-cut",
        shows="a stream of events has the time of the drain if that is wanted (`--streams finish`), and is broken off",
        policy=(*_DRAIN, "--streams", "finish"),
        steps=(
            Connect("events"),
            Write("events", raw("GET", "/events", "events")),
            Answering("events"),
            Event("checkin", request="events"),
            SIGTERM,
        ),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            received={"events": (200,)},
            cut=1,
            after_last_act=_BY_THEN,
            phases=_IN_FULL,
        ),
    ),
    Scenario(
        name="pipelined-request",
        shows="a request sent behind one that is being served is not taken any more: the answer before it says close",
        steps=(
            Connect("pipe"),
            Write("pipe", raw("GET", "/query?latch=q", "first") + raw("GET", "/db-test", "second")),
            AtQuery("q"),
            SIGTERM,
            Draining(),
            Open(("q",)),
        ),
        expect=Expect(received={"pipe": (200,)}),
    ),
    Scenario(
        name="response-of-another-length",
        shows="a response shorter or longer than it says ends its connection: nothing is taken for the rest of it",
        workers=(1,),
        steps=(
            Connect("short"),
            Write("short", raw("GET", "/short", "short") + raw("GET", "/db-test", "behind")),
            Take("short"),
            Event("response_broken"),
            Connect("long"),
            Write("long", raw("GET", "/long", "long") + raw("GET", "/db-test", "behind")),
            Take("long"),
            Event("response_broken", 2),
            SIGTERM,
        ),
        expect=Expect(received={"short": (200,), "long": (200,)}),
    ),
    # --- that wait for somebody who is stuck ---
    Scenario(
        name="stubborn-request",
        shows="a request that heeds no cancellation is answered 504 in its stead, its connection ended, and cut",
        policy=("--drain-timeout", "0.4", "--cancel-timeout", "0.6"),
        steps=(Start("stubborn", "/stubborn?latch=l"), AtLatch("l"), SIGTERM),
        expect=Expect(
            exit_code=3,
            outcome="cut",
            answers={"stubborn": 504},
            cut=1,
            outstanding=("GET /stubborn",),
            after_last_act=Band(0.9, 3.0),
            phases={Phase.DRAINING: Band(0.39, 1.4), Phase.CANCELLING: Band(0.59, 1.6)},
        ),
    ),
)
