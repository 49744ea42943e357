"""Policies: what the user asks for, validated once, frozen ever after.

All durations are seconds. A *timeout* or *period* is a duration; a *deadline* is an instant on the
monotonic clock. The ladder of deadlines (`ShutdownPolicy.ladder`) is the one place that says how long
each step of a shutdown may take and what the outside has to allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pooldrain.errors import ConfigurationError
from pooldrain.proxies import NOBODY, TrustedProxies
from pooldrain.request_head import LONGEST_HEAD, Limits

# What an outer killer has to wait beyond the grace period: interpreter start of the exit, log flush, reaping.
OUTSIDE_MARGIN = 2.0

# Bytes of a head that every request may have (RFC 9112, section 3: a request line of 8000 octets).
LEAST_HEAD = 8000

# Seconds beyond the grace period after which a master kills the workers that are left.
MASTER_MARGIN = 0.3


Streams = Literal["end", "finish"]

PoolerMode = Literal["auto", "on", "off"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


def _duration(name: str, value: float, *, zero: bool = True) -> None:
    finite = math.isfinite(value)
    _require(
        finite and (value >= 0 if zero else value > 0),
        f"{name} must be {'0 or more' if zero else 'more than 0'} seconds, not {value:g}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """What is read of a request, for how long a connection is kept, and whose word is taken for who the client is.

    `limit_request_head` and `limit_request_body` in bytes (None: as much as comes). `keep_alive`: longer than a load
    balancer's own keep-alive (60 s is common), so that the balancer closes first and never sends into a connection
    that is being closed. `root_path`: the prefix under which a proxy shows the application, without the last slash.
    Raises ConfigurationError when a number is out of range.
    """

    limit_request_head: int = LONGEST_HEAD
    limit_request_body: int | None = None
    keep_alive: float = 75.0
    trusted_proxies: TrustedProxies = NOBODY
    root_path: str = ""

    def __post_init__(self) -> None:
        _require(
            self.limit_request_head >= LEAST_HEAD,
            f"limit_request_head must be {LEAST_HEAD} or more, not {self.limit_request_head}",
        )
        _duration("keep_alive", self.keep_alive, zero=False)

    @property
    def limits(self) -> Limits:
        """The first two."""
        return Limits(self.limit_request_head, self.limit_request_body)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """How many connections, and how long to wait for one.

    Defaults are the tutorial's. `min_idle` connections are opened at start (None means `pool_size`). Within
    `pre_ping_idle` of its last use a connection is not asked whether it is alive (0: it always is), as with HikariCP's
    `aliveBypassWindowMs`; only whether its socket tells of an end is looked at.
    After `tcp_timeout` without a sign of life one is dead to both ends (None leaves that to the systems).
    `pooler`: whether a connection pooler is in between; auto finds out.
    Raises ConfigurationError when a number is out of range.
    """

    pool_size: int = 10
    max_overflow: int = 20
    pool_timeout: float = 30.0
    pool_recycle: float = 3600.0
    pre_ping: bool = True
    pre_ping_idle: float = 0.5
    min_idle: int | None = None
    connect_timeout: float = 5.0
    tcp_timeout: float | None = 15.0
    pooler: PoolerMode = "auto"

    def __post_init__(self) -> None:
        _require(self.pool_size >= 1, f"pool_size must be 1 or more, not {self.pool_size}")
        _require(self.max_overflow >= 0, f"max_overflow must be 0 or more, not {self.max_overflow}")
        _duration("pool_timeout", self.pool_timeout)
        _duration("pool_recycle", self.pool_recycle, zero=False)
        _duration("pre_ping_idle", self.pre_ping_idle)
        _duration("connect_timeout", self.connect_timeout, zero=False)
        if self.tcp_timeout is not None:
            _duration("tcp_timeout", self.tcp_timeout, zero=False)
        if self.min_idle is not None:
            _require(
                0 <= self.min_idle <= self.pool_size,
                f"min_idle must be between 0 and pool_size ({self.pool_size}), not {self.min_idle}",
            )

    @property
    def prewarm(self) -> int:
        """How many connections to open at start."""
        return self.pool_size if self.min_idle is None else self.min_idle


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakPolicy:
    """When a checked-out connection counts as leaked (see `ledger`), and whether that fails the exit.

    `leak_age` None turns the `overdue` rule off, as HikariCP's leakDetectionThreshold of 0 does.
    """

    leak_threshold: int = 5
    leak_age: float | None = None
    fail_on_leak: bool = False

    def __post_init__(self) -> None:
        _require(self.leak_threshold >= 1, f"leak_threshold must be 1 or more, not {self.leak_threshold}")
        if self.leak_age is not None:
            _duration("leak_age", self.leak_age, zero=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What the outside must allow, so that no outer killer fires first. Seconds, whole where asked for."""

    grace_period: float  # our own bound, from the signal to the exit
    graceful_timeout: float  # our master: SIGKILL to a worker after this
    termination_grace_period: int  # Kubernetes terminationGracePeriodSeconds, systemd TimeoutStopSec


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownPolicy:
    """How long each step of the shutdown may take.

    The sum of the steps is the grace period; giving `grace_period` states what the outside allows, and a
    sum that does not fit it is refused with ConfigurationError rather than cut short on the day.

    `streams`: whether event streams and WebSockets are ended at the drain's start, for their clients to come again, or
    have its time to finish.
    """

    announce_period: float = 0.0
    drain_timeout: float = 30.0
    cancel_timeout: float = 5.0
    teardown_timeout: float = 10.0
    dispose_timeout: float = 10.0
    linger: float = 0.05
    grace_period: float | None = None
    streams: Streams = "end"

    def __post_init__(self) -> None:
        _duration("announce_period", self.announce_period)
        _duration("drain_timeout", self.drain_timeout)
        _duration("cancel_timeout", self.cancel_timeout)
        _duration("teardown_timeout", self.teardown_timeout)
        _duration("dispose_timeout", self.dispose_timeout, zero=False)
        _duration("linger", self.linger)
        if self.grace_period is not None:
            _duration("grace_period", self.grace_period, zero=False)
            _require(
                self.needed <= self.grace_period + 1e-9,
                f"grace_period {self.grace_period:g} s is too short: announce_period {self.announce_period:g} + "
                f"drain_timeout {self.drain_timeout:g} + cancel_timeout {self.cancel_timeout:g} + "
                f"teardown_timeout {self.teardown_timeout:g} + dispose_timeout {self.dispose_timeout:g} + "
                f"linger {self.linger:g} = {self.needed:g} s; "
                "lengthen the grace period or shorten a step",
            )

    @property
    def needed(self) -> float:
        """Sum of the steps, in seconds."""
        waiting = self.announce_period + self.drain_timeout + self.cancel_timeout
        return waiting + self.teardown_timeout + self.dispose_timeout + self.linger

    @property
    def ladder(self) -> Ladder:
        """The deadlines above ours, each longer than the one below it."""
        grace = self.needed if self.grace_period is None else self.grace_period
        return Ladder(
            grace_period=grace,
            graceful_timeout=grace + MASTER_MARGIN,
            termination_grace_period=math.ceil(grace + OUTSIDE_MARGIN),
        )
