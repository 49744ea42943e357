"""The numbers as OpenTelemetry's instruments, in an application that has set up its SDK for metrics.

Names and units are those of its semantic conventions (status: development),
https://opentelemetry.io/docs/specs/semconv/database/database-metrics/ and .../http/http-metrics/; ours are beyond them.
All are observed when they are exported: a duration that is recorded in its histogram costs some 5 to 10 us, which no
request waits for here.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pooldrain import __version__
from pooldrain.lifecycle import Lifecycle
from pooldrain.meter import BOUNDS, HistogramData, spread
from pooldrain.phases import Phase
from pooldrain.snapshot import EngineCounters, EngineStatus, ProcessStatus

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, Observation

logger = logging.getLogger("pooldrain")

# Seconds for which the end of a process waits for the last export.
PUSH_LIMIT = 0.5

# Seconds for which one look at the service does for all instruments of an export.
_FRESH = 0.1

_POOL, _STATE = "db.client.connection.pool.name", "db.client.connection.state"

Attributes = dict[str, str | int]
Numbers = Iterator[tuple[float, Attributes]]


def observe(runner: Lifecycle[Any, Any], scheme: Literal["http", "https"]) -> None:
    """Have the service's numbers exported from the moment at which it is ready, if its application exports any."""

    def begin(phase: Phase) -> None:
        if phase is Phase.READY and "opentelemetry.sdk.metrics" in sys.modules:
            Instruments(runner, scheme)

    runner.followers.append(begin)


def push(functions: Sequence[Callable[[], object]]) -> None:
    """Run what exports the last numbers (and traces) of the process, and wait for it no longer than PUSH_LIMIT."""
    if not functions:
        return

    def export() -> None:
        for function in functions:
            try:
                function()
            except Exception:
                logger.exception("telemetry: what the application's SDK does at the end has failed")

    pushing = threading.Thread(target=export, name="pooldrain-telemetry", daemon=True)
    pushing.start()
    pushing.join(PUSH_LIMIT)
    if pushing.is_alive():
        logger.warning("telemetry: the last export has not ended within %g s, and is given up", PUSH_LIMIT)


