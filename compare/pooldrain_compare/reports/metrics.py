"""What the benchmarks' metrics mean: how they are called, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. `better`: None when neither way is; `wins`: what who is better in it does; `drawn`: gets plots, too."""

    title: str
    better: Literal["less", "more"] | None = None
    wins: str = ""
    drawn: bool = True
    by_case: bool = False  # its cases say what it is; the title alone says little

    @property
    def direction(self) -> str:
        """For the plots."""
        return "" if self.better is None else f"{self.better} is better"


_METRICS = {
    "lost": Metric("Requests lost", "less", "loses fewer requests"),
    "lost on kept connections": Metric("Of those, on kept connections", drawn=False),
    "lost on new connections": Metric("Of those, on new connections", drawn=False),
    "answered": Metric("Answered since the signal", drawn=False),
    "refused": Metric("Refused with 503", drawn=False),
    "last answer to exit": Metric(
        "Last answer to the end of the process", "less", "is gone sooner after its last answer"
    ),
    "signal to exit": Metric("Signal to the end of the process", "less", "ends sooner after the signal"),
    "connections left": Metric("Sessions left on the database server", "less", "leaves fewer database sessions"),
    "time": Metric("Time", "less", "is faster", by_case=True),
    "time per request": Metric("Time", "less", "is faster", by_case=True),
    "memory": Metric("Memory", "less", "needs less memory", by_case=True),
    "throughput": Metric("Throughput", "more", "serves more requests per second"),
    "p50": Metric("Latency, p50", "less", "has a lower median latency", drawn=False),
    "p95": Metric("Latency, p95", "less", "has a lower p95", drawn=False),
    "p99": Metric("Latency, p99", "less", "has a lower p99"),
    "CPU": Metric("CPU of the server", drawn=False),
    "CPU per request": Metric("CPU per request", "less", "needs less CPU for a request", drawn=False),
    "connections in use": Metric("Connections in use", drawn=False),
    "failed": Metric("Requests failed", "less", "fails fewer requests", drawn=False),
    "drain": Metric("Noticing that all is drained", "less", "drains faster"),
    "dispose": Metric("Closing the pool", "less", "closes its pool faster"),
    "leak scan": Metric("A scan for leaks", "less", "scans faster"),
    "/pool-status?detail=1": Metric("GET /pool-status?detail=1", "less", "answers faster"),
    "cancel": Metric("Cancelling hung queries", "less", "cancels faster"),
}


def metric(name: str) -> Metric:
    """The metric of this name; one that is not known is shown under its own name."""
    return _METRICS.get(name) or Metric(capitalised(name))


def titled(name: str, case: str) -> tuple[str, str]:
    """What a metric is called in a case: in large letters, and in small ones."""
    known = metric(name)
    return (capitalised(case), "") if known.by_case else (known.title, case)


def capitalised(text: str) -> str:
    """With a capital at the beginning, and the rest as it is."""
    return text[:1].upper() + text[1:]
