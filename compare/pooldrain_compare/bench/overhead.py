"""What does pooldrain cost while nothing is shut down? A checkout through the ledger, a request through the gate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pooldrain_compare.bench.gates import CALLS, CLIENTS, PER_SECOND, GateSample, measure_calls, measure_servers
from pooldrain_compare.bench.pools import PoolSample, measure_pools
from pooldrain_compare.bench.results import Summary, write_json
from pooldrain_compare.environment import artefacts
from pooldrain_compare.narrator import Narrator, result_console


def run_overhead(*, runs: int, quick: bool, json_path: Path) -> int:
    """Run the benchmark, print the tables, write the JSON."""
    checkouts, calls, seconds = (2_000, 200, 0.2) if quick else (30_000, 3_000, 0.5)
    with artefacts(None) as files, Narrator() as narrator:
        job = narrator.job("overhead")
        pools = measure_pools(files.path, runs, checkouts, job)
        gates = measure_servers(files.path, runs, seconds, job) + measure_calls(runs, calls, job)
    parameters = {"runs": runs, "checkouts": checkouts, "calls": calls, "seconds": seconds, "clients": CLIENTS}
    samples = {"pools": [asdict(sample) for sample in pools], "gates": [asdict(sample) for sample in gates]}
    write_json(json_path, "overhead", parameters, samples)
    console = result_console()
    _print_pools(console, pools, runs)
    _print_gates(console, gates, runs)
    console.print(f"Samples: {json_path}", soft_wrap=True)
    return 0


def _print_pools(console: Console, samples: Sequence[PoolSample], runs: int) -> None:
    table = Table(title=f"Checkout + checkin, µs: median (least-greatest) of {runs} pairs", title_justify="left")
    for title in ("Pool", "Stack depth", "SQLAlchemy's", "pooldrain's", "Added"):
        table.add_column(title, justify="left" if title == "Pool" else "right")
    for colour, depth in dict.fromkeys((sample.colour, sample.depth) for sample in samples):
        mine = [sample for sample in samples if (sample.colour, sample.depth) == (colour, depth)]
        table.add_row(
            colour,
            str(depth),
            Summary.of([sample.bare for sample in mine]).text("{:.2f}"),
            Summary.of([sample.ours for sample in mine]).text("{:.2f}"),
            Summary.of([sample.added for sample in mine]).text("{:+.2f}"),
        )
    console.print(table)


def _print_gates(console: Console, samples: Sequence[GateSample], runs: int) -> None:
    table = Table(title=f"A request through the gate: median (least-greatest) of {runs} pairs", title_justify="left")
    for title in ("What", "Unit", "Bare", "Gated", "Added, µs", "Added, %"):
        table.add_column(title, justify="left" if title in ("What", "Unit") else "right")
    for what in dict.fromkeys(sample.what for sample in samples):
        mine = [sample for sample in samples if sample.what == what]
        form = "{:.0f}" if mine[0].unit == PER_SECOND else "{:.1f}"
        table.add_row(
            what,
            mine[0].unit,
            Summary.of([sample.bare for sample in mine]).text(form),
            Summary.of([sample.gated for sample in mine]).text(form),
            Summary.of([sample.added_us for sample in mine]).text("{:+.1f}"),
            Summary.of([sample.added_us / sample.bare_us * 100 for sample in mine]).text("{:+.1f}"),
        )
    console.print(table)
    for server, call in CALLS.items():
        served = statistics.median(sample.bare_us for sample in samples if sample.what == server)
        added = statistics.median(sample.added_us for sample in samples if sample.what == call)
        console.print(
            f"{server}: the gate's {added:.1f} µs are {added / served:.1%} of a served request's {served:.0f} µs"
        )
