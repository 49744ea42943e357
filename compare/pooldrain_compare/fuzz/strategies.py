"""Draws scenarios.

Numbers are chosen so that no two deadlines fall on the same instant: which of two comes first then is chance, in
either colour. Choices shrink towards the front: an empty script, the first operation, a patient policy.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain_compare.fuzz.scenario import CLOSING, DRIVERS, OPERATIONS, SERVER_STEPS, Action, Scenario

MOST_AT_FIRST, MOST_BEFORE, MOST_AFTER = 4, 10, 8  # requests, then actions before and after the signal
MOST_OPERATIONS = 3
MOST_CHOICES = 5  # more than there usually are: an action takes its choice modulo what there is

# Operations that end a request, or have to come last.
_FINAL = ("crash", "stream")


def _pool_policy(size: int, overflow: int, idle: int, timeout: float, pre_ping: bool) -> PoolPolicy:
    return PoolPolicy(
        pool_size=size, max_overflow=overflow, min_idle=min(idle, size), pool_timeout=timeout, pre_ping=pre_ping
    )


_pools = st.builds(
    _pool_policy,
    size=st.integers(1, 3),
    overflow=st.integers(0, 2),
    idle=st.integers(0, 3),
    timeout=st.sampled_from((41.3, 2.3)),
    pre_ping=st.booleans(),
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
    dispose_timeout=st.just(10.7),
    linger=st.just(0.05),
)

# Most of what a shutdown has to deal with is in flight when it begins.
_LASTING = ("hold", "hold", "hold", "write", "keep")

_operations = st.lists(st.sampled_from((*OPERATIONS, *_LASTING)), min_size=1, max_size=MOST_OPERATIONS)
_choices = st.integers(0, MOST_CHOICES)


def _program(operations: list[str]) -> tuple[str, ...]:
    """What comes after the end never happens: leave it out."""
    for number, operation in enumerate(operations, 1):
        if operation in _FINAL:
            return tuple(operations[:number])
    return tuple(operations)


def _action(name: str, arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Action]:
    return st.builds(Action, st.just(name), arguments)


_START = _action("start", _operations.map(_program))
_RELEASE = _action("release", _choices)
_SIGNAL = _action("signal", st.sampled_from(("SIGTERM", "SIGINT")))
_ADVANCE = _action("advance", st.sampled_from((1.1, 4.3, 31.7)))
_RARE = (
    _action("leave", _choices),
    _action("return", _choices),
    _action("refuse", st.booleans()),
    _action("kill", st.none()),
    _action("closing", st.sampled_from(CLOSING)),
    _action("probe", st.none()),
)
# Before the signal mostly requests come, after it they mostly go; everything else may happen at any time.
_BEFORE = st.one_of(_START, _START, _START, _START, _RELEASE, _ADVANCE, *_RARE)
_AFTER = st.one_of(_RELEASE, _RELEASE, _RELEASE, _START, _START, _SIGNAL, _ADVANCE, *_RARE)


def _script(requests: list[Action], before: list[Action], signal: Action, after: list[Action]) -> tuple[Action, ...]:
    return (*requests, *before, signal, *after)


_scripts = st.builds(
    _script,
    st.lists(_START, min_size=1, max_size=MOST_AT_FIRST),
    st.lists(_BEFORE, max_size=2) | st.lists(_BEFORE, min_size=3, max_size=MOST_BEFORE),
    _SIGNAL,
    st.lists(_AFTER, max_size=2) | st.lists(_AFTER, min_size=3, max_size=MOST_AFTER),
)


def scenarios() -> st.SearchStrategy[Scenario]:
    """All of them."""
    return st.builds(
        Scenario,
        pool=_pools,
        leaks=_leaks,
        shutdown=_shutdowns,
        driver=st.sampled_from(DRIVERS),
        engines=st.integers(1, 2),
        failing=st.sampled_from((*[()] * 12, *[(step,) for step in SERVER_STEPS])),
        script=_scripts,
    )
