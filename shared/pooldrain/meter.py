"""Numbers that only grow: how long connections were waited for, opened and held, how long requests took.

Plain numbers, no lock and no clock: whoever counts does so under the shell's lock, which is held there anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TypedDict

# Upper bounds of the buckets, in seconds: waits are mostly microseconds, uses milliseconds.
BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

# Methods that are counted apart (RFC 9110, and PATCH); any client may make up others.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})

# What stands for all others: OpenTelemetry's word, https://opentelemetry.io/docs/specs/semconv/http/http-metrics/.
OTHER_METHOD = "_OTHER"


class HistogramData(TypedDict):
    """A histogram, JSON-ready."""

    counts: list[int]  # for each of BOUNDS how many were at most that, and more than the bound before; then the rest
    sum: float  # seconds


class Histogram:
    """How many durations fell between which bounds, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def data(self) -> HistogramData:
        """JSON-ready."""
        return {"counts": list(self.counts), "sum": self.sum}


class PoolMeter:
    """One pool's numbers beside those that its ledger keeps."""

    __slots__ = ("connect", "timeouts", "use", "wait")

    def __init__(self) -> None:
        self.wait = Histogram()  # from asking for a connection to having it, its test and its opening included
        self.use = Histogram()  # from the checkout to the checkin
        self.connect = Histogram()  # opening one
        self.timeouts = 0  # waits in vain


class RequestMeter:
    """How long requests took, by method and status; None: cut without an answer."""

    __slots__ = ("durations",)

    def __init__(self) -> None:
        self.durations: dict[tuple[str, int | None], Histogram] = {}

    def observe(self, method: str, status: int | None, seconds: float) -> None:
        """Count a request that has ended."""
        histogram = self.durations.get((method, status))
        if histogram is None:
            known = (method if method in METHODS else OTHER_METHOD, status)
            histogram = self.durations.setdefault(known, Histogram())
        histogram.observe(seconds)


def spread(before: HistogramData | None, now: HistogramData) -> list[tuple[float, int]]:
    """Durations, and how often each, that make the one histogram of the other: alike in every bucket and in the sum.

    For who can only be told of durations one by one. Where in its bucket each lies is the same for all of them.
    """
    earlier = before if before is not None else Histogram().data()
    counts = [count - old for count, old in zip(now["counts"], earlier["counts"], strict=True)]
    total = now["sum"] - earlier["sum"]
    lows = (0.0, *BOUNDS)
    least = sum(count * low for count, low in zip(counts, lows, strict=True))
    beyond = counts[-1]
    if beyond:  # the last bucket has no end: it takes what the middles of the others leave
        middles = sum(count * (low + high) / 2 for count, low, high in zip(counts, lows, BOUNDS, strict=False))
        longest = max(lows[-1] * 1.001, (total - middles) / beyond)
        highs = (*BOUNDS, 2 * longest - lows[-1])
        share = 0.5
    else:
        highs = (*BOUNDS, lows[-1])
        room = sum(count * (high - low) for count, low, high in zip(counts, lows, highs, strict=True))
        share = min(1.0, max(1e-6, (total - least) / room)) if room else 1.0
    return [
        (low + share * (high - low), count) for count, low, high in zip(counts, lows, highs, strict=True) if count > 0
    ]
