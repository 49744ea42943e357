"""Runs benchmarks one after the other, writes their files and prints what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pooldrain.errors import ConfigurationError
from pooldrain_compare.bench import overhead, scale, shutdown, throughput
from pooldrain_compare.bench.recorder import Bench
from pooldrain_compare.bench.results import DEFAULT_DIRECTORY, QUICK_DIRECTORY, Results, save
from pooldrain_compare.bench.room import roomy_database
from pooldrain_compare.bench.summary import print_results
from pooldrain_compare.harness.environment import artefacts, witness
from pooldrain_compare.harness.narrator import Narrator, result_console


class Measure(Protocol):
    """A benchmark."""

    def __call__(self, bench: Bench, *, runs: int | None) -> Results:
        """Measure everything; `runs` as the user said, or the benchmark's own number."""
        raise NotImplementedError


MEASURES: dict[str, Measure] = {
    "shutdown": shutdown.measure,
    "overhead": overhead.measure,
    "throughput": throughput.measure,
    "scale": scale.measure,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is asked for. `runs`: None for each benchmark's own number; `output`: None for the usual place."""

    benchmarks: Sequence[str]
    runs: int | None = None
    quick: bool = False
    output: Path | None = None
    database_url: str | None = None


def run_bench(options: BenchOptions) -> int:
    """Run them, never two at the same time; 0 when all came to their end."""
    output = options.output or (QUICK_DIRECTORY if options.quick else DEFAULT_DIRECTORY)
    try:
        output.mkdir(parents=True, exist_ok=True)  # before an hour is spent on what cannot be kept
    except OSError as error:
        raise ConfigurationError(f"--output {output}: {error.strerror}") from None
    console = result_console()
    found: list[tuple[Results, Path]] = []
    with (
        artefacts(None) as files,
        Narrator() as narrator,
        roomy_database(options.database_url, narrator.say) as url,
        witness(url) as asked,
    ):
        asked.create_orders()
        for name in options.benchmarks:
            bench = Bench(url, files.path, asked, quick=options.quick, report=narrator.job(name))
            results = MEASURES[name](bench, runs=options.runs)
            found.append((results, save(results, output)))  # at once: an interrupt later shall not cost it
    for results, path in found:
        console.rule(f"{results.benchmark}: {results.question}")
        print_results(console, results)
        console.print(f"Samples: {path}", markup=False, soft_wrap=True)
    return 0
