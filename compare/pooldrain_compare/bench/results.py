"""What a benchmark measured, and the file it is kept in: every single sample, so that a report needs nothing else.

Medians, ratios and the like are computed by who shows them, never stored. The samples of one case were taken in
rounds, one sample of each system a round: samples of equal index belong together, also across systems.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pooldrain.errors import ConfigurationError

Unit = Literal["requests", "ms", "us", "1/s", "%", "MB", "bytes", "connections", "s"]
Colour = Literal["sync", "async"]
Scalar = str | int | float | bool | None

DEFAULT_DIRECTORY = Path("compare") / "reports" / "data"
QUICK_DIRECTORY = Path(".pooldrain") / "bench"

BENCHMARKS = ("shutdown", "overhead", "throughput", "scale")
SERVERS = (
    *("pooldrain-gunicorn", "pooldrain-waitress", "pooldrain-uvicorn"),
    *("plain-gunicorn", "plain-waitress", "plain-uvicorn"),
    *("gunicorn-uvicorn-worker", "granian-wsgi", "cheroot", "granian-asgi", "hypercorn", "poll-flag"),
)
POOLS = (
    *("pooldrain-threads", "pooldrain-asyncio", "sqlalchemy-threads", "sqlalchemy-asyncio"),
    *("psycopg-pool", "psycopg-pool-async", "asyncpg-pool"),
)
SYSTEMS = (*SERVERS, *POOLS)


class BadResultsError(ConfigurationError):
    """A file of results that breaks the form; the message names the file and the place."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where it was measured: a class of machine, not a machine."""

    python: str
    system: str
    cores: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Noise:
    """How steady the machine was: milliseconds that a fixed spin loop took, sampled all through the run."""

    spin_ms: list[float]
    too_noisy: bool


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """One contender: what it is called, and how it was run, in one line."""

    label: str
    recipe: str
    ours: bool
    colour: Colour


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of one system in one case, once a round. Without samples, `note` says why there are none."""

    case: str
    system: str
    metric: str
    unit: Unit
    samples: list[float]
    x: float | None = None
    x_name: str | None = None  # of what `x` is the number
    note: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """One benchmark's outcome."""

    benchmark: str
    question: str
    quick: bool  # a smoke run: its numbers mean nothing
    parameters: dict[str, Scalar | list[Scalar]]
    environment: Environment
    noise: Noise
    systems: dict[str, SystemInfo]
    measurements: list[Measurement]

    def select(
        self,
        *,
        case: str | None = None,
        system: str | None = None,
        metric: str | None = None,
        x: float | None = None,
    ) -> list[Measurement]:
        """The measurements with these properties, in the order of the file; None matches all."""
        return [
            m
            for m in self.measurements
            if case in (None, m.case)
            and system in (None, m.system)
            and metric in (None, m.metric)
            and (x is None or x == m.x)
        ]


def save(results: Results, directory: Path) -> Path:
    """Write `directory`/<benchmark>.json and return its path. What it writes, `load` takes."""
    content = asdict(results)
    _results(_Place(results.benchmark), content)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{results.benchmark}.json"
    path.write_text(_dump(content), encoding="utf-8")
    return path


