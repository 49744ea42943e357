"""The numbers as Prometheus' text, made of a status at each scrape: counting itself stays in plain numbers.

Needs prometheus-client (the extra `metrics`), whose families know the format's rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from pooldrain.leak_rules import LeakRule
from pooldrain.meter import BOUNDS, HistogramData
from pooldrain.phases import Phase
from pooldrain.snapshot import Counters, EngineCounters, EngineStatus, LastShutdown, ProcessStatus, ServiceStatus
from pooldrain.sqla.tracking import Tracked

CONTENT_TYPE = CONTENT_TYPE_LATEST

# The phases that a shutdown goes through.
SHUTDOWN_PHASES = tuple(phase for phase in Phase if phase not in (Phase.STARTING, Phase.READY, Phase.CLOSED))

# What stands for the status of a request that was cut without an answer.
NO_STATUS = "none"

# Names, labels and meanings, for documentation and dashboards: a test compares them with what is rendered.
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    name: (kind, meaning, labels)
    for kind, name, labels, meaning in (
        ("gauge", "pooldrain_workers", ("phase",), "Processes that serve, by phase."),
        ("counter", "pooldrain_workers_ended", (), "Processes that served and have ended."),
        ("gauge", "pooldrain_pool_connections", ("pool", "state"), "Open connections, used or idle."),
        ("gauge", "pooldrain_pool_connections_max", ("pool",), "Most connections that may be open; absent: no limit."),
        ("gauge", "pooldrain_pool_waiting", ("pool",), "Who waits for a connection now."),
        ("gauge", "pooldrain_pool_oldest_checkout_seconds", ("pool",), "Age of the oldest checkout."),
        ("counter", "pooldrain_pool_timeouts", ("pool",), "Waits for a connection in vain."),
        ("counter", "pooldrain_pool_connections_opened", ("pool",), "Connections that were opened."),
        ("counter", "pooldrain_pool_connections_closed", ("pool",), "Connections that were closed."),
        ("histogram", "pooldrain_pool_wait_seconds", ("pool",), "How long a connection was waited for."),
        ("histogram", "pooldrain_pool_use_seconds", ("pool",), "How long a connection was held."),
        ("histogram", "pooldrain_pool_connect_seconds", ("pool",), "How long opening a connection took."),
        ("counter", "pooldrain_leaks", ("pool", "rule"), "Leaks that were found, by rule."),
        ("counter", "pooldrain_connections_reclaimed", (), "Connections closed at the end that were not returned."),
        ("counter", "pooldrain_connections_abandoned", (), "Connections that nobody has seen to close at the end."),
        ("gauge", "pooldrain_requests_in_flight", (), "Requests in flight, those that wait for a thread included."),
        ("counter", "pooldrain_requests_finished", (), "Requests that were finished."),
        ("counter", "pooldrain_requests_refused", (), "Requests that were refused while draining."),
        ("counter", "pooldrain_requests_cut", (), "Requests that a deadline has cut."),
        ("histogram", "pooldrain_request_duration_seconds", ("method", "status"), "How long requests took."),
        ("gauge", "pooldrain_phase_seconds", ("phase",), "Longest time of a process in a phase of its shutdown."),
        ("gauge", "pooldrain_last_shutdown_exit_code", (), "Exit code of the last shutdown."),
        ("gauge", "pooldrain_last_shutdown_seconds", (), "How long it took."),
        ("gauge", "pooldrain_last_shutdown_phase_seconds", ("phase",), "How long each of its phases took."),
        ("gauge", "pooldrain_last_shutdown_requests", ("outcome",), "Its requests: finished, refused, cut."),
        (
            "gauge",
            "pooldrain_last_shutdown_connections",
            ("outcome",),
            "Its connections: outstanding, reclaimed, abandoned.",
        ),
    )
}


def exposition(status: ServiceStatus) -> bytes:
    """Prometheus' text for one service."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(status))
    return generate_latest(registry)


class PoolCollector(Collector):
    """The metrics of engines that `pooldrain.track` tracks, for a registry of the application's own."""

    def __init__(self, *tracked: Tracked) -> None:
        self._tracked = tracked

    def collect(self) -> Iterable[Metric]:
        """What a registry asks for at each scrape."""
        yield from _of_pools([tracked.seen() for tracked in self._tracked])
        yield from _of_engines([tracked.counters() for tracked in self._tracked])


class _Once(Collector):
    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status
        yield from _of_workers(status["workers"], status["ended"])
        yield from _of_pools([engine for worker in status["workers"] for engine in worker["engines"]])
        yield from _of_totals(status["totals"])
        if (last := status["last_shutdown"]) is not None:
            yield from _of_last(last)


def _gauge(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name][1], labels=METRICS[name][2])


def _counter(name: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS[name][1], labels=METRICS[name][2])


def _histogram(name: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, METRICS[name][1], labels=METRICS[name][2])


