"""One scenario on both shells: plays it, observes what can be seen, says what differs."""

from __future__ import annotations

import difflib
import gc
import json
import logging
import re
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from pooldrain.phases import Phase
from pooldrain.shutdown import ShutdownReport
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain_compare.checker import check
from pooldrain_compare.fuzz.fuzz_scenario import Action, FuzzScenario
from pooldrain_compare.fuzz.loop import LoopStage
from pooldrain_compare.fuzz.threads import ThreadStage
from pooldrain_compare.fuzz.world import Received, World
from pooldrain_compare.normal_form import as_lines, normal_form

SIGNAL = "SIGTERM"  # the one that comes when the script has none

# Timers after which a shutdown that has not ended never will.
_MOST_TIMERS = 200

# Seconds between two things that happen; no sum of them is a timeout.
_TICK = 0.0137

# In an error that a pool's closing wakes somebody with: who comes back at the same time may do so before or after.
# And what names holders with their lines: the two worlds are two files.
_COUNT = re.compile(r"checked out \d+|, \d+ more wait; held: .*?\)(?= |$)")

# What a report measures.
_MEASURED = ("seconds", "age", "call_site", "callers")


class Stage(Protocol):
    """One colour, as the director sees it."""

    name: str
    world: World
    report: ShutdownReport | None

    pools: Sequence[TrackedPool]

    def open(self) -> None:
        """Open the pools."""

    def request(self, number: int) -> None:
        """A request comes."""

    def probe(self, path: str) -> Received:
        """Ask for a page that is never counted."""
        ...

    def signal(self, name: str) -> None:
        """A signal comes."""

    def give_back(self, connection: Any) -> None:
        """A leaked connection is returned."""

    def settle(self) -> None:
        """Let everything happen that can."""

    def next_timer(self) -> float | None:
        """When something happens that only time brings."""
        ...

    def move_to(self, now: float) -> None:
        """Let time pass."""

    def end(self) -> None:
        """End what still runs."""


STAGES: tuple[type[ThreadStage | LoopStage], ...] = (ThreadStage, LoopStage)


@dataclass(frozen=True, slots=True)
class Played:
    """What one shell did, as far as anybody can see."""

    name: str
    transcript: list[dict[str, Any]]
    report: dict[str, Any] | None  # None: the shutdown never ended
    answers: list[Any]  # by request
    probes: list[Any]  # /readyz, /pool-status and the pools' numbers, each time somebody asked
    rows: list[str]  # committed
    held_sessions: int  # connections that were not closed when the shutdown was over
    errors: list[str]  # that nobody was there to catch


def differences(scenario: FuzzScenario) -> list[str]:
    """What differs between the shells, and what the checker rejects; empty if all is well."""
    first, second = (play(stage, scenario) for stage in STAGES)
    found = [f"{seen.name}: {violation}" for seen in (first, second) for violation in violations(seen)]
    for what, one, other in _compared(first, second):
        if one != other:
            diff = difflib.unified_diff(one, other, f"{what}, {first.name}", f"{what}, {second.name}", n=2, lineterm="")
            found.append("\n".join(diff))
    return found


def violations(seen: Played) -> list[str]:
    """What is wrong with one shell's course by itself."""
    if seen.report is None:
        return ["the shutdown never ended"]
    found = [str(violation) for violation in check(seen.transcript, seen.report, seen.report["exit_code"])]
    found += [f"a connection is checked out from a closed pool: {checkout}" for checkout in _too_late(seen.transcript)]
    if seen.held_sessions != seen.report["connections"]["abandoned"]:
        abandoned = seen.report["connections"]["abandoned"]
        found.append(f"{seen.held_sessions} connections were not closed, the report says {abandoned}")
    return found