class Instruments:
    """One service's instruments. `scheme`: what its clients speak to it."""

    def __init__(self, runner: Lifecycle[Any, Any], scheme: Literal["http", "https"]) -> None:
        from opentelemetry import metrics

        self._runner = runner
        self._scheme = scheme
        self._lock = threading.Lock()
        self._seen: ProcessStatus | None = None
        self._seen_at = -1.0
        self._recorded: dict[tuple[str, ...], HistogramData] = {}
        self._meter = metrics.get_meter("pooldrain", __version__)
        self._wait = self._histogram("db.client.connection.wait_time", "Time to obtain an open connection.")
        self._use = self._histogram("db.client.connection.use_time", "Time between borrowing and returning one.")
        self._create = self._histogram("db.client.connection.create_time", "Time to create a new connection.")
        self._duration = self._histogram("http.server.request.duration", "Duration of HTTP server requests.")
        count = "db.client.connection"
        self._gauge(f"{count}.count", "{connection}", "Connections by state.", self._connections)
        self._gauge(f"{count}.max", "{connection}", "Most connections allowed.", self._of_engines(_most))
        self._gauge(f"{count}.idle.max", "{connection}", "Most idle ones.", self._of_engines(lambda e: e["size"]))
        self._gauge(f"{count}.idle.min", "{connection}", "Fewest idle ones.", self._of_engines(lambda _: 0))
        self._gauge(
            f"{count}.pending_requests", "{request}", "Who waits for one.", self._of_engines(lambda e: e["waiting"])
        )
        self._counter(f"{count}.timeouts", "{timeout}", "Waits in vain.", self._of_counters(lambda e: e["timeouts"]))
        self._gauge("http.server.active_requests", "{request}", "Requests in flight.", self._active)
        self._counter("pooldrain.leaks", "{leak}", "Leaks found, by rule.", self._leaks)
        self._counter("pooldrain.requests", "{request}", "Requests by what became of them.", self._requests)
        self._counter("pooldrain.connections", "{connection}", "Not returned at the end, by what became.", self._left)
        self._gauge("pooldrain.phase", "1", "1 for the phase that the process is in.", self._phase)
        self._meter.create_observable_gauge(
            "pooldrain.phase.duration", [self._callback(self._phases)], "s", "Time spent in each phase."
        )

    def _histogram(self, name: str, description: str) -> Histogram:
        bounds = list(BOUNDS)
        return self._meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=bounds
        )

    def _gauge(self, name: str, unit: str, description: str, numbers: Callable[[ProcessStatus], Numbers]) -> None:
        callback = self._callback(numbers)
        self._meter.create_observable_up_down_counter(name, [callback], unit=unit, description=description)

    def _counter(self, name: str, unit: str, description: str, numbers: Callable[[ProcessStatus], Numbers]) -> None:
        callback = self._callback(numbers)
        self._meter.create_observable_counter(name, [callback], unit=unit, description=description)

    def _callback(
        self, numbers: Callable[[ProcessStatus], Numbers]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observed(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(number, attributes) for number, attributes in numbers(self._look())]

        return observed

    def _look(self) -> ProcessStatus:
        """The service now; the first look of an export also records the durations since the one before."""
        with self._lock:
            now = self._runner.clock()
            if self._seen is None or now - self._seen_at > _FRESH:
                self._seen, self._seen_at = self._runner.snapshot(), now
                self._record(self._seen)
            return self._seen

    def _record(self, status: ProcessStatus) -> None:
        for engine in status["counters"]["engines"]:
            attributes: Attributes = {_POOL: engine["name"]}
            for histogram, kind, data in (
                (self._wait, "wait", engine["wait"]),
                (self._use, "use", engine["use"]),
                (self._create, "create", engine["connect"]),
            ):
                self._replay(histogram, (kind, engine["name"]), data, attributes)
        for row in status["counters"]["durations"]:
            asked: Attributes = {"http.request.method": row["method"], "url.scheme": self._scheme}
            if row["status"] is None:
                asked["error.type"] = "cut"
            else:
                asked["http.response.status_code"] = row["status"]
            self._replay(self._duration, ("request", row["method"], str(row["status"])), row["seconds"], asked)

    def _replay(self, histogram: Histogram, key: tuple[str, ...], data: HistogramData, attributes: Attributes) -> None:
        for seconds, times in spread(self._recorded.get(key), data):
            for _ in range(times):
                histogram.record(seconds, attributes)
        self._recorded[key] = data

    @staticmethod
    def _connections(status: ProcessStatus) -> Numbers:
        for engine in status["engines"]:
            yield engine["used"], {_POOL: engine["name"], _STATE: "used"}
            yield engine["idle"], {_POOL: engine["name"], _STATE: "idle"}

    @staticmethod
    def _of_engines(number: Callable[[EngineStatus], int | None]) -> Callable[[ProcessStatus], Numbers]:
        def numbers(status: ProcessStatus) -> Numbers:
            for engine in status["engines"]:
                if (told := number(engine)) is not None:
                    yield told, {_POOL: engine["name"]}

        return numbers

    @staticmethod
    def _of_counters(number: Callable[[EngineCounters], int]) -> Callable[[ProcessStatus], Numbers]:
        return lambda status: ((number(engine), {_POOL: engine["name"]}) for engine in status["counters"]["engines"])

    def _active(self, status: ProcessStatus) -> Numbers:
        methods = [request["route"].partition(" ")[0] for request in status["requests"]]
        for method in dict.fromkeys(methods):
            yield methods.count(method), {"http.request.method": method, "url.scheme": self._scheme}

    @staticmethod
    def _leaks(status: ProcessStatus) -> Numbers:
        for engine in status["counters"]["engines"]:
            for rule, number in engine["leaks"].items():
                yield number, {_POOL: engine["name"], "pooldrain.leak.rule": rule}

    @staticmethod
    def _requests(status: ProcessStatus) -> Numbers:
        counters = status["counters"]
        ended = {"finished": counters["finished"], "refused": counters["refused"], "cut": counters["cut"]}
        for outcome, number in ended.items():
            yield number, {"pooldrain.outcome": outcome}

    @staticmethod
    def _left(status: ProcessStatus) -> Numbers:
        counters = status["counters"]
        for outcome, number in (("reclaimed", counters["reclaimed"]), ("abandoned", counters["abandoned"])):
            yield number, {"pooldrain.outcome": outcome}

    @staticmethod
    def _phase(status: ProcessStatus) -> Numbers:
        for phase in Phase:
            yield int(status["phase"] == phase), {"pooldrain.phase": phase.value}

    @staticmethod
    def _phases(status: ProcessStatus) -> Numbers:
        for each in status["phases"]:
            yield each["seconds"], {"pooldrain.phase": each["phase"]}


def _most(engine: EngineStatus) -> int | None:
    return engine["max"]
