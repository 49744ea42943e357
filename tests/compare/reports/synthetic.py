"""Results that look like real ones and are none: drawn from a seeded generator, for tests of the reports only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from pooldrain_compare.bench import checkouts, exits, gates, scale, shutdown, throughput
from pooldrain_compare.bench.contenders import pool_infos, server_infos
from pooldrain_compare.bench.results import Environment, Measurement, Noise, Results, SystemInfo, Unit

RUNS = 15
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_ENVIRONMENT = Environment(
    python="3.11.7", system="Linux x86_64", cores=2, versions={"sqlalchemy": "2.1.9", "gunicorn": "27.0.1"}
)


class Maker:
    """Makes up the samples of one benchmark."""

    def __init__(self, name: str, question: str, systems: dict[str, SystemInfo]) -> None:
        self._random = random.Random(name)
        self._name = name
        self._question = question
        self._systems = systems
        self._measurements: list[Measurement] = []

    def add(
        self,
        case: str,
        system: str,
        metric: str,
        unit: Unit,
        middle: float,
        x: tuple[float, str] | None = None,
        note: str = "",
    ) -> None:
        """Samples around `middle`; whole ones when they are counted."""
        samples = [middle * self._random.lognormvariate(0.0, 0.08) for _ in range(RUNS)]
        if unit in ("requests", "connections"):
            samples = [float(round(sample)) for sample in samples]
        at, x_name = x or (None, None)
        self._measurements.append(
            Measurement(case, system, metric, unit, [round(each, 3) for each in samples], at, x_name, note)
        )

    def results(self) -> Results:
        """All of it."""
        spins = [4 * self._random.lognormvariate(0.0, 0.03) for _ in range(40)]
        return Results(
            benchmark=self._name,
            question=self._question,
            quick=False,
            parameters={"runs": RUNS, "clients": list(CLIENTS), "pool_size": 10, "max_overflow": 20},
            environment=_ENVIRONMENT,
            noise=Noise([round(each, 3) for each in spins], too_noisy=False),
            systems=self._systems,
            measurements=self._measurements,
        )


def everything() -> dict[str, Results]:
    """All four benchmarks."""
    made = (_shutdown(), _overhead(), _throughput(), _scale())
    return {results.benchmark: results for results in made}


def with_samples(results: Results, change: Callable[[Measurement], Iterable[float]]) -> Results:
    """The same with other samples: what `change` makes of each measurement's."""
    return replace(results, measurements=[replace(each, samples=list(change(each))) for each in results.measurements])


# Lost a run, last answer to exit and idle signal to exit, in milliseconds.
_SHUTDOWN = {
    "pooldrain-gunicorn": (0, 7.4, 11.2),
    "pooldrain-waitress": (0, 6.3, 9.6),
    "pooldrain-uvicorn": (0, 8.8, 12.9),
    "plain-gunicorn": (29, 361, 221),
    "plain-waitress": (36, 4.1, 3.2),
    "plain-uvicorn": (12, 66, 173),
    "gunicorn-uvicorn-worker": (14, 412, 260),
    "granian-wsgi": (0, 120, 131),
    "cheroot": (30, 5.2, 4.1),
    "granian-asgi": (0, 104, 128),
    "hypercorn": (17, 151, 240),
    "poll-flag": (31, 168, 190),
}


def _shutdown() -> Results:
    maker = Maker("shutdown", "What does a SIGTERM cost: requests, time, connections?", server_infos())
    for name, (lost, after, idle) in _SHUTDOWN.items():
        ours = name.startswith("pooldrain")
        for factor, case in ((1.0, "busy, GET /"), (0.6, "busy, 50 ms query")):
            maker.add(case, name, "lost", "requests", lost * factor)
            maker.add(case, name, "refused", "requests", 40 if ours else 0)
            maker.add(case, name, "answered", "requests", 38 * factor)
            maker.add(case, name, "last answer to exit", "ms", after)
            maker.add(case, name, "signal to exit", "ms", after + 55, note="exit code 0")
            maker.add(case, name, "connections left", "connections", 0)
        maker.add("idle", name, "signal to exit", "ms", idle, note="exit code 0")
        maker.add("idle", name, "connections left", "connections", 0)
        if ours:
            maker.add(shutdown.BARE, name, "signal to exit", "ms", idle * 0.6)
        maker.add("hung request", name, "signal to exit", "ms", 1065 if ours else 1000 + 60 * after)
        maker.add("hung request", name, "connections left", "connections", 0 if ours else 1)
        maker.add("5 leaked connections", name, "signal to exit", "ms", idle * 1.1)
        maker.add("5 leaked connections", name, "connections left", "connections", 0 if ours else lost % 6)
    return maker.results()


