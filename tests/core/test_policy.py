"""Policies refuse what cannot work, and the ladder leaves every outer killer behind us."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooldrain import ConfigurationError, LeakPolicy, PoolPolicy, ShutdownPolicy

durations = st.floats(min_value=0, max_value=1e5)


def test_the_defaults_are_the_tutorials() -> None:
    pool = PoolPolicy()
    assert (pool.pool_size, pool.max_overflow, pool.pool_timeout, pool.pool_recycle) == (10, 20, 30.0, 3600.0)
    assert pool.pre_ping
    assert LeakPolicy().leak_threshold == 5
    assert LeakPolicy().leak_age is None


def test_as_many_connections_are_prewarmed_as_the_pool_is_large_unless_told_otherwise() -> None:
    assert PoolPolicy(pool_size=7).prewarm == 7
    assert PoolPolicy(pool_size=7, min_idle=0).prewarm == 0
    assert PoolPolicy(pool_size=7, min_idle=3).prewarm == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool_size", 0),
        ("max_overflow", -1),
        ("pool_timeout", -0.1),
        ("pool_timeout", math.nan),
        ("pool_recycle", 0.0),
        ("connect_timeout", 0.0),
        ("connect_timeout", math.inf),
        ("tcp_timeout", 0.0),
        ("min_idle", -1),
        ("min_idle", 11),
    ],
)
def test_a_pool_that_cannot_work_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} must be"):
        PoolPolicy(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("leak_threshold", 0), ("leak_age", 0.0), ("leak_age", math.nan)])
def test_a_leak_rule_that_cannot_work_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} must be"):
        LeakPolicy(**{field: value})


@pytest.mark.parametrize(
    "field", ["announce_period", "drain_timeout", "cancel_timeout", "teardown_timeout", "dispose_timeout", "linger"]
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_duration_is_finite_and_not_negative(field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} must be"):
        ShutdownPolicy(**{field: value})  # type: ignore[arg-type]  # a duration, whatever its name


def test_disposing_needs_time_and_the_other_steps_may_have_none() -> None:
    policy = ShutdownPolicy(announce_period=0, drain_timeout=0, cancel_timeout=0, teardown_timeout=0, linger=0)
    assert policy.needed == policy.dispose_timeout
    with pytest.raises(ConfigurationError, match="dispose_timeout must be more than 0"):
        ShutdownPolicy(dispose_timeout=0)


def test_a_grace_period_too_short_for_its_steps_is_refused_with_the_sum() -> None:
    with pytest.raises(ConfigurationError, match=r"grace_period 10 s is too short: .*drain_timeout 30 .*= 55\.05 s"):
        ShutdownPolicy(grace_period=10)


def test_a_grace_period_that_just_fits_is_taken_despite_rounding() -> None:
    policy = ShutdownPolicy(
        drain_timeout=0.1, cancel_timeout=0.2, teardown_timeout=0, dispose_timeout=0.3, linger=0, grace_period=0.6
    )
    assert policy.ladder.grace_period == 0.6


@given(announce=durations, drain=durations, cancel=durations, dispose=durations.filter(bool), spare=durations)
def test_each_rung_of_the_ladder_outlasts_the_one_below(
    announce: float, drain: float, cancel: float, dispose: float, spare: float
) -> None:
    steps: dict[str, Any] = {
        "announce_period": announce,
        "drain_timeout": drain,
        "cancel_timeout": cancel,
        "dispose_timeout": dispose,
    }
    tight = ShutdownPolicy(**steps)
    roomy = ShutdownPolicy(**steps, grace_period=tight.needed + spare)
    for policy in (tight, roomy):
        ladder = policy.ladder
        assert policy.needed <= ladder.grace_period < ladder.graceful_timeout < ladder.termination_grace_period
    assert roomy.ladder.grace_period >= tight.ladder.grace_period


def test_a_policy_cannot_be_changed_later() -> None:
    with pytest.raises(AttributeError):
        PoolPolicy().pool_size = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
