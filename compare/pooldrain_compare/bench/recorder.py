"""What every benchmark measures with: the samples taken so far, the rounds they are taken in, and the progress."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pooldrain.errors import ConfigurationError
from pooldrain_compare.bench.noise import NoiseMeter
from pooldrain_compare.bench.results import Environment, Measurement, Results, SystemInfo, Unit
from pooldrain_compare.harness.witness import Witness

_PACKAGES = (
    *("sqlalchemy", "psycopg", "psycopg-pool", "asyncpg"),
    *("gunicorn", "waitress", "uvicorn", "uvicorn-worker", "granian", "cheroot", "hypercorn", "flask", "fastapi"),
)

SPARE_CONNECTIONS = 10  # of the database server's, not for us

T = TypeVar("T")


def rounds(contenders: Sequence[T], number: int) -> Iterator[tuple[int, T]]:
    """Every contender once a round, in alternating order: neighbours stay neighbours, and a slow minute hits all."""
    for this in range(number):
        for contender in contenders if this % 2 == 0 else reversed(contenders):
            yield this, contender


@dataclass(frozen=True, slots=True)
class Point:
    """Which number of which contender a sample is of."""

    case: str
    system: str
    metric: str
    unit: Unit
    x: float | None = None
    x_name: str | None = None


class Recorder:
    """Collects samples; the order in which points are first met is the order in the file."""

    def __init__(self) -> None:
        self._measured: dict[Point, Measurement] = {}

    def add(self, point: Point, sample: float) -> None:
        """Take one sample."""
        self._of(point).samples.append(round(sample, 6))

    def note(self, point: Point, note: str) -> None:
        """Say something about a point, such as why it has no samples."""
        measured = self._of(point)
        if note not in measured.note:
            self._measured[point] = replace(measured, note="; ".join(filter(None, (measured.note, note))))

    def measurements(self) -> list[Measurement]:
        """Everything so far."""
        return list(self._measured.values())

    def _of(self, point: Point) -> Measurement:
        if point not in self._measured:
            self._measured[point] = Measurement(
                point.case, point.system, point.metric, point.unit, [], point.x, point.x_name
            )
        return self._measured[point]


class Bench:
    """A benchmark's surroundings: the database, a directory for logs, the recorder, the progress."""

    def __init__(
        self, url: str, directory: Path, witness: Witness, *, quick: bool, report: Callable[[str, float], None]
    ) -> None:
        self.url = url
        self.directory = directory
        self.witness = witness
        self.quick = quick
        self.recorder = Recorder()
        self._report = report
        self._noise = NoiseMeter()

    def require_connections(self, number: int) -> None:
        """Make sure that the database server lets us have so many; raises ConfigurationError."""
        allowed = int(self.witness.setting("max_connections")) - SPARE_CONNECTIONS
        if allowed < number:
            raise ConfigurationError(
                f"this benchmark needs {number} connections and the server leaves {allowed}: raise its max_connections"
            )

    def progress(self, doing: str, done: float) -> None:
        """Say what comes next, and how much of all has been done (0 to 1). Called when nothing is being measured."""
        self._report(doing, done)
        self._noise.sample()

    def results(self, benchmark: str, question: str, parameters: Any, systems: dict[str, SystemInfo]) -> Results:
        """Everything in its form; `parameters` is the benchmark's dataclass, `systems` has all that were measured."""
        measurements = self.recorder.measurements()
        return Results(
            benchmark=benchmark,
            question=question,
            quick=self.quick,
            parameters={
                name: list(value) if isinstance(value, tuple) else value for name, value in asdict(parameters).items()
            },
            environment=environment(self.witness),
            noise=self._noise.noise(),
            systems={name: systems[name] for name in systems if name in {m.system for m in measurements}},
            measurements=measurements,
        )


def environment(asked: Witness) -> Environment:
    """The machine's class and the versions."""
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        versions={package: version(package) for package in _PACKAGES}
        | {"postgresql": asked.setting("server_version").split()[0]},
    )