def _overhead() -> Results:
    systems = pool_infos() | server_infos("pooldrain-waitress", "plain-waitress", "pooldrain-uvicorn", "plain-uvicorn")
    maker = Maker("overhead", "What do the gate and the ledger cost a request?", systems)
    for colour, bare in (("threads", 4.6), ("asyncio", 6.1)):
        ours, theirs = f"pooldrain-{colour}", f"sqlalchemy-{colour}"
        for depth in (10, 30, 60):
            at = (depth, checkouts.DEPTH)
            maker.add(checkouts.POOL_ONLY, ours, "time", "us", bare + 2.3 + depth / 90, at)
            maker.add(checkouts.POOL_ONLY, theirs, "time", "us", bare, at)
            maker.add(checkouts.MEMORY, ours, "memory", "bytes", 2900 + 2 * depth, at)
            maker.add(checkouts.MEMORY, theirs, "memory", "bytes", 1800, at)
        for case, took in ((checkouts.IDLE, 90), (checkouts.QUERY, 210)):
            maker.add(case, ours, "time", "us", took + bare)
            maker.add(case, theirs, "time", "us", took)
    for case, took in ((checkouts.IDLE, 40), (checkouts.QUERY, 130)):
        for pool in ("psycopg-pool", "psycopg-pool-async", "asyncpg-pool"):
            maker.add(case, pool, "time", "us", took)
    for server, call, served in (("waitress", 61, 520), ("uvicorn", 48, 305)):
        for case, bare in ((gates.EMPTY, 2), (gates.CALL, call), (gates.SERVED, served), (gates.QUERIED, 2 * served)):
            maker.add(case, f"pooldrain-{server}", "time per request", "us", bare + 3)
            maker.add(case, f"plain-{server}", "time per request", "us", bare)
    return maker.results()


_RATES = {"gunicorn": 1500, "waitress": 1900, "uvicorn": 2400}


def _throughput() -> Results:
    names = [f"{kind}-{server}" for server in _RATES for kind in ("pooldrain", "plain")]
    infos = server_infos(*names, "granian-wsgi")
    maker = Maker("throughput", "Which backend should I run: how fast is each, and how far?", infos)
    for clients in CLIENTS:
        at = (clients, throughput.BY_CLIENTS)
        for name, most in (("pooldrain-gunicorn", 11_000), ("plain-gunicorn", 3_600), ("granian-wsgi", 19_000)):
            maker.add(throughput.NOTHING, name, "throughput", "1/s", most, at)
            maker.add(throughput.NOTHING, name, "CPU per request", "us", 1e6 / most, at)
    for name in names:
        kind, _, server = name.partition("-")
        for case, factor in ((throughput.READ, 1.0), (throughput.QUERY, 0.7), (throughput.WRITE, 0.5)):
            peak = _RATES[server] * factor * (0.98 if kind == "pooldrain" else 1.0)
            alone = peak * (0.2 if server == "uvicorn" else 0.35)
            for clients in CLIENTS:
                rate = peak * (1 - math.exp(-clients * alone / peak))
                at = (clients, throughput.BY_CLIENTS)
                maker.add(case, name, "throughput", "1/s", rate, at)
                for metric, slower in (("p50", 0.9), ("p95", 1.6), ("p99", 2.8)):
                    maker.add(case, name, metric, "ms", clients / rate * 1000 * slower, at)
                maker.add(case, name, "connections in use", "connections", min(clients, 33), at)
            if server == "gunicorn":
                for threads in (4, 16, 40, 64):
                    at = (threads, throughput.BY_THREADS)
                    maker.add(f"{case}, 64 clients", name, "throughput", "1/s", peak * min(1, threads / 30), at)
        maker.add(throughput.MEMORY, name, "memory", "MB", 61 if kind == "pooldrain" else 58)
    return maker.results()


def _scale() -> Results:
    servers = {name: info for name, info in server_infos().items() if info.ours}
    maker = Maker("scale", "How do drain, dispose, leak scan and cancel grow with size?", pool_infos() | servers)
    for name in servers:
        for number in (1, 10, 100, 1000):
            at = (number, exits.REQUESTS)
            maker.add(f"{exits.GROWTH}, {exits.REQUESTS}", name, "last answer to exit", "ms", 9 + number / 100, at)
    for colour in ("threads", "asyncio"):
        ours = f"pooldrain-{colour}"
        for size in (10, 50, 100, 200, 400):
            at = (size, scale.POOL_SIZE)
            maker.add(scale.STOP, ours, "drain", "ms", 0.1, at)
            maker.add(scale.STOP, ours, "dispose", "ms", 0.2 * size, at)
            maker.add(scale.STOP, f"sqlalchemy-{colour}", "dispose", "ms", 0.15 * size, at)
        for number in (10, 100, 1000, 10_000):
            maker.add(scale.BOOKS, ours, "leak scan", "ms", 0.02 + number * 0.0004, (number, scale.CHECKOUTS))
            maker.add(scale.BOOKS, ours, scale.PAGE, "ms", 1 + number * 0.03, (number, scale.CHECKOUTS))
        for number in (1, 10, 100):
            maker.add(scale.CANCEL, ours, "cancel", "ms", 6 + number * 0.4, (number, scale.QUERIES))
    return maker.results()
