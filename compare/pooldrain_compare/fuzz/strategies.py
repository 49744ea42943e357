"""Draws scenarios.

Numbers are chosen so that no two deadlines fall on the same instant: which of two comes first then is chance, in
either colour. Choices shrink towards the front: an empty script, the first operation, a patient policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain_compare.fuzz.fuzz_scenario import (
    CLOSING,
    DRIVERS,
    ENDINGS,
    OPERATIONS,
    SERVER_STEPS,
    Action,
    FuzzScenario,
)

MOST_AT_FIRST, MOST_BEFORE, MOST_IN_A_PHASE = 4, 10, 3  # requests, then actions before the signal and after it
MOST_OPERATIONS = 3
MOST_KINDS = 3  # of operations, and of what happens rarely, in one scenario
MOST_CHOICES = 5  # more than there usually are: an action takes its choice modulo what there is

# Operations that end a request, or have to come last.
_FINAL = ("crash", "after", "stream")


def _pool_policy(size: int, overflow: int, idle: int, timeout: float, pre_ping: bool, untested: float) -> PoolPolicy:
    return PoolPolicy(
        pool_size=size,
        max_overflow=overflow,
        min_idle=min(idle, size),
        pool_timeout=timeout,
        pre_ping=pre_ping,
        pre_ping_idle=untested,
    )


_pools = st.builds(
    _pool_policy,
    size=st.integers(1, 3),
    overflow=st.integers(0, 2),
    idle=st.integers(0, 3),
    timeout=st.sampled_from((41.3, 2.3)),
    pre_ping=st.booleans(),
    untested=st.sampled_from((0.0, 0.6)),
)
_leaks = st.builds(
    LeakPolicy,
    leak_threshold=st.integers(1, 4),
    leak_age=st.sampled_from((None, 7.1)),
    fail_on_leak=st.booleans(),
)
_shutdowns = st.builds(
    ShutdownPolicy,
    announce_period=st.sampled_from((0.0, 3.7)),
    drain_timeout=st.sampled_from((30.9, 5.9, 0.0)),
    cancel_timeout=st.sampled_from((5.3, 1.9)),
    teardown_timeout=st.just(8.9),
    dispose_timeout=st.just(10.7),
    linger=st.just(0.05),
)

# Most of what a shutdown has to deal with is in flight when it begins.
_LASTING = ("hold", "hold", "hold", "write", "keep")
_OPERATIONS = (*OPERATIONS, *_LASTING)

_choices = st.integers(0, MOST_CHOICES)
_ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "release": _choices,
    "signal": st.sampled_from(("SIGTERM", "SIGINT")),
    "advance": st.sampled_from((1.1, 4.3, 31.7)),
    "leave": _choices,
    "return": _choices,
    "refuse": st.booleans(),
    "slow": st.booleans(),
    "kill": st.none(),
    "closing": st.sampled_from(CLOSING),
    "probe": st.none(),
}
_RARE = ("leave", "return", "refuse", "slow", "kill", "closing", "probe")
_TROUBLE = (Action("closing", "hangs"), Action("slow", True), Action("closing", "raises"), Action("refuse", True))
_LONG = (
    "ANNOUNCING",
    "DRAINING",
    "CANCELLING",
    "TEARDOWN",
    "RECLAIMING",
    "DISPOSING",
)  # phases in which more can happen


def _program(operations: list[str]) -> tuple[str, ...]:
    """What comes after the end never happens: leave it out."""
    for number, operation in enumerate(operations, 1):
        if operation in _FINAL:
            return tuple(operations[:number])
    return tuple(operations)


@st.composite
def _actions(draw: st.DrawFn, names: Sequence[str], operations: Sequence[str]) -> Action:
    """One of these actions, a request with some of these operations."""
    name = draw(st.sampled_from(names))
    if name != "start":
        return Action(name, draw(_ARGUMENTS[name]))
    return Action(name, _program(draw(st.lists(st.sampled_from(operations), min_size=1, max_size=MOST_OPERATIONS))))


@st.composite
def _scripts(draw: st.DrawFn) -> tuple[Action, ...]:
    """Requests, what happens before the signal, the signal, and what happens in the phases after it.

    Each script has a few kinds of everything: what only several of a kind bring about would hardly ever be drawn
    from all kinds.
    """
    operations = draw(st.lists(st.sampled_from(_OPERATIONS), min_size=1, max_size=MOST_KINDS))
    rare = draw(st.lists(st.sampled_from(_RARE), max_size=MOST_KINDS))
    # Before the signal mostly requests come, after it they mostly go; everything else may happen at any time.
    start = _actions(("start",), operations)
    before = _actions(("start", "start", "start", "release", "advance", *rare), operations)
    after = _actions(("start", "release", "release", "release", "advance", "signal", *rare), operations)
    script = draw(st.lists(start, min_size=1, max_size=MOST_AT_FIRST))
    script += draw(st.lists(before, max_size=2) | st.lists(before, min_size=3, max_size=MOST_BEFORE))
    script += draw(st.lists(st.sampled_from(_TROUBLE), max_size=2))
    script += [draw(_actions(("signal",), ()))]
    for phase in _LONG:
        actions = draw(st.lists(after, max_size=MOST_IN_A_PHASE))
        if actions:
            script += [Action("reach", phase), *actions]
    return tuple(script)


def scenarios() -> st.SearchStrategy[FuzzScenario]:
    """All of them."""
    return st.builds(
        FuzzScenario,
        pool=_pools,
        leaks=_leaks,
        shutdown=_shutdowns,
        driver=st.sampled_from(DRIVERS),
        engines=st.integers(1, 2),
        ending=st.just(()) | st.just(()) | st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=2).map(tuple),
        failing=st.sampled_from((*[()] * 12, *[(step,) for step in SERVER_STEPS])),
        script=_scripts(),
    )