def _of_workers(workers: list[ProcessStatus], ended: int) -> Iterator[Metric]:
    phases = _gauge("pooldrain_workers")
    for phase in Phase:
        phases.add_metric([phase], sum(worker["phase"] == phase for worker in workers))
    yield phases
    gone = _counter("pooldrain_workers_ended")
    gone.add_metric([], ended)
    yield gone
    in_flight = _gauge("pooldrain_requests_in_flight")
    in_flight.add_metric([], sum(worker["in_flight"] + worker["waiting"] for worker in workers))
    yield in_flight
    longest = _gauge("pooldrain_phase_seconds")
    for phase in SHUTDOWN_PHASES:
        told = [each["seconds"] for worker in workers for each in worker["phases"] if each["phase"] == phase]
        longest.add_metric([phase], max(told, default=0.0))
    yield longest


def _of_pools(every: list[EngineStatus]) -> Iterator[Metric]:
    engines: dict[str, list[EngineStatus]] = {}
    for engine in every:
        engines.setdefault(engine["name"], []).append(engine)
    connections, most = _gauge("pooldrain_pool_connections"), _gauge("pooldrain_pool_connections_max")
    waiting, oldest = _gauge("pooldrain_pool_waiting"), _gauge("pooldrain_pool_oldest_checkout_seconds")
    for name, each in engines.items():
        connections.add_metric([name, "used"], sum(engine["used"] for engine in each))
        connections.add_metric([name, "idle"], sum(engine["idle"] for engine in each))
        limits = [engine["max"] for engine in each if engine["max"] is not None]
        if len(limits) == len(each):
            most.add_metric([name], sum(limits))
        waiting.add_metric([name], sum(engine["waiting"] for engine in each))
        ages = [checkout["age"] for engine in each for checkout in engine["checkouts"]]
        oldest.add_metric([name], max(ages, default=0.0))
    yield from (connections, most, waiting, oldest)


def _of_engines(engines: list[EngineCounters]) -> Iterator[Metric]:
    timeouts, leaks = _counter("pooldrain_pool_timeouts"), _counter("pooldrain_leaks")
    opened, closed = _counter("pooldrain_pool_connections_opened"), _counter("pooldrain_pool_connections_closed")
    wait, use = _histogram("pooldrain_pool_wait_seconds"), _histogram("pooldrain_pool_use_seconds")
    connect = _histogram("pooldrain_pool_connect_seconds")
    for engine in engines:
        name = engine["name"]
        timeouts.add_metric([name], engine["timeouts"])
        opened.add_metric([name], engine["opened"])
        closed.add_metric([name], engine["closed"])
        for rule in LeakRule:
            leaks.add_metric([name, rule.value], engine["leaks"][rule.value])
        for family, data in ((wait, engine["wait"]), (use, engine["use"]), (connect, engine["connect"])):
            family.add_metric([name], _buckets(data), data["sum"])
    yield from (timeouts, opened, closed, leaks, wait, use, connect)


def _of_totals(totals: Counters) -> Iterator[Metric]:
    yield from _of_engines(totals["engines"])
    durations = _histogram("pooldrain_request_duration_seconds")
    for row in totals["durations"]:
        told = NO_STATUS if row["status"] is None else str(row["status"])
        durations.add_metric([row["method"], told], _buckets(row["seconds"]), row["seconds"]["sum"])
    yield durations
    for name, number in (
        ("pooldrain_requests_finished", totals["finished"]),
        ("pooldrain_requests_refused", totals["refused"]),
        ("pooldrain_requests_cut", totals["cut"]),
        ("pooldrain_connections_reclaimed", totals["reclaimed"]),
        ("pooldrain_connections_abandoned", totals["abandoned"]),
    ):
        counted = _counter(name)
        counted.add_metric([], number)
        yield counted


def _of_last(last: LastShutdown) -> Iterator[Metric]:
    code, seconds = _gauge("pooldrain_last_shutdown_exit_code"), _gauge("pooldrain_last_shutdown_seconds")
    code.add_metric([], last["exit_code"])
    seconds.add_metric([], last["seconds"])
    phases = _gauge("pooldrain_last_shutdown_phase_seconds")
    for each in last["phases"]:
        phases.add_metric([each["phase"]], each["seconds"])
    requests, connections = _gauge("pooldrain_last_shutdown_requests"), _gauge("pooldrain_last_shutdown_connections")
    ended = {"finished": last["finished"], "refused": last["refused"], "cut": last["cut"]}
    left = {"outstanding": last["outstanding"], "reclaimed": last["reclaimed"], "abandoned": last["abandoned"]}
    for family, outcomes in ((requests, ended), (connections, left)):
        for outcome, number in outcomes.items():
            family.add_metric([outcome], number)
    yield from (code, seconds, phases, requests, connections)


def _buckets(histogram: HistogramData) -> list[tuple[str, float]]:
    """Cumulated, as Prometheus wants them."""
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    total, buckets = 0, []
    for bound, count in zip(bounds, histogram["counts"], strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def metrics_table() -> str:
    """The metrics as a Markdown table, for the documentation."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for name, (kind, meaning, labels) in METRICS.items():
        shown = f"{name}_total" if kind == "counter" else name
        lines.append(f"| `{shown}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
    return "\n".join(lines) + "\n"