def load(path: Path) -> Results:
    """Read a file of results; raises BadResultsError, also when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadResultsError(f"{path}: {error.strerror}") from None
    except ValueError:  # JSON and UTF-8 alike
        raise BadResultsError(f"{path}: not valid JSON") from None
    return _results(_Place(str(path)), content)


def _dump(content: dict[str, Any]) -> str:
    """JSON for people and for diffs: a line for each system and each measurement."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    systems = [f"    {line(name)}: {line(system)}" for name, system in content.pop("systems").items()]
    measurements = [f"    {line(measurement)}" for measurement in content.pop("measurements")]
    parts = [f"  {line(name)}: {line(value)}" for name, value in content.items()]
    parts.append('  "systems": {\n' + ",\n".join(systems) + "\n  }")
    parts.append('  "measurements": [\n' + ",\n".join(measurements) + "\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# --- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in which file a value is, for messages."""

    file: str
    path: str = ""

    def __truediv__(self, part: str) -> _Place:
        return _Place(self.file, f"{self.path}.{part}" if self.path else part)

    def must(self, condition: bool, be: str, value: object) -> None:
        if not condition:
            shown = repr(value)
            shown = shown if len(shown) < 60 else f"{shown[:56]} ..."
            raise BadResultsError(f"{self.file}: {self.path or 'the content'} must be {be}, not {shown}")


def _results(at: _Place, value: Any) -> Results:
    content = _object(at, value, Results)
    systems = {
        _choice(at / "systems", name, SYSTEMS): _system(at / "systems" / name, info)
        for name, info in _mapping(at / "systems", content["systems"]).items()
    }
    results = Results(
        benchmark=_choice(at / "benchmark", content["benchmark"], BENCHMARKS),
        question=_text(at / "question", content["question"]),
        quick=_flag(at / "quick", content["quick"]),
        parameters={
            name: _parameter(at / "parameters" / name, parameter)
            for name, parameter in _mapping(at / "parameters", content["parameters"]).items()
        },
        environment=_environment(at / "environment", content["environment"]),
        noise=_noise(at / "noise", content["noise"]),
        systems=systems,
        measurements=[
            _measurement(at / f"measurements.{number}", measurement, systems)
            for number, measurement in enumerate(_list(at / "measurements", content["measurements"]))
        ],
    )
    seen = set[tuple[object, ...]]()
    for number, m in enumerate(results.measurements):
        key = (m.case, m.system, m.metric, m.x)
        (at / f"measurements.{number}").must(key not in seen, "measured once", key)
        seen.add(key)
    return results


def _environment(at: _Place, value: Any) -> Environment:
    content = _object(at, value, Environment)
    cores = content["cores"]
    (at / "cores").must(type(cores) is int and cores > 0, "a whole number above 0", cores)
    return Environment(
        python=_text(at / "python", content["python"]),
        system=_text(at / "system", content["system"]),
        cores=cores,
        versions={
            name: _text(at / "versions" / name, version)
            for name, version in _mapping(at / "versions", content["versions"]).items()
        },
    )


def _noise(at: _Place, value: Any) -> Noise:
    content = _object(at, value, Noise)
    spins = _numbers(at / "spin_ms", content["spin_ms"])
    (at / "spin_ms").must(bool(spins) and min(spins) > 0, "some numbers above 0", spins)
    return Noise(spins, _flag(at / "too_noisy", content["too_noisy"]))


def _system(at: _Place, value: Any) -> SystemInfo:
    content = _object(at, value, SystemInfo)
    return SystemInfo(
        label=_text(at / "label", content["label"]),
        recipe=_text(at / "recipe", content["recipe"]),
        ours=_flag(at / "ours", content["ours"]),
        colour=_choice(at / "colour", content["colour"], get_args(Colour)),
    )


def _measurement(at: _Place, value: Any, systems: Mapping[str, SystemInfo]) -> Measurement:
    content = _object(at, value, Measurement)
    x, x_name = content["x"], content["x_name"]
    (at / "x_name").must((x is None) == (x_name is None), "given with x, and only with it", x_name)
    (at / "system").must(content["system"] in systems, "one of the file's systems", content["system"])
    measurement = Measurement(
        case=_text(at / "case", content["case"]),
        system=content["system"],
        metric=_text(at / "metric", content["metric"]),
        unit=_choice(at / "unit", content["unit"], get_args(Unit)),
        samples=_numbers(at / "samples", content["samples"]),
        x=None if x is None else _number(at / "x", x),
        x_name=None if x_name is None else _text(at / "x_name", x_name),
        note=_string(at / "note", content["note"]),
    )
    (at / "samples").must(bool(measurement.samples or measurement.note), "given, or a note why not", [])
    return measurement


def _object(at: _Place, value: Any, kind: type) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    content = _mapping(at, value)
    at.must(sorted(content) == sorted(names), f"an object with {', '.join(names)}", sorted(content))
    return content


def _mapping(at: _Place, value: Any) -> dict[str, Any]:
    at.must(isinstance(value, dict), "an object", value)
    content: dict[str, Any] = value
    return content


def _list(at: _Place, value: Any) -> list[Any]:
    at.must(isinstance(value, list), "a list", value)
    content: list[Any] = value
    return content


def _numbers(at: _Place, value: Any) -> list[float]:
    return [_number(at / str(index), number) for index, number in enumerate(_list(at, value))]


def _number(at: _Place, value: Any) -> float:
    at.must(type(value) in (int, float) and math.isfinite(value), "a number", value)
    number: float = value
    return number


def _string(at: _Place, value: Any) -> str:
    at.must(isinstance(value, str), "a text", value)
    text: str = value
    return text


def _text(at: _Place, value: Any) -> str:
    text = _string(at, value)
    at.must(bool(text.strip()), "a text that says something", value)
    return text


def _flag(at: _Place, value: Any) -> bool:
    at.must(isinstance(value, bool), "true or false", value)
    flag: bool = value
    return flag


def _choice(at: _Place, value: Any, choices: tuple[Any, ...]) -> Any:
    at.must(value in choices, f"one of {', '.join(choices)}", value)
    return value


def _parameter(at: _Place, value: Any) -> Any:
    for single in value if isinstance(value, list) else [value]:
        at.must(single is None or isinstance(single, str | int | float | bool), "a value or a list of values", value)
    return value
