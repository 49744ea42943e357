"""What does pooldrain cost while nothing is shut down? A checkout through the ledger, a request through the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pooldrain_compare.bench.checkouts import measure_databases, measure_memory, measure_pools
from pooldrain_compare.bench.contenders import pool_infos, server_infos
from pooldrain_compare.bench.gates import CLIENTS, measure_calls, measure_servers
from pooldrain_compare.bench.recorder import Bench
from pooldrain_compare.bench.results import Results

QUESTION = "What do the gate and the ledger cost a request?"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    runs: int
    depths: tuple[int, ...]
    pool_loops: int  # of a checkout without a database server, in one sample
    database_loops: int  # of one on PostgreSQL
    memory_checkouts: int
    call_loops: int  # of an app called within the process
    served_seconds: float  # of load on a running server
    served_clients: int = CLIENTS


FULL = Size(
    runs=15,
    depths=(10, 30, 60),
    pool_loops=20_000,
    database_loops=300,
    memory_checkouts=200,
    call_loops=2_000,
    served_seconds=0.5,
)
QUICK = replace(FULL, runs=1, pool_loops=500, database_loops=20, call_loops=100, served_seconds=0.15)


def measure(bench: Bench, *, runs: int | None) -> Results:
    """Measure everything."""
    size = QUICK if bench.quick else FULL
    size = replace(size, runs=runs or size.runs)

    def stage(doing: str, start: float, share: float) -> Callable[[float], None]:
        return lambda done: bench.progress(doing, start + done * share)

    measure_pools(bench, size.runs, size.pool_loops, size.depths, stage("pools alone", 0.0, 0.25))
    stage("memory", 0.25, 0.05)(0.0)
    measure_memory(bench, size.runs, size.memory_checkouts, size.depths)
    measure_databases(bench, size.runs, size.database_loops, stage("pools on PostgreSQL", 0.3, 0.3))
    measure_calls(bench, size.runs, size.call_loops, stage("gate, in the process", 0.6, 0.15))
    measure_servers(bench, size.runs, size.served_seconds, stage("gate, on servers", 0.75, 0.25))
    bench.progress("done", 1.0)
    servers = server_infos("pooldrain-waitress", "plain-waitress", "pooldrain-uvicorn", "plain-uvicorn")
    return bench.results("overhead", QUESTION, size, pool_infos() | servers)