def _too_late(transcript: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Checkouts from pools that are closed to them: to requests since the drain timed out, to all since RECLAIMING.

    The checker has to be more lenient: in a real process a checkout and the closing of its pool may meet.
    """
    closed = closed_to_requests = False
    for record in transcript:
        event = record["event"]
        closed = closed or event == "pool_closing"
        closed_to_requests = closed_to_requests or (event == "drain_ended" and not record["complete"])
        if event == "checkout" and (closed or (closed_to_requests and record["request"] is not None)):
            yield record


def _compared(first: Played, second: Played) -> Iterator[tuple[str, list[str], list[str]]]:
    """What is compared, as lines of text."""
    yield "transcript", as_lines(normal_form(first.transcript)), as_lines(normal_form(second.transcript))
    yield "report", _lines(_report(first)), _lines(_report(second))
    for what in ("answers", "probes", "rows", "held_sessions", "errors"):
        yield what, _lines(getattr(first, what)), _lines(getattr(second, what))


def _report(seen: Played) -> Any:
    """A report without what it measures; of requests that are cut at the same instant, either may end first."""
    report = _unmeasured(seen.report)
    if report is not None:
        report["cut_requests"].sort(key=itemgetter("request_id"))
    return report


def _lines(value: Any) -> list[str]:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str).splitlines()


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmeasured(inner) for key, inner in value.items() if key not in _MEASURED}
    return [_unmeasured(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- the course of a trial ----------------------------------------------------------------------------------


def play(make: type[ThreadStage | LoopStage], scenario: FuzzScenario) -> Played:
    """Play a scenario to its end."""
    with _undisturbed():
        try:
            return _play(make(scenario), scenario)
        finally:
            gc.collect()  # what was leaked is not to be found during another trial


def _play(stage: Stage, scenario: FuzzScenario) -> Played:
    try:
        director = _Director(stage)
        director.direct(scenario.script)
        return director.observed()
    finally:
        stage.end()


@contextmanager
def _undisturbed() -> Generator[None, None, None]:
    """No log, no warnings, and no garbage collection but where the scenario has one.

    Those look at nothing but what the trial itself has made, which is 50 times as fast.
    """
    disabled = logging.root.manager.disable
    logging.disable()
    gc.disable()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()
        gc.enable()
        logging.disable(disabled)


class _Director:
    """Makes happen what the script says, one thing after the other."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._world = stage.world
        self._now = 0.0
        self._probes: list[Any] = []
        self._signals = 0

    def direct(self, script: Iterable[Action]) -> None:
        """The whole course, from the start to the end of the shutdown."""
        self._stage.open()
        self._settle()
        for action in script:
            self._do(action)
            if self._stage.report is not None:
                return  # the process is gone
        if not self._signals:
            self._signal(SIGNAL)
        self._reach("CLOSED")

    def observed(self) -> Played:
        """What could be seen."""
        world, report = self._world, self._stage.report
        return Played(
            name=self._stage.name,
            transcript=list(world.transcript.records),
            report=None if report is None else report.as_dict(),
            answers=[
                "left" if number in world.gone else received.as_dict() for number, received in world.received.items()
            ],
            probes=self._probes,
            rows=list(world.database.rows),
            held_sessions=world.database.held_sessions,
            errors=sorted(_COUNT.sub("?", error) for error in world.errors),  # they come at the same time
        )

    def _do(self, action: Action) -> None:
        world, argument = self._world, action.argument
        self._tick()
        match action.name:
            case "start":
                self._stage.request(world.begin(tuple(argument)))
            case "release":
                if names := world.waits.names:
                    world.waits.release(names[argument % len(names)])
            case "signal":
                self._signal(argument)
            case "advance":
                self._move_to(self._now + argument)
            case "reach":
                self._reach(argument)
            case "leave":
                if staying := [number for number in world.in_flight if number not in world.gone]:
                    world.gone.add(staying[argument % len(staying)])
            case "return":
                if world.kept:
                    self._stage.give_back(world.kept.pop(argument % len(world.kept)))
            case "refuse":
                world.database.refusing = bool(argument)
            case "slow":
                world.database.slow = bool(argument)
            case "kill":
                world.database.kill_idle()
            case "closing":
                world.database.closing = argument
            case _:
                self._probe()
        self._settle()

    def _signal(self, name: str) -> None:
        self._signals += 1
        self._stage.signal(name)
        self._settle()

    def _move_to(self, now: float) -> None:
        """Let time pass, stopping wherever something happens."""
        while (due := self._stage.next_timer()) is not None and due <= now:
            self._stage.move_to(due)
            self._settle()
            if self._stage.report is not None:
                return
        self._stage.move_to(now)
        self._now = now

    def _reach(self, phase: str) -> None:
        """Let time pass until the shutdown has come to this phase, or past it."""
        phases = list(Phase)
        for _ in range(_MOST_TIMERS if self._signals else 0):
            due = self._stage.next_timer()
            at = phases.index(Phase(self._world.transcript.phase))
            if due is None or at >= phases.index(Phase(phase)) or self._stage.report is not None:
                return
            self._move_to(due)

    def _settle(self) -> None:
        self._stage.settle()
        while self._world.database.notice() or self._world.waits.release_next():
            self._stage.settle()
            self._tick()

    def _tick(self) -> None:
        """Let a moment pass: what begins one after the other is not to time out at the same instant."""
        self._now += _TICK
        self._stage.move_to(self._now)

    def _probe(self) -> None:
        for path in ("/readyz", "/pool-status"):
            self._probes.append(self._stage.probe(path).as_dict())
        for pool in self._stage.pools:
            held = [_unmeasured(holding.as_dict()) for holding in pool.holdings()]
            self._probes.append({**pool.status.as_dict(), "held": held})
